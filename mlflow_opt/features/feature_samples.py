"""Rows to rank a table's columns on, and what several ways of ranking look at: a rough model, its gains, the columns as codes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt.features.attributions import Unexplained, importance
from mlflow_opt.records import Task
from mlflow_opt.tables import column_codes
from mlflow_opt.tables.learners import Fitted, Learner
from mlflow_opt.tables.table_models import default_pipeline

logger = logging.getLogger(__name__)

# A ranking model is a rougher one of the same kind: the order of the columns settles long before the last digit of the quality.
RANKING_TREES, RANKING_RATE = 100, 0.1
# From so many columns on the trees look at a part of them each, in coarser bins; and beyond this only the most promising are ranked.
WIDE, SCREENED = 200, 300
HELD_SHARE = 0.3
# LightGBM's answers are the same with any number of threads, and on small tables more threads only wait for each other.
MANY_CELLS = 1_000_000
# Rows that SHAP values and permutations are taken on.
EXPLAINED_ROWS = 1000


@dataclass(frozen=True)
class Sample:
    """Rows to rank columns on; the model that several methods look at is trained once.

    Args:
        learner: the user's.
        rows: train rows; a bootstrap sample may hold a row several times.
        labels: shape (n,).
        task: what is predicted.
        columns: to rank.
        seed: of the inner split, the model and the permutations.
    """

    learner: Learner
    rows: pd.DataFrame
    labels: npt.NDArray[Any]
    task: Task
    columns: tuple[str, ...]
    seed: int = 0

    @cached_property
    def held(self) -> npt.NDArray[np.bool_]:
        """Mark the rows that explain the model and do not train it; copies of a row, which share its index, stay together."""
        ids = np.unique(self.rows.index.to_numpy())
        chosen = np.random.default_rng(self.seed).permutation(ids)[: max(1, round(HELD_SHARE * len(ids)))]
        return np.asarray(np.isin(self.rows.index.to_numpy(), chosen))

    @property
    def shown(self) -> tuple[pd.DataFrame, npt.NDArray[Any]]:
        """Return the held rows that explain the model, with their labels."""
        return self.rows[self.held].head(EXPLAINED_ROWS), self.labels[self.held][:EXPLAINED_ROWS]

    @cached_property
    def trained(self) -> tuple[Learner, Fitted]:
        """The learner that ranks, and its model on all columns: the user's own, or trees where that cannot be explained."""
        made = self.fit(self.learner, self.columns)
        try:
            importance(made, self.rows)
        except Unexplained as why:
            logger.info("Columns are ranked with LightGBM in place of the model: %s", why)
            return self.explainable, self.fit(self.explainable, self.columns)
        return self.learner, made

    @property
    def fitted(self) -> Fitted:
        """Return the model that ranks."""
        return self.trained[1]

    @cached_property
    def explainable(self) -> Learner:
        """A learner of trees for the same table."""
        return Learner(default_pipeline(self.rows[list(self.columns)], self.task, self.seed), self.columns)

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """The columns as codes."""
        return column_codes.coded(self.rows[list(self.columns)], self.labels, self.task)

    @cached_property
    def gains(self) -> npt.NDArray[np.float64]:
        """What the ranking model gained from each column."""
        return importance(self.fitted, self.rows)

    @cached_property
    def relevance(self) -> npt.NDArray[np.float64]:
        """How much each column alone says about the target, in nats."""
        target = column_codes.target_codes(self.labels, self.task)
        return np.array([column_codes.information(column, target) for column in self.codes.T])

    @cached_property
    def promising(self) -> Sample:
        """The same rows with the columns that gain or mutual information puts first, half of them by each; itself if there are few.

        Loses a column that is worth something only together with others that are screened out as well.
        """
        if len(self.columns) <= SCREENED:
            return self
        orders = (np.argsort(-values, kind="stable").tolist() for values in (self.gains, self.relevance))
        kept = set(list(dict.fromkeys(at for pair in zip(*orders, strict=True) for at in pair))[:SCREENED])
        return replace(self, columns=tuple(name for at, name in enumerate(self.columns) if at in kept))

    def fit(self, learner: Learner, columns: Sequence[str]) -> Fitted:
        """Train a rough model on the rows that are not held."""
        params = rough(learner, len(columns)) | several_threads(learner, len(self.rows), len(columns))
        return learner.fit(self.rows[~self.held], self.labels[~self.held], columns=columns, params=params)


def rough(learner: Learner, columns: int) -> dict[str, Any]:
    """Give the parameters of a quicker model of the same kind, for ranking."""
    own = learner.params()
    found: dict[str, Any] = {}
    if "n_estimators" in own:
        found["n_estimators"] = min(int(own["n_estimators"] or RANKING_TREES), RANKING_TREES)
    if learner.is_boosting:
        found["learning_rate"] = max(float(own.get("learning_rate") or 0.0), RANKING_RATE)
    if learner.kind.startswith("LGBM") and columns > WIDE:
        found |= {
            "colsample_bytree": min(float(own["colsample_bytree"]), 0.3),
            "max_bin": 63,
            "num_leaves": min(int(own["num_leaves"]), 15),
        }
    return found


def several_threads(learner: Learner, rows: int, columns: int) -> dict[str, Any]:
    """Give the parameter by which training takes all cores where the table is large enough to gain from it."""
    return {"n_jobs": os.cpu_count() or 1} if rows * columns > MANY_CELLS and "n_jobs" in learner.params() else {}
