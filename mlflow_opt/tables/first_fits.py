"""Train a table's first models, and learn on rows that did not train them where boosting stops and where a class begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt.data import Part
from mlflow_opt.records import Task
from mlflow_opt.tables import thresholds
from mlflow_opt.tables.learners import Fitted, Learner, with_threshold
from mlflow_opt.tables.table_audit import Audit
from mlflow_opt.tables.table_models import linear_pipeline, tree_pipeline, trees

logger = logging.getLogger(__name__)

# With so many calibration rows they say where to stop; fewer, and cross-validation on train rows says it better.
ENOUGH_ROWS = 2000
FOLDS = 5
MOST_ROUNDS, PATIENCE, PROBE_ROUNDS = 1000, 50, 20
RATE = 0.05
# Of a linear model, when there is a time budget: more rows change its weights in the third digit.
LINEAR_ROWS = 20_000


@dataclass(frozen=True)
class HeldOut:
    """What a model answers on rows that did not train it.

    Args:
        labels: shape (n,).
        scores: shape (n, classes) or (n,).
        how: which rows, in words.
    """

    labels: npt.NDArray[Any]
    scores: npt.NDArray[np.float64]
    how: str


@dataclass(frozen=True)
class First:
    """A first model and what it answers on rows that did not train it, None where there was no time for them."""

    fitted: Fitted
    held: HeldOut | None


def linear_learner(rows: pd.DataFrame, task: Task, audit: Audit) -> Learner:
    """Make the linear model's learner; it does without columns that say nothing or hold infinite values, and still takes them."""
    return Learner(linear_pipeline(rows, task, {*audit.useless, *audit.infinite}), tuple(map(str, rows.columns)))


def tree_learner(rows: pd.DataFrame, task: Task, audit: Audit, seed: int) -> Learner:
    """Make the trees' learner; it does without columns that say nothing, and still takes them."""
    estimator = trees(task, seed, {"n_estimators": MOST_ROUNDS, "learning_rate": RATE})
    return Learner(tree_pipeline(rows, task, estimator, audit.useless), tuple(map(str, rows.columns)))


def fit_linear(learner: Learner, train: Part, task: Task, seed: int, *, held: bool, time_budget_s: float) -> First:
    """Train a linear model, and if asked its answers on held-out rows by cross-validation.

    Args:
        learner: of the model.
        train: rows and labels.
        task: what is predicted.
        seed: of the folds.
        held: whether to cross-validate.
        time_budget_s: above 0 it trains on 20,000 rows at most.
    """
    rows, labels = pd.DataFrame(train.rows), train.labels
    some = LINEAR_ROWS if time_budget_s else len(labels)
    # Rows are in the order of their hashes, so the first ones are a random sample.
    rows, labels = rows.head(some), labels[:some]
    fitted = learner.fit(rows, labels)
    if not held:
        return First(fitted, None)
    made = [(learner.fit(rows.iloc[fit], labels[fit]), judge) for fit, judge in _folds(labels, task, seed)]
    return First(fitted, _out_of_fold(made, rows, labels))


def fit_trees(learner: Learner, train: Part, calibration: Part, task: Task, seed: int, time_budget_s: float) -> First:
    """Train trees with as many rounds as other rows ask for.

    Where calibration rows are many they stop the boosting; else the rounds are the mean over a cross-validation of the train
    rows, on which the final model is then trained whole: 350 rows stop boosting at random.

    Args:
        learner: of the trees, with the most rounds allowed.
        train: rows and labels.
        calibration: rows and labels that train nothing.
        task: what is predicted.
        seed: of the folds.
        time_budget_s: that training may take; 0 for no limit.
    """
    rows, held = pd.DataFrame(train.rows), pd.DataFrame(calibration.rows)
    valid = (held, calibration.labels)
    most = affordable(lambda rounds: learner.fit(rows, train.labels, params={"n_estimators": rounds}), time_budget_s)
    if len(calibration.labels) >= ENOUGH_ROWS or most < MOST_ROUNDS:
        fitted = learner.fit(rows, train.labels, params={"n_estimators": most}, valid=valid, patience=PATIENCE)
        return First(fitted, HeldOut(calibration.labels, fitted.scores(held), f"{len(calibration.labels)} calibration rows"))
    made = []
    for fit, judge in _folds(train.labels, task, seed):
        stop = (rows.iloc[judge], train.labels[judge])
        made.append((learner.fit(rows.iloc[fit], train.labels[fit], valid=stop, patience=PATIENCE), judge))
    rounds = max(1, round(float(np.mean([fitted.last.best_iteration_ for fitted, _ in made]))))
    logger.info("LightGBM: %d rounds, the mean of %d folds.", rounds, len(made))
    return First(learner.fit(rows, train.labels, params={"n_estimators": rounds}), _out_of_fold(made, rows, train.labels))


def affordable(fit: Callable[[int], Fitted], time_budget_s: float) -> int:
    """Say how many rounds fit into a time, from a few that are trained to see; `MOST_ROUNDS` if all do, folds included."""
    if not time_budget_s:
        return MOST_ROUNDS
    started = time.monotonic()
    each = fit(PROBE_ROUNDS).seconds / PROBE_ROUNDS
    left = time_budget_s - (time.monotonic() - started)
    rounds = int(left / max(each, 1e-9))
    return MOST_ROUNDS if rounds >= MOST_ROUNDS * (FOLDS + 1) else max(PROBE_ROUNDS, min(rounds, MOST_ROUNDS - 1))


def thresholded(first: First, task: Task, seed: int) -> Fitted:
    """Give a binary model the threshold that is best for F1 on the rows held out.

    The selection rows, which report the gain, have no part in it: a threshold chosen on them would be paid with a gain that
    other rows do not give.

    Raises:
        ValueError: nothing was held out.
    """
    if first.held is None:
        raise ValueError("a threshold needs answers on rows that did not train the model; give more time.")
    threshold = thresholds.best_threshold(first.held.labels == task.positive, first.held.scores[:, 1], seed)
    return replace(first.fitted, estimator=with_threshold(first.fitted.estimator, threshold), threshold=threshold)


def constant_scores(labels: npt.NDArray[Any], task: Task, rows: int) -> npt.NDArray[np.float64]:
    """Answer every row with the classes' shares, or with the mean: what any model must beat."""
    if not task.classes:
        return np.full(rows, float(labels.mean()))
    shares = np.array([float((labels == one).mean()) for one in task.classes])
    return np.tile(shares, (rows, 1))


def unseen(train: pd.DataFrame, other: pd.DataFrame) -> Mapping[str, int]:
    """Count the rows of another part whose text value no train row has, by column."""
    texts = [name for name in train if train[name].dtype.kind not in "biufmM"]
    counts = {str(name): int((~other[name].isin(train[name].unique()) & other[name].notna()).sum()) for name in texts}
    return {name: count for name, count in counts.items() if count}


def _folds(labels: npt.NDArray[Any], task: Task, seed: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    rarest = int(np.unique(labels, return_counts=True)[1].min()) if task.classes else FOLDS
    kind = StratifiedKFold if task.classes else KFold
    yield from kind(max(2, min(FOLDS, rarest)), shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)


def _out_of_fold(made: list[tuple[Fitted, npt.NDArray[np.int64]]], rows: pd.DataFrame, labels: npt.NDArray[Any]) -> HeldOut:
    index = np.concatenate([judge for _, judge in made])
    scores = np.concatenate([fitted.scores(rows.iloc[judge]) for fitted, judge in made])
    return HeldOut(labels[index], scores, f"{len(index)} train rows, each answered by a model that was not trained on it")
