"""A table's teacher and its students within a recipe's session."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.ensembles import members
from mlflow_opt.ensembles.members import Member
from mlflow_opt.export import exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.graph_sharing import shared
from mlflow_opt.flavours.contracts import columns_of
from mlflow_opt.records import Variant
from mlflow_opt.runs.workshop import Workshop
from mlflow_opt.session import Session
from mlflow_opt.tables import held_out, munge, table_distillation
from mlflow_opt.tables.learners import Fitted
from mlflow_opt.tables.table_distillation import Lesson, Student
from mlflow_opt.workbench.ensemble_workbench import Workbench

logger = logging.getLogger(__name__)

# Real and new rows together: more teach a small student nothing new.
MOST_ROWS = 150_000
# Ends the name of the student that learnt from the labels.
HARD = "_hard"


def check(augment: int, mix: float, temperature: float, size: int) -> None:
    """Refuse parameters that mean nothing, before anything is trained.

    Raises:
        ValueError: one is out of its range.
    """
    if augment < 0:
        raise ValueError(f"augment must not be negative, got {augment}; 4 is usual, 0 teaches on the real rows alone.")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must lie in [0, 1], got {mix:g}; 0 learns from the teacher alone, 1 from the labels alone.")
    if temperature < 0:
        raise ValueError(f"temperature must be above 0, or 0 for the usual one, got {temperature:g}; 1 leaves probabilities as they are.")
    if size < 1:
        raise ValueError(f"trees and hidden must be at least 1, got {size}; 100 trees and 64 units are small students.")


@dataclass(frozen=True)
class Classroom:
    """The lessons of a session: what the teacher answers, and the labels alone.

    Args:
        work: the session; its model is the teacher.
        augment: new rows for each real one.
        mix: share of the labels in the targets of real rows.
        temperature: of the teacher's probabilities.
        seed: of new rows and students.
    """

    work: Workshop
    augment: int
    mix: float
    temperature: float
    seed: int

    def taught(self, student: Student) -> Fitted:
        """Train a student on the teacher's answers."""
        logger.info("Teaching %s on %d rows of the teacher's answers.", student.kind, len(self._soft.rows))
        task = self.work.task
        made = table_distillation.teach(student, self._soft, task, temperature=self.temperature if task.classes else 1.0, seed=self.seed)
        return replace(made, threshold=self.work.model.threshold)

    def alone(self, student: Student) -> Fitted:
        """Train the same student on the labels."""
        made = table_distillation.teach(student, self._hard, self.work.task, seed=self.seed)
        return replace(made, threshold=self.work.model.threshold)

    @cached_property
    def _hard(self) -> Lesson:
        rows, labels = self._real
        return table_distillation.hard_lesson(rows, labels, self.work.task)

    @cached_property
    def _soft(self) -> Lesson:
        rows, labels = self._real
        times = min(self.augment, MOST_ROWS // len(rows) - 1)
        if times < self.augment:
            logger.info("augment is %d and not %d, so that at most %d rows teach.", max(times, 0), self.augment, MOST_ROWS)
        more = munge.munge(rows, times, seed=self.seed)
        return table_distillation.soft_lesson(rows, labels, more, self._answers, self.work.task, self.mix)

    @property
    def _real(self) -> tuple[pd.DataFrame, np.ndarray]:
        train = self.work.split.train
        rows = held_out.table(train).reset_index(drop=True)
        asked: list[Any] = columns_of(self.work.model.signature, None) or list(rows.columns)
        return rows[[name for name in asked if name in rows.columns]], held_out.codes(self.work.task, train.labels)

    def _answers(self, rows: pd.DataFrame) -> np.ndarray:
        return Member("teacher", self.work.model).scores(rows, self.work.task)


def teach(work: Session, students: Sequence[Student], room: Classroom) -> None:
    """Add the teacher itself in the runtime of its students, and each student taught by the teacher and by the labels.

    Raises:
        ValueError: the data are no table.
    """
    held_out.as_table(work.example)
    work.expect(1 + 2 * len(students))
    whole = whole_teacher(work)
    if whole is not None:
        work.add(Variant("runtime_only", work.dropin("runtime_only", whole), {"student": "none"}))
    for one in students:
        said = {"student": one.kind, "size": {"lightgbm": one.trees, "mlp": one.hidden}.get(one.kind, 0)}
        soft = {**said, "labels": "soft", "augment": room.augment, "mix": room.mix, "temperature": room.temperature}
        drops = [
            work.add(Variant(one.kind, work.refitted(one.kind, room.taught(one)), soft)),
            work.add(Variant(f"{one.kind}{HARD}", work.refitted(f"{one.kind}{HARD}", room.alone(one)), {**said, "labels": "hard"})),
        ]
        # Both cost the same to run, so that only noise could choose between them by latency.
        worse = work.candidates[-2 if drops[0] > drops[1] else -1]
        worse.refused = worse.refused or "for comparison: the same student taught the other way is better"


def whole_teacher(work: Workshop) -> OnnxGraph | None:
    """Give the teacher's own graph, as fast as it gets, to tell the runtime's gain from the student's; None if it has no ONNX form."""
    held_out.as_table(work.example)
    try:
        pool = members.pool_of(work.model)
    except ValueError:
        pool = None
    try:
        return Workbench(work, pool).whole() if pool else shared(exporting.to_onnx(work.model, work.example, work.task))
    except ValueError as why:
        logger.info("The teacher has no ONNX form, so that the runtime's own gain is not known: %s", why)
        return None
