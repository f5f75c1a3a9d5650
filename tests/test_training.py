from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_opt.networks import checkpoints, losses
from mlflow_opt.networks.schedules import Schedule, rate_factor
from mlflow_opt.networks.training import (
    Arrays,
    DivergedError,
    Epoch,
    Fitted,
    Loss,
    Minibatch,
    TrainSettings,
    evaluate,
    fit,
    plain_loss,
)

SETTINGS = TrainSettings(epochs=6, batch_size=32, learning_rate=0.01)


def _moons(rows: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    points = random.normal(size=(rows, 2)).astype(np.float32)
    return Arrays({"points": points}, ((points**2).sum(axis=1) > 1.4).astype(np.int64))


def _values(rows: int, seed: int) -> Arrays:
    classes = _moons(rows, seed)
    points = classes.inputs["points"]
    return Arrays(classes.inputs, (points[:, 0] * points[:, 1]).astype(np.float32))


def _network(outputs: int = 2, dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, outputs))


def _weights(fitted: Fitted) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in fitted.module.state_dict().values()])


def test_fit_learns_when_classes_are_apart() -> None:
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = fit(network, _moons(500, 0), _moons(200, 1), dataclasses.replace(SETTINGS, epochs=15))
    loss, score = evaluate(fitted.module, _moons(300, 2))
    assert score > 0.9
    assert loss < 0.35
    assert not fitted.module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "the module given is left unchanged"


def test_fit_learns_when_targets_are_numbers() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=25, monitor="score")
    fitted = fit(_network(1, 0.0), _values(600, 0), _values(200, 1), settings)
    assert evaluate(fitted.module, _values(300, 2))[1] > 0.7


def test_fit_is_the_same_when_the_seed_is() -> None:
    state = torch.get_rng_state()
    one, two = (fit(_network(), _moons(200, 0), _moons(99, 1), SETTINGS) for _ in range(2))
    other = fit(_network(), _moons(200, 0), _moons(99, 1), dataclasses.replace(SETTINGS, seed=1))
    assert (_weights(one) == _weights(two)).all()
    assert (_weights(one) != _weights(other)).any()
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers are left alone"


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fit_improves_when_any_schedule_is_used(schedule: Schedule, optimizer: Any) -> None:
    settings = dataclasses.replace(SETTINGS, schedule=schedule, optimizer=optimizer, weight_decay=0.01, clip_norm=1.0)
    fitted = fit(_network(), _moons(300, 0), _moons(200, 1), settings)
    assert min(epoch.loss for epoch in fitted.history) < 0.6
    assert fitted.history[fitted.best - 1].loss == min(epoch.loss for epoch in fitted.history)


def test_fit_stops_early_and_restores_when_it_gets_no_better() -> None:
    train = _moons(40, 0)
    noise = Arrays(train.inputs, np.random.default_rng(0).integers(0, 2, 40))
    settings = dataclasses.replace(SETTINGS, epochs=200, patience=5, learning_rate=0.05, schedule="constant")
    validation = _moons(200, 1)
    fitted = fit(_network(), noise, validation, settings)
    assert len(fitted.history) == fitted.best + 5 < 200
    assert evaluate(fitted.module, validation)[0] == pytest.approx(fitted.history[fitted.best - 1].loss)


def test_fit_stops_when_the_loss_only_creeps_down() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=40, patience=2, learning_rate=1e-4, schedule="constant")
    creeping = fit(_network(), _moons(200, 0), _moons(99, 1), settings)
    stopped = fit(_network(), _moons(200, 0), _moons(99, 1), dataclasses.replace(settings, least_gain=0.05))
    assert len(stopped.history) < len(creeping.history)
    assert stopped.best > len(stopped.history) - 2, "the best weights are kept however small their gain"


@pytest.mark.parametrize("died_after", [1, 3])
def test_fit_ends_the_same_when_it_was_interrupted_and_resumed(tmp_path: Path, died_after: int) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoint=str(tmp_path / "run.ckpt"), schedule="plateau", optimizer="sgd")
    whole = fit(_network(), _moons(200, 0), _moons(99, 1), dataclasses.replace(settings, checkpoint=""))

    def die(epoch: Epoch) -> None:
        if epoch.number == died_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(_network(), _moons(200, 0), _moons(99, 1), settings, on_epoch=die)
    best_so_far = _network()
    assert len(checkpoints.restore_best(best_so_far, settings.checkpoint)) == died_after
    resumed = fit(_network(), _moons(200, 0), _moons(99, 1), settings)
    assert (_weights(resumed) == _weights(whole)).all()
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]


def test_fit_refuses_a_checkpoint_when_it_is_of_another_training(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoint=str(tmp_path / "run.ckpt"), epochs=1)
    fit(_network(), _moons(64, 0), _moons(64, 1), settings)
    with pytest.raises(ValueError, match="of the same training"):
        fit(_network(), _moons(64, 0), _moons(64, 1), dataclasses.replace(settings, seed=5))
    (tmp_path / "run.ckpt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="must be readable"):
        fit(_network(), _moons(64, 0), _moons(64, 1), settings)


@pytest.mark.parametrize("where", ["inputs", "rate"])
def test_fit_stops_when_the_loss_is_not_a_number(where: str) -> None:
    train = _moons(64, 0)
    if where == "inputs":
        train.inputs["points"][3] = np.nan
    rate = 1e25 if where == "rate" else 0.01
    with pytest.raises(DivergedError, match="in epoch 1; lower learning_rate"):
        fit(_network(), train, _moons(64, 1), dataclasses.replace(SETTINGS, learning_rate=rate, optimizer="sgd"))


def test_fit_uses_the_loss_when_one_is_given() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=15, monitor="score")
    teacher = fit(_network(), _moons(500, 0), _moons(200, 1), settings).module
    train = _moons(300, 3)
    answers = losses.scores_of(teacher, train.inputs)
    seen: list[torch.Tensor] = []

    def distill(module: nn.Module, batch: Minibatch) -> torch.Tensor:
        seen.append(batch.index)
        assert torch.equal(torch.from_numpy(train.inputs["points"])[batch.index], batch.inputs["points"])
        return nn.functional.mse_loss(losses.answer(module, batch.inputs), answers[batch.index])

    unlabelled = Arrays(train.inputs, np.zeros(300, dtype=np.int64))
    student = fit(_network(dropout=0.0), unlabelled, _moons(200, 1), settings, distill).module
    assert evaluate(student, _moons(300, 2))[1] > 0.88
    assert len(set(torch.cat(seen[:10]).tolist())) == 300


def test_fit_passes_inputs_by_name_when_the_module_has_several() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 8), nn.Linear(8, 2)

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head((self.words(tokens) * mask.unsqueeze(2)).sum(1))
            return scores

    random = np.random.default_rng(0)
    tokens = random.integers(0, 7, (300, 5))
    mask = np.ones((300, 5), dtype=np.float32)
    rows = Arrays({"mask": mask, "tokens": tokens}, (tokens == 3).any(axis=1).astype(np.int64))
    fitted = fit(Pair(), rows, rows, dataclasses.replace(SETTINGS, epochs=10, learning_rate=0.05))
    assert evaluate(fitted.module, rows)[1] > 0.95


def test_fit_drops_a_last_batch_of_one_row_when_it_would_break_normalisation() -> None:
    assert fit(_network(), _moons(33, 0), _moons(20, 1), SETTINGS).history


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": float("nan")}, {"label_smoothing": 1.0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_are_refused_when_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be .*got"):
        dataclasses.replace(SETTINGS, **wrong)


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_rate_factor_stays_within_bounds_when_training_goes_on(schedule: Schedule) -> None:
    factors = [rate_factor(schedule, progress, [1.0] * 9) for progress in np.linspace(0, 1, 101)]
    assert 0 <= min(factors) <= max(factors) <= 1
    assert len(factors) == 101


def test_rate_factor_follows_its_shape_when_asked() -> None:
    assert [rate_factor("step", progress) for progress in (0.49, 0.5, 0.75)] == pytest.approx([1, 0.1, 0.01])
    assert rate_factor("cosine_restarts", 1 / 7 + 1e-9) == pytest.approx(1, abs=1e-6)
    assert rate_factor("cosine_restarts", 3 / 7 + 1e-9) == pytest.approx(1, abs=1e-6)
    assert [rate_factor("plateau", 0, losses) for losses in ([3, 2, 1], [1, 2, 2, 2], [1, 2, 2, 2, 0.5, 1, 1, 1])] == pytest.approx(
        [1, 0.3, 0.09]
    )
    falling = [rate_factor("cosine", progress) for progress in np.linspace(0, 1, 50)]
    assert all(one > two for one, two in itertools.pairwise(falling))
    # A caller without types may ask for anything.
    unknown: Any = "linear"
    with pytest.raises(ValueError, match="schedule must be"):
        rate_factor(unknown, 0.5)


@pytest.mark.parametrize("shape", [(8, 12, 9), (8, 12, 9, 3)], ids=["hw", "hwc"])
def test_shift_pictures_moves_each_picture_whole_when_it_fits(shape: tuple[int, ...]) -> None:
    pictures = torch.zeros(shape, dtype=torch.uint8)
    pictures[:, 5, 4] = 7
    inputs: Mapping[str, torch.Tensor] = {"image": pictures}
    torch.manual_seed(0)
    moved = losses.shift_pictures(inputs)["image"]
    assert moved.shape == pictures.shape
    assert (moved.flatten(1).sum(1) == pictures.flatten(1).sum(1)).all()
    places = {tuple((picture.reshape(12, 9, -1)[..., 0] == 7).nonzero()[0].tolist()) for picture in moved}
    assert len(places) > 3, "each picture has its own shift"
    assert all(3 <= row <= 7 and 2 <= column <= 6 for row, column in places)


def test_shift_pictures_keeps_the_layout_when_floats_have_channels_first() -> None:
    pictures = torch.rand(4, 3, 6, 5)
    assert losses.shift_pictures({"image": pictures}, reach=0)["image"].equal(pictures)


def test_augmented_changes_only_what_the_loss_sees_when_training() -> None:
    seen: list[float] = []

    def double(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 2 * tensor for name, tensor in inputs.items()}

    def spy(module: nn.Module, batch: Minibatch) -> torch.Tensor:
        seen.append(float(batch.inputs["points"].abs().max()))
        return plain_loss()(module, batch)

    train = _moons(32, 0)
    loss: Loss = losses.augmented(spy, double)
    fit(_network(), train, train, dataclasses.replace(SETTINGS, epochs=1), loss)
    assert seen == pytest.approx([2 * np.abs(train.inputs["points"]).max()])
