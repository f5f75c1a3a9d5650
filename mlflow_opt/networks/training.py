"""One training loop for every recipe that trains a network.

Why our own, and not Lightning or skorch: a recipe is read by people who know torch. With this loop they have to know one
function, `fit`, whose loss is a plain function of module and minibatch, so that distillation, mixup, L1 and fake
quantisation are a few lines in the recipe. Lightning asks for a LightningModule around every user's module and for its
Trainer, callbacks and loggers (its own MLflow logger among them, beside our one edge to MLflow); skorch fits the scikit-learn
way of calling but passes a loss only predictions and targets, so distillation needs a subclass. Both are the better choice
for several devices, mixed precision or streaming data, none of which a recipe for CPU deployment needs.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mlflow_opt.networks import checkpoints
from mlflow_opt.networks.checkpoints import Epoch, Progress
from mlflow_opt.networks.losses import Arrays, Loss, Minibatch, evaluate, plain_loss
from mlflow_opt.networks.schedules import Schedule, rate_factor

__all__ = [
    "Arrays",
    "DivergedError",
    "Epoch",
    "Fitted",
    "InterruptedTraining",
    "Loss",
    "Minibatch",
    "Schedule",
    "TrainSettings",
    "evaluate",
    "fit",
    "plain_loss",
]


class DivergedError(ValueError):
    """Training has run into a loss that is not a number."""


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Args:
        epochs: at most this many.
        batch_size: rows per step.
        learning_rate: the highest that the schedule reaches.
        schedule: see `schedules.rate_factor`.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        weight_decay: of weights; biases and normalisation are spared.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        l1: draws the weights towards zero by `rate * l1` after each step, where they stop: exact zeros. It is the proximal
            step of Beck, Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", kept apart from the gradient as
            AdamW keeps weight decay apart, because Adam would scale a gradient of |w| away. Biases and normalisation are spared.
        clip_norm: largest norm of the gradient, 0 for no limit.
        patience: stop after this many epochs without a better validation `monitor`, 0 for never.
        least_gain: relative improvement of the monitor below which an epoch does not count as better for `patience`; the best
            weights are kept all the same. A loss that creeps down for ever would otherwise never stop.
        monitor: what decides which epoch was best: validation `loss`, `score` (accuracy or R2), or `last`: the last one is kept,
            because the network changes its form during training (gradual pruning).
        seed: every random choice derives from it.
        device: `cpu`, `cuda`, ...; "" takes CUDA where it is.
        checkpoint: file to resume from and to write after every epoch, "" for none.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    l1: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    patience: int = 0
    least_gain: float = 0.0
    monitor: Literal["loss", "score", "last"] = "loss"
    seed: int = 0
    device: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}; give 1 or more.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}; 0.001 is a usual start for adamw.")
        if self.weight_decay < 0 or self.l1 < 0 or self.patience < 0:
            raise ValueError(
                f"weight_decay, l1 and patience must not be negative, got {self.weight_decay}, {self.l1} and {self.patience}; 0 is none."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}; 0.1 is usual.")


@dataclass(frozen=True)
class Fitted:
    """A trained module with the weights of its best epoch, in evaluation mode on the CPU, and how it got there."""

    module: nn.Module
    history: tuple[Epoch, ...]
    best: int

    @property
    def seconds(self) -> float:
        """Add up the time that the epochs took."""
        return sum(epoch.seconds for epoch in self.history)


class InterruptedTraining(KeyboardInterrupt):
    """Training was interrupted after at least one epoch; `so_far` is what it had reached, with its best weights."""

    def __init__(self, so_far: Fitted) -> None:
        super().__init__(f"training was interrupted after {len(so_far.history)} epochs")
        self.so_far = so_far


def fit(
    module: nn.Module,
    train: Arrays,
    validation: Arrays,
    settings: TrainSettings,
    loss: Loss | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Train a copy of a module and give it back with the weights of its best epoch.

    The same module, rows, settings and number of threads give the same weights. Where `settings.checkpoint` is a file
    that an interrupted call wrote, training goes on after its last epoch and ends as it would have. Patience may differ
    between the two calls: a training that stopped early goes on where it stopped.

    Args:
        module: any module that answers with one tensor: (n, classes) logits, or (n,) or (n, 1) values. Left unchanged.
        train: rows to learn from.
        validation: rows that decide which epoch was best; neither training nor gate rows.
        settings: how.
        loss: of a minibatch, `plain_loss(settings.label_smoothing)` if not given.
        on_epoch: called after each epoch, to log or to show it; it may raise to stop.

    Raises:
        DivergedError: if the loss is not a number.
        InterruptedTraining: on Ctrl-C; it carries the best weights so far.
        ValueError: if the checkpoint is unreadable or belongs to another training.

    """
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loss = loss or plain_loss(settings.label_smoothing)
    # Where it is computed and kept, and when it stops, is not what is trained.
    identity = f"{dataclasses.replace(settings, checkpoint='', device='', patience=0, least_gain=0.0)} on {len(train.targets)} rows"
    # The caller's random numbers are left as they were.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = copy.deepcopy(module).to(device)
        state = Progress(network, _optimizer(network, settings), [], 0, {})
        checkpoints.resume(state, settings.checkpoint, identity)
        try:
            while len(state.history) < settings.epochs and not _out_of_patience(state, settings):
                _run_epoch(state, train, validation, settings, loss)
                checkpoints.save(state, settings.checkpoint, identity)
                if on_epoch:
                    on_epoch(state.history[-1])
        except KeyboardInterrupt as stop:
            if not state.best:
                raise
            raise InterruptedTraining(_best_of(state)) from stop
    return _best_of(state)


def _best_of(state: Progress) -> Fitted:
    state.module.load_state_dict(state.best_weights)
    return Fitted(state.module.cpu().eval(), tuple(state.history), state.best)


def _run_epoch(state: Progress, train: Arrays, validation: Arrays, settings: TrainSettings, loss: Loss) -> None:
    started, number = time.perf_counter(), len(state.history)
    losses = [epoch.loss for epoch in state.history]
    device = next(state.module.parameters()).device
    total, seen, rate = 0.0, 0, 0.0
    state.module.train()
    for done, batch in _minibatches(train, settings.batch_size, device):
        rate = settings.learning_rate * rate_factor(settings.schedule, (number + done) / settings.epochs, losses)
        value = _step(state, batch, loss, rate, settings)
        _check_finite("training", value, number + 1, settings)
        total += value * len(batch.index)
        seen += len(batch.index)
    validation_loss, score = evaluate(state.module, validation)
    _check_finite("validation", validation_loss, number + 1, settings)
    epoch = Epoch(number + 1, total / seen, validation_loss, score, rate, time.perf_counter() - started)
    state.history.append(epoch)
    if state.best == 0 or settings.monitor == "last" or _merit(epoch, settings) > _merit(state.history[state.best - 1], settings):
        state.best = epoch.number
        state.best_weights = {name: tensor.detach().clone() for name, tensor in state.module.state_dict().items()}


def _check_finite(where: str, loss: float, epoch: int, settings: TrainSettings) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss must be a number, got {loss} in {where} in epoch {epoch}; lower learning_rate (now {settings.learning_rate:g}),"
            " set clip_norm=1, or look for NaN and huge values in the inputs."
        )


def _merit(epoch: Epoch, settings: TrainSettings) -> float:
    return epoch.score if settings.monitor == "score" else -epoch.loss


def _minibatches(rows: Arrays, size: int, device: torch.device) -> Iterator[tuple[float, Minibatch]]:
    """Yield the share of the epoch that is done and the next rows, in a new random order."""
    inputs = {name: torch.from_numpy(array) for name, array in rows.inputs.items()}
    targets = torch.from_numpy(rows.targets)
    order = torch.randperm(len(targets))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        # Batch normalisation has no variance of one row.
        if len(index) == 1 and start:
            return
        yield (
            start / len(order),
            Minibatch({name: tensor[index].to(device) for name, tensor in inputs.items()}, targets[index].to(device), index),
        )


def _step(state: Progress, batch: Minibatch, loss: Loss, rate: float, settings: TrainSettings) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad()
    value = loss(state.module, batch)
    # torch ships no type for it.
    value.backward()  # type: ignore[no-untyped-call]
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(state.module.parameters(), settings.clip_norm)
    state.optimizer.step()
    if settings.l1:
        _shrink(state.optimizer.param_groups[0]["params"], rate * settings.l1)
    return value.item()


@torch.no_grad()
def _shrink(weights: list[nn.Parameter], by: float) -> None:
    for weight in weights:
        weight.copy_(torch.sign(weight) * torch.relu(weight.abs() - by))


def _optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _out_of_patience(state: Progress, settings: TrainSettings) -> bool:
    return bool(settings.patience) and len(state.history) - _last_gain(state.history, settings) >= settings.patience


def _last_gain(history: list[Epoch], settings: TrainSettings) -> int:
    """Number the last epoch that was better than all before it by enough to count; 0 before the first."""
    last, best = 0, -math.inf
    for epoch in history:
        merit = _merit(epoch, settings)
        if last == 0 or merit > best + settings.least_gain * abs(best):
            last, best = epoch.number, merit
    return last
