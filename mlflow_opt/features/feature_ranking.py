"""Rank a table's columns by what they are worth to a model: seven ways, each from the rows of one sample alone.

Nothing here chooses how many columns to keep; `feature_trials` does, on rows that the ranking has not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt.features.attributions import Unexplained, attributions, encoded, gathered, importance, raw_attributions, sources
from mlflow_opt.features.feature_samples import Sample
from mlflow_opt.measurement.scoring import score
from mlflow_opt.tables import column_codes
from mlflow_opt.tables.column_codes import information

logger = logging.getLogger(__name__)

# Columns that mRMR picks one by one; its redundancy is reckoned in coarser bins.
GREEDY, COARSE = 128, 12
# In nats; a quotient by less would let chance put noise before a column that repeats another in part.
LEAST_REPEATED = 0.05
NOISE_REPEATS, NOISE_LEVEL = 5, 0.05
# Cheap enough for thousands of columns.
SCREENING = ("gain", "mutual_information")


@dataclass(frozen=True)
class Ranking:
    """Columns from best to worst, with the value that each was ranked by.

    Args:
        method: that ranked.
        order: columns, best first.
        values: column -> value, larger is better; columns that were screened out have none.
        significant: how many of the first are better than noise, 0 if the method does not say.
    """

    method: str
    order: tuple[str, ...]
    values: Mapping[str, float] = field(default_factory=dict)
    significant: int = 0


def rank(sample: Sample, method: str) -> Ranking:
    """Rank the columns of a sample; of very many, a dear method ranks the promising ones and gain the rest behind them.

    Args:
        sample: rows and columns.
        method: one of `METHODS`.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"methods must be among {', '.join(METHODS)}, got {method!r}; name some of them, separated by commas.")
    if method in SCREENING or sample.promising is sample:
        return METHODS[method](sample)
    made = METHODS[method](sample.promising)
    rest = tuple(name for name in by_gain(sample).order if name not in made.values)
    return Ranking(method, (*made.order, *rest), made.values, made.significant)


def by_mutual_information(sample: Sample) -> Ranking:
    """Count how much a column alone says about the target, in nats, corrected for chance (Miller 1955)."""
    return _ranked("mutual_information", sample.columns, sample.relevance)


def by_mrmr(sample: Sample) -> Ranking:
    """Pick one by one what says most about the target for how much it repeats what was picked before (Peng et al. 2005, as a quotient)."""
    relevance = sample.relevance
    coarse = sample.codes * COARSE // column_codes.BINS + (sample.codes > 0)
    picked = [int(relevance.argmax())]
    repeated = np.zeros(len(relevance))
    left = [at for at in np.argsort(-relevance, kind="stable").tolist() if at != picked[0]]
    while left and len(picked) < GREEDY:
        for at in left:
            repeated[at] += information(coarse[:, at], coarse[:, picked[-1]])
        quotient = relevance[left] / (repeated[left] / len(picked) + LEAST_REPEATED)
        picked.append(left.pop(int(quotient.argmax())))
    order = [*picked, *left]
    return Ranking("mrmr", tuple(sample.columns[at] for at in order), {sample.columns[at]: float(relevance[at]) for at in order})


def by_rfe(sample: Sample) -> Ranking:
    """Train, drop the columns that the model gains least from, train again (Guyon et al. 2002); a quarter, of many columns half a time."""
    left, dropped = list(sample.columns), list[str]()
    while len(left) > 1:
        made = sample.fit(sample.trained[0], left)
        gains = dict(zip(left, importance(made, sample.rows).tolist(), strict=True))
        going = max(1, len(left) // (2 if len(left) > GREEDY else 4))
        worst = sorted(left, key=lambda name: gains[name])[:going]
        dropped += worst
        left = [name for name in left if name not in worst]
    order = (*left, *reversed(dropped))
    return Ranking("rfe", order, {name: float(len(order) - at) for at, name in enumerate(order)})


def by_permutation(sample: Sample) -> Ranking:
    """Shuffle a column of rows that did not train the model and look how much worse its answers become (Breiman 2001)."""
    rows, labels = sample.shown
    metric = "log_loss" if sample.task.classes else "rmse"
    rng = np.random.default_rng(sample.seed)
    repeats = 1 if len(sample.columns) > GREEDY else 3
    # Any model can be asked this, so it is always the user's own.
    model = sample.fitted if sample.trained[0] is sample.learner else sample.fit(sample.learner, sample.columns)
    before = score(sample.task, labels, model.scores(rows)).values[metric]
    worse = []
    for name in sample.columns:
        column, found = rows[name], []
        for _ in range(repeats):
            shuffled = column.take(rng.permutation(len(column))).set_axis(column.index)
            found.append(score(sample.task, labels, model.scores(rows.assign(**{name: shuffled}))).values[metric] - before)
        worse.append(float(np.mean(found)))
    return _ranked("permutation", sample.columns, worse)


def by_gain(sample: Sample) -> Ranking:
    """Add up what the splits on a column gained the model, or its weight times its spread in a linear one."""
    return _ranked("gain", sample.columns, sample.gains)


def by_shap(sample: Sample) -> Ranking:
    """Take the mean size of a column's SHAP values on rows that did not train the model (Lundberg & Lee 2017)."""
    try:
        found = attributions(sample.fitted, sample.shown[0])
    except Unexplained as why:
        logger.info("SHAP values are those of LightGBM in place of the model: %s", why)
        found = attributions(sample.fit(sample.explainable, sample.columns), sample.shown[0])
    return _ranked("shap", sample.columns, np.abs(found).mean(axis=(0, 1)))


def by_shap_test(sample: Sample) -> Ranking:
    """Rank by SHAP over several models, each trained beside a column of noise; significant is what beats the noise (powershap).

    As Verhaeghe et al. 2022, but that the test is a paired t test over the repeats, which five of them allow.
    """
    from scipy.stats import ttest_1samp

    rows, _ = sample.shown
    try:
        of = sources(sample.fitted, sample.rows)
        found = np.array([_beside_noise(sample, rows, of, at) for at in range(NOISE_REPEATS)])
    except Unexplained:
        trees = replace(sample, learner=sample.explainable)
        of = sources(trees.fitted, trees.rows)
        found = np.array([_beside_noise(trees, rows, of, at) for at in range(NOISE_REPEATS)])
    ahead = found[:, :-1] - found[:, -1:]
    # A column without any influence has no spread either.
    chance = np.ones(ahead.shape[1])
    spread = ahead.std(axis=0) > 0
    chance[spread] = ttest_1samp(ahead[:, spread], 0.0, axis=0, alternative="greater").pvalue
    ranked = _ranked("shap_test", sample.columns, found[:, :-1].mean(axis=0))
    sure = {name for name, p in zip(sample.columns, chance, strict=True) if p < NOISE_LEVEL}
    order = sorted(ranked.order, key=lambda name: name not in sure)
    return Ranking("shap_test", tuple(order), ranked.values, len(sure))


def _beside_noise(sample: Sample, rows: pd.DataFrame, of: npt.NDArray[np.int64], repeat: int) -> npt.NDArray[np.float64]:
    """Give the mean size of every column's SHAP values, and last that of a column of noise, which the same model was trained with."""
    from sklearn.base import clone

    rng = np.random.default_rng((sample.seed, repeat))
    last = clone(sample.fitted.last)
    if "random_state" in last.get_params(deep=False):
        last.set_params(random_state=int(rng.integers(2**31)))
    train, held = (_with_noise(encoded(sample.fitted, some), rng) for some in (sample.rows[~sample.held], rows))
    last.fit(train, sample.labels[~sample.held])
    found = raw_attributions(last, held)
    own = np.abs(gathered(found[:, :, :-1], of, len(sample.columns))).mean(axis=(0, 1))
    return np.append(own, np.abs(found[:, :, -1]).mean())


def _with_noise(given: Any, rng: np.random.Generator) -> Any:
    noise = rng.uniform(-1, 1, size=len(given))
    return given.assign(noise=noise) if isinstance(given, pd.DataFrame) else np.column_stack([given, noise])


def _ranked(method: str, columns: Sequence[str], values: Any) -> Ranking:
    given = np.nan_to_num(np.asarray(values, dtype=float))
    # Ties go by position, so that the order is the same everywhere.
    order = np.argsort(-given, kind="stable")
    return Ranking(method, tuple(columns[at] for at in order), {columns[at]: float(given[at]) for at in order})


# From cheap to dear, which is the order in which a time budget is spent.
METHODS: Mapping[str, Callable[[Sample], Ranking]] = {
    "gain": by_gain,
    "mutual_information": by_mutual_information,
    "shap": by_shap,
    "mrmr": by_mrmr,
    "permutation": by_permutation,
    "shap_test": by_shap_test,
    "rfe": by_rfe,
}
