"""Score parameters by cross-validation on train rows alone: what a search of a table's model tries again and again.

Every trial sees the same folds, so trials are compared row by row. A fold's own rows only score; when a boosting model
stops is told by the calibration rows, or the score would be flattered by the rows that chose its number of trees. Equal
rows share a fold. Selection and gate rows are not here at all.

Reference: Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation and model selection".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt import metrics
from mlflow_opt.measurement.own_metrics import OwnMetric
from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Task
from mlflow_opt.rows import splits
from mlflow_opt.rows.batches import row_hashes, take
from mlflow_opt.tables.learners import Fitted, Learner

# Rounds without a better loss that a boosting model waits: more where a round changes less.
LEAST_PATIENCE, MOST_PATIENCE = 30, 200


@dataclass(frozen=True)
class Folds:
    """Train rows in folds, and the rows that tell a boosting model when to stop.

    Args:
        rows: of the train part.
        labels: shape (n,).
        fold: number of the fold of each row, shape (n,).
        valid: calibration rows and labels.
        task: what is predicted.
        own: the user's own metrics.
    """

    rows: pd.DataFrame
    labels: np.ndarray
    fold: np.ndarray
    valid: tuple[pd.DataFrame, np.ndarray]
    task: Task
    own: tuple[OwnMetric, ...] = ()

    @property
    def count(self) -> int:
        """Count the folds."""
        return int(self.fold.max()) + 1


@dataclass(frozen=True)
class FoldScore:
    """What one fold said: quality metrics, seconds of training, rounds that a boosting model kept (0 for others), the model."""

    values: Mapping[str, float]
    seconds: float
    rounds: int
    fitted: Fitted


def fold_of(rows: pd.DataFrame, labels: np.ndarray, task: Task, folds: int) -> np.ndarray:
    """Number the fold of every row: stratified, equal rows together, the same whatever the seed and the order of rows.

    Example:
        >>> rows = pd.DataFrame({"a": range(100)})
        >>> np.bincount(fold_of(rows, np.arange(100) % 2, Task("binary", (0, 1)), 5)).tolist()
        [20, 20, 20, 20, 20]

    Args:
        rows: train rows.
        labels: shape (n,).
        task: its classes are spread evenly.
        folds: how many are wanted; a rare class makes them fewer, since each must hold two of its rows.

    Raises:
        ValueError: a class has too few rows for two folds, or fewer than two folds are wanted.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}; 5 is usual, 3 is faster.")
    strata = np.searchsorted(np.array(task.classes), labels) if task.classes else np.zeros(len(labels), dtype=np.int64)
    rarest = int(np.bincount(strata).min()) if task.classes else len(labels)
    made = min(folds, rarest // splits.CLASS_ROWS)
    if made < 2:
        raise ValueError(
            f"cross-validation needs at least {2 * splits.CLASS_ROWS} train rows of each class, got {rarest}; "
            "give more rows, or merge rare classes."
        )
    # The last fold is what the others leave over.
    shares = {str(number): 1 / made for number in range(made - 1)}
    names = splits.assign(row_hashes(rows), strata, shares)
    return np.where(names == splits.TRAIN, str(made - 1), names).astype(np.int64)


def score_fold(learner: Learner, params: Mapping[str, Any], folds: Folds, number: int) -> FoldScore:
    """Train on all folds but one and score that one.

    Args:
        learner: how the model is trained.
        params: of the estimator that predicts.
        folds: the rows.
        number: of the fold that scores.

    Raises:
        ValueError: the estimator refuses the parameters, or its answers cannot be scored.
    """
    held = folds.fold == number
    started = time.perf_counter()
    fitted = learner.fit(
        _table(take(folds.rows, ~held)), folds.labels[~held], params=params, valid=folds.valid, patience=patience(learner, params)
    )
    seconds = time.perf_counter() - started
    scored = score(folds.task, folds.labels[held], fitted.scores(_table(take(folds.rows, held))), folds.own, fitted.threshold)
    return FoldScore(scored.values, seconds, rounds_of(fitted), fitted)


def patience(learner: Learner, params: Mapping[str, Any]) -> int:
    """Give the rounds without a better loss after which a boosting model stops: more where it learns in small steps."""
    rate = float({**learner.params(), **params}.get("learning_rate") or 0.1)
    return round(min(MOST_PATIENCE, max(LEAST_PATIENCE, 3 / rate)))


def rounds_of(fitted: Fitted) -> int:
    """Give the rounds that a boosting model kept when it stopped, 0 for any other model."""
    found = getattr(fitted.last, "best_iteration_", None) or _best_of_xgboost(fitted.last)
    return int(found or 0)


def means(scores: list[FoldScore], headline: str) -> dict[str, float]:
    """Average what folds said, with the spread of the headline between them.

    Args:
        scores: of one trial.
        headline: the metric that the search looks at.
    """
    names = set.intersection(*(set(one.values) for one in scores))
    found = {name: float(np.mean([one.values[name] for one in scores])) for name in sorted(names)}
    found[f"{headline}_spread"] = float(np.std([one.values[headline] for one in scores]))
    found |= {"train_seconds": sum(one.seconds for one in scores), "folds": float(len(scores))}
    rounds = [one.rounds for one in scores]
    return found | ({"rounds": float(round(np.mean(rounds)))} if all(rounds) else {})


def direction(headline: str) -> str:
    """Say which way a metric is better, in Optuna's words."""
    return "maximize" if metrics.larger_is_better(headline) else "minimize"


Timer = Callable[[Fitted], Mapping[str, float]]


def _best_of_xgboost(estimator: Any) -> int:
    # XGBoost counts from 0, and raises where it did not stop early.
    if not type(estimator).__name__.startswith("XGB") or not estimator.get_params().get("early_stopping_rounds"):
        return 0
    return int(estimator.best_iteration) + 1


def _table(rows: Any) -> pd.DataFrame:
    if not isinstance(rows, pd.DataFrame):
        raise TypeError("cross-validation takes tables, the data are arrays.")
    return rows
