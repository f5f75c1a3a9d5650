"""Train a model of trees again, smaller: larger steps, fewer rounds, fewer leaves in a tree, better leaves, and what that loses.

Five hundred small steps can often be sixty larger ones, and a tree of sixteen leaves instead of sixty-four costs a row two
decisions less in each. How far that goes is found on rows held out of the train and calibration parts; the model's own setting
is trained on the same rows, so that what is compared is the setting and not the rows.

Source: Friedman, "Greedy function approximation: a gradient boosting machine", 2001, on rounds against step size.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mlflow_opt.tables.cross_validation import fold_of
from mlflow_opt.tables.learners import Learner
from mlflow_opt.trees import leaf_refits
from mlflow_opt.trees.tree_pruning import MOST_ROWS, SMALLEST, Judged, Point, Ruler, rounds_curve, smallest

logger = logging.getLogger(__name__)

# Factors of the step size, and of the leaves of a tree, that a new training tries.
_FASTER, _SMALLER = (1.0, 2.0, 4.0, 8.0), (1.0, 0.5, 0.25, 0.125)
_LARGEST_RATE = 0.5
# Leaves that are learnt together win back so much at most; the prices at which they move.
_WON_BACK, _PRICES = 0.015, (30.0, 100.0)
_HELD_OUT_FOLDS = 5


@dataclass(frozen=True)
class Setting:
    """How a model is trained smaller: parameters of its estimator, how many rounds of it are kept, and about what a row then costs."""

    params: Mapping[str, Any]
    rounds: int
    cost: float


class Trained(NamedTuple):
    """A setting with all of its rounds, what it loses after ever fewer, and how good all of them are."""

    setting: Setting
    curve: list[Point]
    whole: Judged


@dataclass(frozen=True)
class Knobs:
    """What an estimator calls its number of rounds (or trees), its step size and the leaves of a tree; `""` if it has none."""

    rounds: str
    rate: str
    leaves: str


_KNOBS = {
    "LGBM": Knobs("n_estimators", "learning_rate", "num_leaves"),
    "HistGradientBoosting": Knobs("max_iter", "learning_rate", "max_leaf_nodes"),
    "GradientBoosting": Knobs("n_estimators", "learning_rate", "max_leaf_nodes"),
    "RandomForest": Knobs("n_estimators", "", "max_leaf_nodes"),
    "ExtraTrees": Knobs("n_estimators", "", "max_leaf_nodes"),
    "DecisionTree": Knobs("", "", "max_leaf_nodes"),
    "ExtraTree": Knobs("", "", "max_leaf_nodes"),
}


def knobs_of(learner: Learner) -> Knobs | None:
    """Name what makes an estimator smaller; None for one that is not known here."""
    found = next((knobs for kind, knobs in _KNOBS.items() if learner.kind.startswith(kind)), None)
    averages = learner.params().get("boosting_type") == "rf"
    return replace(found, rate="") if found and averages else found


def hold_out(rows: pd.DataFrame, labels: np.ndarray, ruler: Ruler) -> tuple[pd.DataFrame, np.ndarray, Ruler]:
    """Take a fifth of the train rows, and the rows of a ruler, to judge what is trained on the other four.

    Args:
        rows: of the train part; of more than 20,000 the first are used, which are a random sample.
        labels: shape (n,).
        ruler: with the calibration rows.
    """
    rows, labels = rows.iloc[:MOST_ROWS], labels[:MOST_ROWS]
    held = fold_of(rows, labels, ruler.task, _HELD_OUT_FOLDS) == 0
    judged = pd.concat([rows[held], ruler.rows], ignore_index=True)
    return rows[~held], labels[~held], replace(ruler, rows=judged, labels=np.concatenate([labels[held], ruler.labels]))


def trained_smaller(learner: Learner, rows: pd.DataFrame, labels: np.ndarray, ruler: Ruler, leaves: int) -> Iterator[Trained]:
    """Train a model with larger steps and smaller trees, and judge each training after ever fewer rounds.

    Args:
        learner: how the model is trained.
        rows: to train on.
        labels: shape (n,).
        ruler: rows that no training here sees.
        leaves: of a tree on average, where the parameters do not say.

    Yields:
        What came of a setting; the model's own first.
    """
    knobs = knobs_of(learner)
    if knobs is None:
        return
    reference: Judged | None = None
    for params in _params(learner.params(), knobs, leaves):
        fitted = learner.fit(rows, labels, params=params)
        whole = ruler.judge(fitted.scores(ruler.rows))
        reference = reference or whole
        curve = rounds_curve(fitted, ruler, reference) or [Point(1, whole.lost(reference))]
        logger.info(
            "%s: %s %.4f on held-out rows, trained in %.1f s.", params or "as it is", ruler.headline, whole.headline, fitted.seconds
        )
        rounds = int(curve[0].size)
        yield Trained(Setting(params, rounds, _cost(rounds, int(params.get(knobs.leaves, leaves)))), curve, whole)


def cheapest(settings: Sequence[Trained], allowed: float) -> Setting | None:
    """Choose the setting and the rounds that cost a row least among those that lose no more than is allowed.

    Args:
        settings: what `trained_smaller` gave; the first is the model's own.
        allowed: loss against the model's own setting.

    Returns:
        None if nothing is cheaper than the model as it is.
    """
    if not settings:
        return None
    own, found = settings[0].setting, []
    for setting, curve, _ in settings:
        rounds = int(smallest(curve, allowed))
        if next(point.lost for point in curve if point.size == rounds) <= allowed:
            found.append(_at(setting, rounds))
    best = min(found, key=lambda one: one.cost)
    return best if best.cost < own.cost else None


def worth_refining(settings: Sequence[Trained], allowed: float) -> list[Setting]:
    """List the settings and rounds that may lose little enough once their leaves are learnt together, the cheapest first.

    Args:
        settings: what `trained_smaller` gave.
        allowed: loss against the model's own setting.
    """
    points = sorted(
        ((_at(setting, int(point.size)), point.lost) for setting, curve, _ in settings for point in curve), key=lambda one: one[0].cost
    )
    found: list[Setting] = []
    least = allowed + _WON_BACK
    for setting, lost in points:
        # What costs more must lose less, or it is not worth its look.
        if lost <= least and setting.cost < settings[0].setting.cost:
            found.append(setting)
            least = lost
    return found


def refined_smaller(
    learner: Learner, rows: pd.DataFrame, labels: np.ndarray, ruler: Ruler, settings: Sequence[Trained], allowed: Sequence[float]
) -> list[tuple[Setting, float]]:
    """Find the cheapest settings that lose little enough once their leaves are learnt together, by halving a list of promising ones.

    Args:
        learner: how the model is trained.
        rows: that `trained_smaller` trained on.
        labels: shape (n,).
        ruler: its rows, that no training here sees.
        settings: what it gave.
        allowed: losses against the model's own setting, the largest first.

    Returns:
        For each loss that one keeps to, a setting and the price of moving its leaves; a setting once.
    """
    promising = worth_refining(settings, allowed[0]) if leaf_refits.can_be_refined(learner) else []
    looked: dict[int, tuple[float, float]] = {}

    def holds(most: float, at: int) -> bool:
        if at not in looked:
            looked[at] = _refined_loss(learner, promising[at], rows, labels, ruler, settings[0].whole)
        return looked[at][0] <= most

    places = [bisect.bisect_left(range(len(promising)), True, key=partial(holds, most)) for most in allowed]
    return [(promising[at], looked[at][1]) for at in dict.fromkeys(places) if at < len(promising)]


def _refined_loss(
    learner: Learner, setting: Setting, rows: pd.DataFrame, labels: np.ndarray, ruler: Ruler, whole: Judged
) -> tuple[float, float]:
    """Train a setting, learn its leaves together at each price, and give the least loss with its price."""
    fitted = learner.fit(rows, labels, params=params_of(learner, setting) | leaf_refits.subsampled(learner.params()))
    answers = {price: leaf_refits.refined(fitted, rows, labels, ruler.task, price).scores(ruler.rows) for price in _PRICES}
    found = min((ruler.judge(scores).lost(whole), price) for price, scores in answers.items())
    logger.info("Leaves of %d rounds %s learnt together: %+.4f at one standard error.", setting.rounds, dict(setting.params), found[0])
    return found


def params_of(learner: Learner, setting: Setting) -> dict[str, Any]:
    """Give the parameters that train a setting with just its rounds."""
    knobs = knobs_of(learner)
    return {**setting.params, **({knobs.rounds: setting.rounds} if knobs and knobs.rounds else {})}


def _at(setting: Setting, rounds: int) -> Setting:
    return replace(setting, rounds=rounds, cost=setting.cost * rounds / setting.rounds)


def _params(own: Mapping[str, Any], knobs: Knobs, leaves: int) -> Iterator[dict[str, Any]]:
    given = own.get(knobs.leaves)
    most = int(given) if given else leaves
    rate = float(own.get(knobs.rate) or 0.1) if knobs.rate else 0.0
    rounds = int(own.get(knobs.rounds) or 100) if knobs.rounds else 1
    yield {}
    for faster in _FASTER if knobs.rate else (1.0,):
        if faster > 1 and rate * faster > _LARGEST_RATE:
            continue
        for smaller in _SMALLER:
            if (faster, smaller) == (1.0, 1.0) or most * smaller < SMALLEST:
                continue
            made: dict[str, Any] = {knobs.leaves: round(most * smaller)}
            made |= {knobs.rate: rate * faster, knobs.rounds: max(1, math.ceil(rounds / faster))} if knobs.rate else {}
            yield made


def _cost(rounds: int, leaves: int) -> float:
    """Estimate what a row costs: the decisions that it passes in balanced trees, and one for going to a tree at all."""
    return rounds * (1 + math.log2(max(leaves, 2)))
