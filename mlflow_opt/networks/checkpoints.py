"""Checkpoints of a training: after every epoch, everything that the next one depends on."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean training loss, validation loss and score (accuracy or R2), and the time it took."""

    number: int
    train_loss: float
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass
class Progress:
    """What a checkpoint holds: everything that the next epoch depends on."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[Epoch]
    best: int
    best_weights: dict[str, Any]


def save(progress: Progress, path: str, identity: str) -> None:
    """Write a checkpoint; nothing if `path` is "".

    Args:
        progress: after an epoch.
        path: file to write or replace.
        identity: what training it belongs to; `resume` refuses another one.

    """
    if not path:
        return
    content = {
        "identity": identity,
        "module": progress.module.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "history": [dataclasses.astuple(epoch) for epoch in progress.history],
        "best": progress.best,
        "best_weights": progress.best_weights,
        "random": torch.get_rng_state(),
    }
    # Renamed only when complete, so that a kill in between leaves the checkpoint of before.
    # The process's own name for it: two runs of one recipe at the same time write the same content.
    unfinished = Path(f"{path}.{os.getpid()}.unfinished")
    torch.save(content, unfinished)
    unfinished.replace(path)


def resume(progress: Progress, path: str, identity: str) -> None:
    """Go on from a checkpoint, random numbers included; nothing if there is none.

    Raises:
        ValueError: if it belongs to another training.

    """
    if not path or not Path(path).exists():
        return
    content = _load(path)
    if content["identity"] != identity:
        raise ValueError(
            f"a checkpoint must be of the same training, got {path} of {content['identity']} for {identity};"
            " delete it, or name another file."
        )
    progress.module.load_state_dict(content["module"])
    progress.optimizer.load_state_dict(content["optimizer"])
    progress.history = [Epoch(*values) for values in content["history"]]
    progress.best, progress.best_weights = content["best"], content["best_weights"]
    torch.set_rng_state(content["random"])
    logger.info("going on after epoch %d from %s", len(progress.history), path)


def restore_best(module: nn.Module, path: str) -> tuple[Epoch, ...]:
    """Give a module the best weights of a training that was interrupted, and tell the epochs it had.

    Args:
        module: the module that was trained; it is changed.
        path: the checkpoint.

    Raises:
        ValueError: if there is none.

    """
    content = _load(path)
    module.load_state_dict(content["best_weights"])
    return tuple(Epoch(*values) for values in content["history"])


def _load(path: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    # What torch's restricted unpickler raises on a file that is none of its own.
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"a checkpoint must be readable, got {path}: {error}; delete it to start anew.") from error
    return content
