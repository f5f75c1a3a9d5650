"""Find how few columns do: each ranking's first columns, trained on some rows and judged on others that no ranking saw.

A ranking that has seen the rows which judge it looks better than it is (Ambroise & McLachlan 2002), so every fold ranks anew
on its own train rows. What a set loses is measured against the same model with all columns on the same rows, as a paired
difference with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt import measure
from mlflow_opt.features import feature_ranking
from mlflow_opt.features.feature_ranking import Ranking
from mlflow_opt.features.feature_samples import SCREENED, Sample, several_threads
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.influence import pull
from mlflow_opt.records import Policy, Quantity, Task
from mlflow_opt.tables.learners import Learner

# Rows that train and rows that judge a set, at most; a finalist is trained on all.
TRAIN_ROWS, JUDGE_ROWS = 30_000, 30_000
# Rows that a ranking looks at.
RANK_ROWS = 20_000
# With so many rows that judge, one fold says enough.
ENOUGH_ROWS = 10_000
# Metrics whose value is a count of a few rows: no interval of a mean fits them.
_WITHOUT_INTERVAL = ("precision_at_k",)


@dataclass(frozen=True)
class Table:
    """Train rows to search on, and how a model is trained on them.

    Args:
        learner: the user's.
        rows: train rows, index 0..n-1.
        labels: shape (n,).
        task: what is predicted.
        columns: that may be kept.
        always: of these, the ones that must be.
        seed: every random choice derives from it.
    """

    learner: Learner
    rows: pd.DataFrame
    labels: npt.NDArray[Any]
    task: Task
    columns: tuple[str, ...]
    always: tuple[str, ...] = ()
    seed: int = 0

    def sample(self, index: npt.NDArray[np.int64]) -> Sample:
        """Give rows to rank on: the first 20,000 of an index, which is in random order."""
        some = index[:RANK_ROWS]
        return Sample(self.learner, self.rows.iloc[some], self.labels[some], self.task, self.columns, self.seed)

    def first(self, ranking: Ranking, size: int) -> tuple[str, ...]:
        """Give a ranking's first columns, those that must be kept among them, in the table's order."""
        order = [*self.always, *(name for name in ranking.order if name not in self.always)]
        chosen = set(order[: max(size, len(self.always))])
        return tuple(name for name in self.columns if name in chosen)


@dataclass
class Fold:
    """Rows that train, rows that judge, and what was found on them so far.

    Args:
        train: index of rows.
        judge: index of other rows.
        sample: the rows that rank, once they are asked for.
        scored: set of columns -> answers to the judging rows, and the seconds that training took.
    """

    train: npt.NDArray[np.int64]
    judge: npt.NDArray[np.int64]
    sample: Sample | None = None
    scored: dict[tuple[str, ...], tuple[scoring.Scored, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What so many columns by one ranking lose against all columns.

    Args:
        method: that ranked.
        size: columns kept.
        drops: `drop_Q` and `rel_drop_Q` of every quality metric Q, positive is worse.
        values: the metrics themselves.
        seconds: that training took, mean of the folds.
        full_seconds: the same with all columns.
    """

    method: str
    size: int
    drops: Mapping[str, Quantity]
    values: Mapping[str, float]
    seconds: float
    full_seconds: float

    @property
    def name(self) -> str:
        """Name it as a child run is named."""
        return f"{self.method}_{self.size}"

    def within(self, bounds: Mapping[str, float]) -> bool:
        """Tell whether every drop's interval ends below its bound, and its value below half of it.

        The smallest of many sets is one that these rows flatter, and the verdict adds the uncertainty of others: a set that uses all
        of what is allowed here seldom passes there.
        """
        known = [(self.drops[name], bound) for name, bound in bounds.items() if name in self.drops]
        return all(drop.hi <= bound and drop.value <= bound / 2 for drop, bound in known)


def bounds_of(policy: Policy, headline: str) -> dict[str, float]:
    """Give the largest losses that a policy allows on all rows, the headline's 0.01 if it names none.

    Example:
        >>> from mlflow_opt.policy import default_policy
        >>> bounds_of(default_policy("regression"), "r2")
        {'rel_drop_rmse': 0.02}
    """
    found: dict[str, float] = {}
    for one in policy.criteria:
        if one.side == "max" and "drop_" in one.quantity and "/" not in one.quantity:
            found[one.quantity] = min(one.bound, found.get(one.quantity, math.inf))
    return found or {f"drop_{headline}": 0.01}


def sizes_for(columns: int, most: int = SCREENED) -> list[int]:
    """List the numbers of columns worth trying, largest first: closer together where there are few.

    Example:
        >>> sizes_for(19), sizes_for(1500)
        ([13, 9, 6, 4, 2, 1], [300, 150, 75, 37, 18, 9, 4, 2])
    """
    share = 0.7 if columns <= 60 else 0.5
    size = most if columns > most else int(columns * share)
    found: list[int] = []
    while size >= 1 and len(found) < 8:
        found.append(size)
        size = min(int(size * share), size - 1)
    return found


def folds_of(labels: npt.NDArray[Any], task: Task, count: int, seed: int) -> list[Fold]:
    """Cut train rows into folds; one fold of 30,000 rows at most to train and to judge where there are many."""
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = StratifiedKFold if task.classes else KFold
    rng = np.random.default_rng(seed)
    found = []
    for train, judge in kind(count, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels):
        found.append(Fold(rng.permutation(train)[:TRAIN_ROWS], rng.permutation(judge)[:JUDGE_ROWS]))
        if len(judge) >= ENOUGH_ROWS:
            break
    return found


def ranked(table: Table, fold: Fold, method: str) -> Ranking:
    """Rank the columns on a fold's train rows."""
    if fold.sample is None:
        fold.sample = table.sample(fold.train)
    return feature_ranking.rank(fold.sample, method)


def tried(table: Table, folds: Sequence[Fold], rankings: Sequence[Ranking], size: int, level: float) -> Trial:
    """Train on each ranking's first columns and judge.

    Args:
        table: the rows.
        folds: of them.
        rankings: one a fold.
        size: columns to keep.
        level: two-sided confidence of the intervals.
    """
    pairs, seconds, full = [], [], []
    for fold, ranking in zip(folds, rankings, strict=True):
        ours, theirs = (answered(table, fold, columns) for columns in (table.first(ranking, size), table.columns))
        pairs.append((ours[0], theirs[0]))
        seconds.append(ours[1])
        full.append(theirs[1])
    names = [name for name in pairs[0][0].values if all(name in one.values for pair in pairs for one in pair)]
    rows = np.array([len(ours.labels) for ours, _ in pairs], dtype=float)
    drops: dict[str, Quantity] = {}
    for name in names:
        drops |= _drops(name, pairs, rows / rows.sum(), level)
    values = {name: float(np.average([ours.values[name] for ours, _ in pairs], weights=rows)) for name in names}
    return Trial(rankings[0].method, size, drops, values, float(np.mean(seconds)), float(np.mean(full)))


def answered(table: Table, fold: Fold, columns: tuple[str, ...]) -> tuple[scoring.Scored, float]:
    """Train on a fold's train rows and answer its judging rows, once for each set of columns."""
    if columns not in fold.scored:
        params = several_threads(table.learner, len(fold.train), len(columns))
        made = table.learner.fit(table.rows.iloc[fold.train], table.labels[fold.train], columns=columns, params=params)
        answers = made.scores(table.rows.iloc[fold.judge])
        scored = scoring.score(table.task, table.labels[fold.judge], answers, threshold=made.threshold)
        fold.scored[columns] = scored, made.seconds
    return fold.scored[columns]


def smallest(trials: Sequence[Trial], bounds: Mapping[str, float], headline: str) -> Trial | None:
    """Choose the fewest columns whose loss is within the bounds with its whole interval, the better of equals; None if none is."""
    good = [trial for trial in trials if trial.within(bounds)]
    return min(good, key=lambda trial: (trial.size, trial.drops[f"drop_{headline}"].value), default=None)


def best(trials: Sequence[Trial], headline: str) -> Trial:
    """Choose the columns that lose least, the fewer of equals."""
    return min(trials, key=lambda trial: (round(trial.drops[f"drop_{headline}"].value, 5), trial.size))


def stability(sets: Sequence[Sequence[str]], columns: int) -> float:
    """Say how alike the sets are that resamples of the rows lead to: 1 if equal, 0 as chance would have it.

    Nogueira, Sechidis & Brown 2018, "On the stability of feature selection algorithms": the only index of those in use that is
    corrected for chance and for sets of several sizes.

    Example:
        >>> round(stability([("a", "b"), ("a", "b"), ("a", "c")], 10), 3)
        0.583

    Args:
        sets: two or more.
        columns: that could have been chosen.
    """
    shares = pd.Series([name for one in sets for name in set(one)]).value_counts().to_numpy() / len(sets)
    mean = sum(len(set(one)) for one in sets) / len(sets) / columns
    if mean in (0.0, 1.0):
        return 1.0
    spread = float((shares * (1 - shares)).sum()) * len(sets) / (len(sets) - 1) / columns
    return 1 - spread / (mean * (1 - mean))


def _drops(
    name: str, pairs: Sequence[tuple[scoring.Scored, scoring.Scored]], weights: npt.NDArray[np.float64], level: float
) -> dict[str, Quantity]:
    drops = np.array([measure.drop(ours, theirs, name) for ours, theirs in pairs])
    drop, scale = float(weights @ drops), abs(float(weights @ np.array([theirs.values[name] for _, theirs in pairs])))
    rows = sum(len(ours.labels) for ours, _ in pairs)
    if name in _WITHOUT_INTERVAL:
        return {f"drop_{name}": Quantity(drop, drop, drop, rows)}
    pulls = [pull(name, ours) - pull(name, theirs) for ours, theirs in pairs]
    spread = math.sqrt(sum(w**2 * float(one.var()) / len(one) for w, one in zip(weights, pulls, strict=True)))
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    found = {f"drop_{name}": Quantity(drop, drop - reach, drop + reach, rows)}
    if scale:
        found[f"rel_drop_{name}"] = Quantity(drop / scale, (drop - reach) / scale, (drop + reach) / scale, rows)
    return found
