from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from mlflow_opt.measurement.reliability import calibration_error
from mlflow_opt.networks.losses import Arrays, Minibatch, scores_of
from mlflow_opt.networks.regularisers import can_mix, mixup_loss, taken_off, with_batch_norm, with_dropout, zero_share
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.records import Task
from mlflow_opt.runs.outcome import Row
from recipes.regularize import Techniques, advise, best_together, figures_of, regularize, techniques_for
from tests import training_cases
from tests.tiny import tiny_table

ROWS = {"x": np.random.default_rng(0).normal(size=(64, 1, 6, 6)).astype(np.float32)}
TARGETS = (ROWS["x"].mean(axis=(1, 2, 3)) > 0).astype(np.int64)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def test_with_dropout_acts_in_training_alone_when_it_was_inserted() -> None:
    module = convolutional().eval()
    made = with_dropout(module, ROWS, 0.5)
    rows = torch.from_numpy(ROWS["x"])
    assert torch.equal(made.eval()(rows), module(rows))
    assert not torch.equal(made.train()(rows), made(rows))
    assert list(made.state_dict()) == list(module.state_dict()), "nothing of it is left in the network"


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(36, 8), nn.Dropout(0.9), nn.Linear(8, 2)),
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 4), nn.Flatten()),
    ],
    ids=["own", "convolutions"],
)
def test_with_dropout_finds_its_place_when_networks_differ(module: nn.Sequential) -> None:
    rows = {"x": ROWS["x"].reshape(64, 36)} if isinstance(module[0], nn.Linear) else ROWS
    made = with_dropout(module.eval(), rows, 0.25).train()
    given = torch.from_numpy(rows["x"])
    assert not torch.equal(made(given), made(given))
    assert [layer.p for layer in made.modules() if isinstance(layer, nn.Dropout)] in ([0.25], [])


def test_with_dropout_refuses_when_there_is_no_place() -> None:
    with pytest.raises(ValueError, match="needs a second linear or convolutional layer"):
        with_dropout(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), ROWS, 0.2)


def test_taken_off_answers_alike_when_batch_norm_was_trained_and_folded() -> None:
    module = convolutional()
    dressed = with_dropout(with_batch_norm(module, ROWS), ROWS, 0.2)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in dressed.modules()) == 2
    fitted = fit(dressed, Arrays(ROWS, TARGETS), Arrays(ROWS, TARGETS), TrainSettings(epochs=3, batch_size=16, learning_rate=0.01))
    plain = taken_off(fitted.module, module)
    assert repr(plain) == repr(module)
    assert torch.allclose(scores_of(plain, ROWS), scores_of(fitted.module, ROWS), atol=1e-4)
    assert not torch.allclose(scores_of(plain, ROWS), scores_of(module, ROWS), atol=1e-2), "it was trained"


def test_with_batch_norm_refuses_when_every_layer_has_one() -> None:
    with pytest.raises(ValueError, match="has no such layer"):
        with_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2)), ROWS)


def test_l1_makes_exact_zeros_when_it_is_strong() -> None:
    settings = TrainSettings(epochs=10, batch_size=16, learning_rate=0.01, l1=2.0)
    fitted = fit(convolutional(), Arrays(ROWS, TARGETS), Arrays(ROWS, TARGETS), settings)
    assert zero_share(fitted.module) > 0.1 > zero_share(convolutional())


def test_mixup_loss_lies_between_the_two_labels_when_rows_are_blended() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().mean(dim=(1, 2))

    torch.manual_seed(0)
    pictures = torch.zeros(64, 4, 4, dtype=torch.uint8)
    pictures[32:] = 200
    targets = torch.cat([torch.zeros(32), torch.full((32,), 200.0)])
    batch = Minibatch({"x": pictures}, targets, torch.arange(64))
    # A network that is linear in its pixels is right about each blend on average, but not about its two ends.
    assert 0 < float(mixup_loss(1.0)(Mean(), batch)) < 200**2 / 2
    assert can_mix({"x": pictures.numpy()})
    assert not can_mix({"ids": np.zeros((3, 4), np.int64)})


def test_calibration_error_is_the_distance_when_confidence_is_too_high() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    right = rng.random(20_000) < 0.7
    answered = np.where(right, labels, 1 - labels)
    sure = np.where(np.eye(2)[answered] == 1, 0.95, 0.05)
    assert calibration_error(sure, labels) == pytest.approx(0.25, abs=0.02)
    assert calibration_error(np.where(sure > 0.5, 0.7, 0.3), labels) < 0.02


def test_best_together_keeps_what_helps_when_techniques_are_joined() -> None:
    singles = {"a": Techniques(dropout=0.2), "b": Techniques(l1=0.1), "c": Techniques(mixup=0.3), "d": Techniques(weight_decay=1.0)}
    drops = {"none": 0.0, "a": -0.03, "b": -0.02, "c": -0.01, "d": 0.01}
    tried: dict[str, Techniques] = {}

    def try_out(name: str, how: Techniques) -> float:
        tried[name] = how
        return -0.02 if "b" in name else -0.05

    assert best_together(singles, drops, try_out, 5) == "a+c"
    assert tried == {"a+b": Techniques(dropout=0.2, l1=0.1), "a+c": Techniques(dropout=0.2, mixup=0.3)}
    assert best_together(singles, dict.fromkeys(drops, 0.0), try_out, 5) == "none"


def test_techniques_for_leaves_out_what_does_not_fit_when_data_are_tokens() -> None:
    assert "mixup" not in techniques_for(Task("binary", (0, 1)), mixable=False)
    assert {"mixup", "label_smoothing"} <= set(techniques_for(Task("binary", (0, 1)), mixable=True))


def test_figures_of_gives_a_positive_gap_when_train_rows_are_known_by_heart() -> None:
    labels, sure = np.arange(10) % 2, np.eye(2)[np.arange(10) % 2]
    found = figures_of(Task("binary", (0, 1)), (labels, sure), (labels, sure[::-1]))
    assert found["generalisation_gap"] == 1
    assert found["calibration_error"] == 1


def test_advise_compares_with_the_control_when_a_technique_closed_the_gap() -> None:
    def row(name: str, drop: float, gap: float) -> Row:
        figures = {"generalisation_gap": gap, "calibration_error": 0.02, "zero_share": 0.3, "best_epoch": 4.0}
        return Row(name, {"drop_accuracy": drop, **figures})

    text = "\n".join(advise([row("none", 0.01, 0.1), row("l1", 0.0, 0.04)], "accuracy", "l1"))
    assert "l1: accuracy +0.0100 and gap -0.0600 against none" in text
    assert "30% zeros" in text


@pytest.mark.slow
def test_regularize_shows_every_technique_when_run_on_a_network(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    regularize(model=str(case.model), data=str(case.data), epochs=2, trials=1, budget_s=3.0)
    runs = MlflowClient(tracking_uri).search_runs([str(one.experiment_id) for one in MlflowClient(tracking_uri).search_experiments()])
    variants = {run.data.tags.get("mlflow_opt.variant"): run.data.metrics for run in runs}
    assert {"none", "dropout", "l1", "weight_decay", "batch_norm", "label_smoothing", "mixup"} <= set(variants)
    names = {"generalisation_gap", "calibration_error", "zero_share", "best_epoch", "epoch_loss"}
    assert all(names <= set(metrics) for name, metrics in variants.items() if name not in (None, "baseline"))
    assert not list((tmp_path / "cache").rglob("*.ckpt")), "checkpoints go when the run has come to its end"


@pytest.mark.slow
def test_regularize_tries_penalties_when_run_on_a_table(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_table(tmp_path, rows=900)
    regularize(model=str(tiny.model), data=str(tiny.data), budget_s=3.0)
    runs = MlflowClient(tracking_uri).search_runs([str(one.experiment_id) for one in MlflowClient(tracking_uri).search_experiments()])
    zeros = {run.data.tags.get("mlflow_opt.variant"): run.data.metrics.get("zero_share") for run in runs}
    assert zeros["l2_0.01"] == 0
    assert (zeros["l1_0.01"] or 0.0) > 0


@pytest.mark.parametrize("epochs", [0, -3])
def test_regularize_refuses_when_the_budget_is_zero(epochs: int) -> None:
    with pytest.raises(ValueError, match=f"epochs must be at least 1, got {epochs}"):
        regularize(epochs=epochs)
