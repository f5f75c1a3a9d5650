from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.export import exporting
from mlflow_opt.records import Task
from mlflow_opt.tables import learner_files
from mlflow_opt.tables.munge import munge
from mlflow_opt.tables.table_distillation import KINDS, Kind, Lesson, Student, hard_lesson, hard_targets, soft_lesson, softened, teach
from tests.model_zoo import BINARY, housing, one_thread, telco

__all__ = ["one_thread"]

TABLE, LABELS = telco(holes=True)
COLUMNS = ["tenure", "contract", "monthly_charges", "payment_method", "partner"]
ROWS, Y = TABLE[COLUMNS].head(500).reset_index(drop=True), LABELS[:500]
MULTI = Task("multiclass", ("a", "b", "c"))


def known(rows: pd.DataFrame) -> np.ndarray:
    """Answer as a teacher whose probabilities are known exactly."""
    later = 1 / (1 + np.exp(0.08 * rows["tenure"].fillna(30).to_numpy(dtype=float) - 1))
    return np.stack([1 - later, later], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_teach_comes_nearer_to_the_teacher_than_labels_do_when_answers_are_soft(kind: Kind) -> None:
    labels = (np.random.default_rng(0).random(len(ROWS)) < known(ROWS)[:, 1]).astype(int)
    student, fresh = Student(kind, trees=30, leaves=7, hidden=8), munge(ROWS, 1, seed=9)
    soft = teach(student, soft_lesson(ROWS, labels, munge(ROWS, 2), known, BINARY, 0.0), BINARY)
    hard = teach(student, hard_lesson(ROWS, labels, BINARY), BINARY)
    far = [np.abs(one.scores(fresh) - known(fresh)).mean() for one in (soft, hard)]
    assert far[0] < far[1]
    assert far[0] < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [BINARY, MULTI, Task("regression")], ids=lambda task: task.kind)
def test_teach_gives_a_student_that_exports_when_taught(kind: Kind, task: Task, tmp_path: Path) -> None:
    targets = _targets(task)
    fitted = teach(Student(kind, trees=5, leaves=7, hidden=4), Lesson(ROWS, targets, np.ones(len(ROWS))), task)
    assert fitted.scores(ROWS).shape == targets.shape
    assert not task.classes or np.allclose(fitted.scores(ROWS).sum(axis=1), 1)
    exporting.to_onnx(learner_files.save(fitted, ROWS, tmp_path / "student"), ROWS, task)


def _targets(task: Task) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(len(task.classes)), len(ROWS)) if task.classes else 1e5 + 1e3 * rng.normal(size=len(ROWS))


def test_teach_finds_the_scale_when_values_are_large() -> None:
    rows, values = housing()
    fitted = teach(Student("mlp", hidden=16), Lesson(rows, values * 1e3, np.ones(len(rows))), Task("regression"))
    assert np.corrcoef(fitted.scores(rows), values)[0, 1] > 0.9
    assert abs(fitted.scores(rows).mean() / (values * 1e3).mean() - 1) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_teach_answers_at_temperature_one_when_taught_at_another(kind: Kind, tmp_path: Path) -> None:
    lesson, student = Lesson(ROWS, known(ROWS), np.ones(len(ROWS))), Student(kind, trees=20, leaves=7, hidden=8)
    soft = teach(student, replace(lesson, targets=softened(known(ROWS), 3.0)), BINARY)
    fitted = teach(student, lesson, BINARY, temperature=3.0)
    # What learnt the softened answers, with its logits three times as large.
    np.testing.assert_allclose(fitted.scores(ROWS), softened(soft.scores(ROWS), 1 / 3), atol=1e-9)
    native = learner_files.save(fitted, ROWS, tmp_path / "student")
    np.testing.assert_allclose(native.predict(ROWS), fitted.scores(ROWS), atol=1e-9)


def test_teach_leaves_as_many_rows_in_a_leaf_when_rows_are_repeated_for_each_class() -> None:
    fitted = teach(Student("lightgbm", trees=3), Lesson(ROWS, known(ROWS), np.ones(len(ROWS))), BINARY)
    assert fitted.last.min_child_samples == 40


def test_soft_lesson_mixes_the_truth_into_real_rows_only_when_asked() -> None:
    more = munge(ROWS, 1)
    lesson = soft_lesson(ROWS, Y, more, known, BINARY, 0.25)
    np.testing.assert_allclose(lesson.targets[: len(ROWS)], 0.25 * hard_targets(Y, BINARY) + 0.75 * known(ROWS))
    np.testing.assert_allclose(lesson.targets[len(ROWS) :], known(more))


def test_teach_looks_texts_up_once_when_the_student_is_boosted(tmp_path: Path) -> None:
    lesson = Lesson(ROWS, known(ROWS), np.ones(len(ROWS)))
    native = learner_files.save(teach(Student("lightgbm", trees=3), lesson, BINARY), ROWS, tmp_path / "student")
    graph: Any = exporting.to_onnx(native, ROWS, BINARY).proto.graph
    assert sum(node.op_type == "LabelEncoder" for node in graph.node) == 1
