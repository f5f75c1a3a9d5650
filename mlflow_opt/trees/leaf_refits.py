"""Learn all leaves of a trained LightGBM model anew, together: the trees keep their decisions, the answers get better.

Boosting sets the leaves of a tree once and never looks back, which many small steps forgive and few large ones do not. Learnt
together, the leaves of sixty trees make up for most of what five hundred small steps had: at no cost for a row, since nothing
but numbers change. Every leaf is held near its boosted value by a price, or few rows would decide what it says.

Helps models cut to few rounds and trained on a part of the rows a round (Friedman 2002), whose trees differ. Does little for
hundreds of small steps.

Source: Ren, Cao, Wei, Sun, "Global refinement of random forest", 2015, which starts from zero and also prunes by the result;
here the leaves start from, and are held to, what boosting gave them. Friedman, "Stochastic gradient boosting", 2002.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Fitted, Learner, last_of, typed

Floats = npt.NDArray[np.float64]

# Beyond this the leaves change in digits that no metric shows.
_STEPS = 60
_OBJECTIVES = (None, "binary", "multiclass", "regression", "regression_l2", "l2", "mse")
# With these the labels' plain loss is not what the model was trained on.
_WEIGHING = ("scale_pos_weight", "is_unbalance", "pos_bagging_fraction", "neg_bagging_fraction", "sigmoid", "reg_sqrt")


def can_be_refined(learner: Learner) -> bool:
    """Tell whether a learner's leaves add up to log-odds or values that were learnt from the plain labels."""
    if not learner.kind.startswith("LGBM"):
        return False
    own = learner.params()
    plain = own.get("objective") in _OBJECTIVES and own.get("boosting_type", "gbdt") in ("gbdt", "goss") and not own.get("linear_tree")
    return plain and own.get("class_weight") is None and not set(_WEIGHING) & set(own)


def refined(fitted: Fitted, rows: pd.DataFrame, labels: npt.NDArray[Any], task: Task, price: float) -> Fitted:
    """Copy a trained LightGBM model with leaves that were learnt together.

    Args:
        fitted: it is left as it is.
        rows: the rows that it was trained on; all of them, or the leaves would forget the others.
        labels: shape (n,).
        task: what is predicted.
        price: of moving a leaf by one, squared, in units of a row's loss; large prices change little.
    """
    made = replace(fitted, estimator=copy.deepcopy(fitted.estimator))
    last, given = last_of(made.estimator), typed(rows, made.columns, made.categories)
    booster = last.booster_
    entered = made.estimator[:-1].transform(given) if hasattr(made.estimator, "steps") else given
    leaves = np.asarray(booster.predict(entered, pred_leaf=True), dtype=np.int64).reshape(len(rows), -1)
    raw = np.asarray(booster.predict(entered, raw_score=True), dtype=float).reshape(len(rows), -1)
    lesson = _lesson(leaves, raw, labels, task, last)
    moved = _moves(lesson, price)
    for tree, begin in enumerate(lesson.first):
        for leaf in np.unique(leaves[:, tree]).tolist():
            booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) + float(moved[begin + leaf]))
    return made


def subsampled(own: Mapping[str, Any]) -> dict[str, Any]:
    """Give the parameters of a training whose trees differ enough to be worth refining: each round sees half of the rows."""
    return {} if own.get("subsample_freq") or own.get("boosting_type") == "goss" else {"subsample": 0.5, "subsample_freq": 1}


@dataclass(frozen=True)
class _Lesson:
    """What the leaves are learnt from.

    Args:
        places: number of the leaf that each row reached in each tree, counted over all trees; shape (n, trees).
        first: number of each tree's first leaf.
        raw: sum of the leaves now, shape (n, columns).
        truth: shape (n, columns): classes as 0 and 1, or targets.
        classifies: whether the raw sums are log-odds.
        scale: squared unit of a target, 1 for classes.
    """

    places: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    raw: Floats
    truth: Floats
    classifies: bool
    scale: float


def _lesson(leaves: npt.NDArray[np.int64], raw: Floats, labels: npt.NDArray[Any], task: Task, last: Any) -> _Lesson:
    first = np.concatenate([[0], np.cumsum(leaves.max(axis=0) + 1)[:-1]])
    if not task.classes:
        truth = np.asarray(labels, dtype=float)[:, None]
        return _Lesson(leaves + first, first, raw, truth, False, float(truth.var()) or 1.0)
    known = np.asarray(labels)[:, None] == np.asarray(last.classes_)[None, :]
    return _Lesson(leaves + first, first, raw, known[:, 1:] if raw.shape[1] == 1 else known, True, 1.0)


def _moves(lesson: _Lesson, price: float) -> Floats:
    """Find how far each leaf moves: the least sum of the rows' losses and of the price of moving."""
    from scipy.optimize import minimize

    count, columns = int(lesson.places.max()) + 1, lesson.raw.shape[1]

    def loss(moves: Floats) -> tuple[float, Floats]:
        sums = lesson.raw.copy()
        for column in range(columns):
            sums[:, column] += moves[lesson.places[:, column::columns]].sum(axis=1)
        total, slope = _loss(sums, lesson)
        pull = np.zeros(count)
        for column in range(columns):
            mine = lesson.places[:, column::columns]
            pull += np.bincount(mine.ravel(), weights=np.repeat(slope[:, column], mine.shape[1]), minlength=count)
        return total + 0.5 * price * float(moves @ moves) / lesson.scale, pull + price * moves / lesson.scale

    return np.asarray(minimize(loss, np.zeros(count), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x)


def _loss(sums: Floats, lesson: _Lesson) -> tuple[float, Floats]:
    """Give the rows' loss and its slope in each sum."""
    if not lesson.classifies:
        off = sums - lesson.truth
        return 0.5 * float((off**2).sum()) / lesson.scale, off / lesson.scale
    if sums.shape[1] == 1:
        chance = 1 / (1 + np.exp(-sums))
        return float((np.logaddexp(0, sums) - lesson.truth * sums).sum()), chance - lesson.truth
    sums = sums - sums.max(axis=1, keepdims=True)
    powers = np.exp(sums)
    whole = powers.sum(axis=1, keepdims=True)
    return float((np.log(whole[:, 0]) - (lesson.truth * sums).sum(axis=1)).sum()), powers / whole - lesson.truth
