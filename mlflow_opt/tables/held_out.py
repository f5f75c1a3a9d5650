"""What an ensemble's members answer on rows that they were not trained on: the only ground to choose among them."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from mlflow_opt.data import Batch, Part, Split
from mlflow_opt.ensembles.members import Member, Pool
from mlflow_opt.records import Task
from mlflow_opt.tables.cross_validation import fold_of

logger = logging.getLogger(__name__)

# More rows change a selection's loss in its fourth digit and cost training time.
MOST_ROWS = 20_000


def held_out(pool: Pool, split: Split, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Let members answer rows that they were not trained on, for choosing among them.

    Where members can be trained again, others like them are, on folds of the train and calibration rows. That costs as many
    trainings as there are folds, and is worth it: what a member was trained on flatters it, and nobody knows what a user's
    model was trained on. Else the members themselves answer the calibration rows, which are few.

    Args:
        pool: the members.
        split: a table's.
        folds: 0 uses calibration rows only.

    Returns:
        Probabilities (members, rows, classes) or values (members, rows); class codes or targets (rows,).
    """
    if not folds or not pool.trainable:
        rows = table(split.calibration)
        return np.stack([one.scores(rows, split.task) for one in pool.members]), codes(split.task, split.calibration.labels)
    rows = pd.concat([table(split.train), table(split.calibration)], ignore_index=True)
    raw = np.concatenate([split.train.labels, split.calibration.labels])
    if len(rows) > MOST_ROWS:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), MOST_ROWS, replace=False))
        rows, raw = rows.iloc[chosen].reset_index(drop=True), raw[chosen]
    labels, fold = codes(split.task, raw), fold_of(rows, raw, split.task, folds)
    answers = np.zeros((len(pool.members), len(rows), *([len(split.task.classes)] if split.task.classes else [])))
    for number in range(int(fold.max()) + 1):
        held = fold == number
        logger.info("Training %d members on all folds but %d of %d.", len(pool.members), number + 1, int(fold.max()) + 1)
        for at, one in enumerate(pool.members):
            if one.learner is not None:
                again = Member(one.name, one.learner.fit(rows[~held], labels[~held]))
                answers[at, held] = again.scores(rows[held], split.task)
    return answers, labels


def codes(task: Task, labels: np.ndarray) -> np.ndarray:
    """Give class codes in score-column order, or a regression's targets as they are."""
    return np.searchsorted(np.array(task.classes), labels) if task.classes else np.asarray(labels, dtype=float)


def table(part: Part) -> pd.DataFrame:
    """Give a part's rows, which must be a table.

    Raises:
        ValueError: they are arrays.
    """
    return as_table(part.rows)


def as_table(rows: Batch) -> pd.DataFrame:
    """Insist that rows are a table.

    Raises:
        ValueError: they are arrays.
    """
    if isinstance(rows, pd.DataFrame):
        return rows
    raise ValueError(f"this recipe works on tables, the data are the arrays {', '.join(rows)}; give a parquet or csv file, or telco_churn.")
