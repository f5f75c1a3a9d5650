from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlflow import MlflowClient
from torch import nn

from mlflow_opt import data, models, session
from mlflow_opt.export.from_torch import export_retrained
from mlflow_opt.networks.losses import Arrays, Minibatch
from mlflow_opt.networks.narrow_memory import with_smaller_memory
from mlflow_opt.networks.network_distillation import (
    Lesson,
    blended,
    features_of,
    lesson_of,
    matching_loss,
    multiplied,
    narrower,
    repeated,
    soft_loss,
    with_projection,
    without_projection,
)
from mlflow_opt.networks.network_learners import fresh, learner_for
from mlflow_opt.networks.trainable import load_trainable, save_trainable
from mlflow_opt.networks.training import TrainSettings, evaluate, fit
from mlflow_opt.workbench.distilling_networks import Teaching, logits_of, named, teach
from tests import training_cases

RNG = np.random.default_rng(0)
ROWS = Arrays({"x": RNG.normal(size=(40, 5)).astype(np.float32)}, np.arange(40) % 3)


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def batch_of(rows: Arrays, index: np.ndarray) -> Minibatch:
    inputs = {name: torch.from_numpy(array[index]) for name, array in rows.inputs.items()}
    return Minibatch(inputs, torch.from_numpy(rows.targets[index]), torch.from_numpy(index))


def test_soft_loss_is_least_when_the_student_answers_as_the_teacher() -> None:
    teacher = network()
    with torch.no_grad():
        answers = teacher(torch.from_numpy(ROWS.inputs["x"])).numpy()
    loss = soft_loss(Lesson(ROWS, answers, np.ones(40, bool)), 4.0, 0.0)
    batch = batch_of(ROWS, np.array([3, 1, 7, 20]))
    assert float(loss(teacher, batch).detach()) == pytest.approx(0, abs=1e-5)
    assert float(loss(network(8), batch).detach()) > 1e-3


def test_soft_loss_equals_the_definition_when_labels_are_mixed_in() -> None:
    answers = RNG.normal(size=(40, 3))
    known = np.arange(40) < 2
    loss = soft_loss(Lesson(ROWS, answers, known), 2.0, 0.3)
    index = np.array([0, 5, 9])
    student = network()
    batch = batch_of(ROWS, index)
    with torch.no_grad():
        scores = student(batch.inputs["x"])
        wanted = torch.from_numpy(answers[index]).float()
        soft = -(F.softmax(wanted / 2, 1) * (F.log_softmax(scores / 2, 1) - F.log_softmax(wanted / 2, 1))).sum(1).mean() * 4
        hard = F.cross_entropy(scores[:1], batch.targets[:1])
        assert float(loss(student, batch)) == pytest.approx(float(0.7 * soft + 0.3 * hard), rel=1e-4)


@pytest.mark.parametrize(("temperature", "mix"), [(0.0, 0.1), (-1.0, 0.1), (2.0, 1.5), (2.0, -0.1)])
def test_soft_loss_refuses_when_a_parameter_is_out_of_range(temperature: float, mix: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0 and mix in"):
        soft_loss(Lesson(ROWS, np.zeros((40, 3)), np.ones(40, bool)), temperature, mix)


def test_lesson_asks_about_every_row_when_some_have_no_label() -> None:
    more = {"x": RNG.normal(size=(7, 5)).astype(np.float32)}
    lesson = lesson_of(ROWS, lambda inputs: inputs["x"][:, :3], more)
    assert len(lesson.answers) == len(lesson.rows.targets) == 47
    assert lesson.labelled.sum() == 40
    assert np.array_equal(lesson.answers[40:], more["x"][:, :3])


def test_multiplied_moves_pictures_and_keeps_labels_when_copies_are_asked_for() -> None:
    pictures = Arrays({"image": RNG.integers(0, 255, (6, 8, 8)).astype(np.uint8)}, np.arange(6) % 2)
    made = multiplied(pictures, 2, 0)
    assert made.inputs["image"].shape == (18, 8, 8)
    assert np.array_equal(made.targets, np.tile(pictures.targets, 3))
    assert not np.array_equal(made.inputs["image"][6:12], made.inputs["image"][12:])
    assert multiplied(ROWS, 2, 0) is ROWS, "numbers cannot be moved about"


def test_blended_lies_between_rows_when_they_are_numbers() -> None:
    made = blended(ROWS, 2, 0)["x"]
    assert made.shape == (80, 5)
    assert np.abs(made).max() <= np.abs(ROWS.inputs["x"]).max()
    assert blended(Arrays({"ids": np.zeros((4, 3), np.int64)}, np.zeros(4, np.int64)), 2, 0) == {}


def test_blended_stays_bytes_between_both_rows_when_they_are_pictures() -> None:
    pictures = Arrays({"image": np.stack([np.zeros((8, 8)), np.full((8, 8), 200)]).astype(np.uint8)}, np.array([0, 1]))
    made = blended(pictures, 30, 0)["image"]
    assert made.shape == (60, 8, 8)
    assert made.dtype == np.uint8
    assert len(np.unique(made)) > 10
    assert made.max() <= 200


def test_repeated_begins_again_when_rows_run_out() -> None:
    made = repeated(ROWS, 100)
    assert np.array_equal(made.targets, np.concatenate([ROWS.targets, ROWS.targets, ROWS.targets[:20]]))
    assert np.array_equal(made.inputs["x"][80:], ROWS.inputs["x"][:20])


def test_matching_brings_features_together_when_the_student_is_trained() -> None:
    teacher, student = network(16), network(8)
    features = features_of(teacher, ROWS.inputs)
    assert features.shape == (40, 16)
    with torch.no_grad():
        answers = teacher(torch.from_numpy(ROWS.inputs["x"])).numpy()
    dressed = with_projection(student, ROWS.inputs, 16)
    soft = soft_loss(Lesson(ROWS, answers, np.ones(40, bool)), 2.0, 0.0)
    loss = matching_loss(soft, features)
    batch = batch_of(ROWS, np.arange(40))
    with torch.no_grad():
        before = float(loss(dressed, batch) - soft(dressed, batch))
    fitted = fit(dressed, ROWS, ROWS, TrainSettings(epochs=30, batch_size=10, learning_rate=0.01), loss)
    with torch.no_grad():
        assert float(loss(fitted.module, batch) - soft(fitted.module, batch)) < 0.8 * before
    plain = without_projection(fitted.module, student)
    assert repr(plain) == repr(student)


@pytest.mark.parametrize("kind", ["digits", "perceptron", "tokens", "series"])
def test_narrower_answers_the_same_classes_when_it_keeps_a_share(kind: str, tmp_path: Path) -> None:
    case = getattr(training_cases, kind)(tmp_path)
    split = data.split(data.read(str(case.data)))
    learner = learner_for(models.load(str(case.model)), split)
    rows = learner.arrays(split.calibration)
    made = narrower(learner.module, rows, 0.5)
    count = [sum(one.numel() for one in module.parameters()) for module in (made, learner.module)]
    assert count[0] < 0.8 * count[1]
    assert np.isfinite(evaluate(learner.judged(made), rows)[0])


class Stacked(nn.Module):
    """Two directions, a norm and a second memory: everything that a smaller state has to be told to."""

    def __init__(self, kept: int = 0) -> None:
        super().__init__()
        self.kept = kept
        self.first = nn.GRU(3, 16, batch_first=True, bidirectional=True)
        self.norm, self.second, self.head = nn.LayerNorm(32), nn.LSTM(32, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Answer (n, 2)."""
        states = self.norm(self.first(series)[0])
        last = self.second(states)[0][:, -1]
        scores: torch.Tensor = self.head(last.reshape(len(last), self.kept) if self.kept else last)
        return scores


def test_smaller_memory_is_built_again_from_its_file_when_layers_follow_it(tmp_path: Path) -> None:
    inputs = {"series": RNG.normal(size=(5, 7, 3)).astype(np.float32)}
    # The type checker knows no layers on a Module.
    made: Any = fresh(with_smaller_memory(Stacked(), inputs, 0.25), 0)
    assert (made.first.hidden_size, made.norm.normalized_shape, made.second.input_size, made.head.in_features) == (4, (8,), 8, 4)
    again = load_trainable(save_trainable(made, tmp_path))
    rows = torch.from_numpy(inputs["series"])
    assert torch.equal(again.eval()(rows), made.eval()(rows))


def test_smaller_memory_is_refused_when_forward_holds_its_width() -> None:
    with pytest.raises(ValueError, match="must not hold the width of its state"):
        with_smaller_memory(Stacked(kept=12), {"series": np.zeros((5, 7, 3), np.float32)}, 0.25)


@pytest.mark.parametrize("share", [0.0, 1.0, 3.0])
def test_narrower_refuses_when_the_share_is_none(share: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        narrower(network(), ROWS, share)


def test_logits_of_refuses_when_the_teacher_knows_other_classes(tmp_path: Path) -> None:
    case = training_cases.perceptron(tmp_path, classes=3)
    split = data.split(data.read(str(training_cases.perceptron(tmp_path).data)))
    with pytest.raises(ValueError, match="a teacher must answer the 2 classes"):
        logits_of(models.load(str(case.model)), split.train.rows, split.task)


def test_named_splits_when_there_are_commas() -> None:
    assert named(" models:/a/1, models:/b/2,") == ("models:/a/1", "models:/b/2")


def _run(params: dict[str, object], how: Teaching) -> None:
    given = {"target": "target", "seed": 0, "budget_s": 2.0, **params}
    with session.start("distill", given) as work:
        teach(work, how)
        work.conclude()


@pytest.mark.slow
def test_teach_shows_the_student_taught_in_every_way_when_the_teacher_is_torch(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    _run({"model": str(case.model), "data": str(case.data)}, Teaching(student="0.5", epochs=2))
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    weights = {
        run.data.tags["mlflow_opt.variant"]: run.data.metrics.get("student_weights")
        for run in runs
        if "mlflow_opt.variant" in run.data.tags
    }
    assert set(weights) == {"baseline", "runtime_only", "student", "student_features", "student_hard"}
    assert weights["student"] == weights["student_hard"] == weights["student_features"]


@pytest.mark.slow
def test_teach_takes_a_graph_and_an_ensemble_as_teachers_when_a_student_is_given(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    split = data.split(data.read(str(case.data)))
    learner = learner_for(models.load(str(case.model)), split)
    graph = tmp_path / "teacher.onnx"
    graph.write_bytes(export_retrained(learner.module, learner.model, split.calibration.rows).proto.SerializeToString())
    student = training_cases.save(
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), tmp_path / "student", {"numbers": np.zeros((2, 6), np.float32)}
    )
    how = Teaching(student=str(student), teachers=(str(graph), str(case.model)), epochs=2)
    _run({"model": str(graph), "data": str(case.data)}, how)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    assert {"student", "student_hard"} <= {run.data.tags.get("mlflow_opt.variant") for run in runs}


@pytest.mark.slow
def test_teach_refuses_when_the_students_classes_differ(tmp_path: Path, tracking_uri: str) -> None:
    case = training_cases.perceptron(tmp_path)
    other = training_cases.perceptron(tmp_path, classes=3)
    with pytest.raises(ValueError, match="a student must take the teacher's arrays and answer its 2 numbers"):
        _run({"model": str(case.model), "data": str(case.data)}, Teaching(student=str(other.model)))


@pytest.mark.slow
def test_teach_takes_a_bag_of_embeddings_when_the_teacher_reads_tokens(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.tokens(tmp_path)
    _run({"model": str(case.model), "data": str(case.data)}, Teaching(student="bag", epochs=1))
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    variants = {run.data.tags.get("mlflow_opt.variant"): run.data.tags.get("mlflow_opt.standing", "") for run in runs}
    assert {"student", "student_features", "student_hard"} <= set(variants)
    assert not any("no drop-in" in standing for standing in variants.values())
