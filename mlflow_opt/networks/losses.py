"""What a network is trained on and how its answers are judged: minibatches, losses, evaluation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EVALUATION_ROWS = 512


@dataclass(frozen=True)
class Arrays:
    """Rows to train or validate with.

    Args:
        inputs: one array per argument of the module's `forward`, rows first.
        targets: integer class numbers (a classifier), or floats (a regression).
    """

    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray


@dataclass(frozen=True)
class Minibatch:
    """Some rows as tensors; `index` are their positions in the training arrays (a teacher's answers are looked up by it)."""

    inputs: Mapping[str, Tensor]
    targets: Tensor
    index: Tensor


Loss = Callable[[nn.Module, Minibatch], Tensor]


def plain_loss(label_smoothing: float = 0.0) -> Loss:
    """Make the usual loss: cross-entropy for integer targets, mean squared error for floats."""

    def loss(module: nn.Module, batch: Minibatch) -> Tensor:
        return compare(answer(module, batch.inputs), batch.targets, label_smoothing)

    return loss


def augmented(loss: Loss, change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Loss:
    """Make a loss that sees changed inputs (`change` draws from torch's global generator, which `fit` seeds)."""

    def changed(module: nn.Module, batch: Minibatch) -> Tensor:
        return loss(module, dataclasses.replace(batch, inputs=change(batch.inputs)))

    return changed


def shift_pictures(inputs: Mapping[str, Tensor], reach: int = 2) -> dict[str, Tensor]:
    """Move every picture by up to `reach` pixels each way: a change that is harmless to clothes, digits and scans alike.

    Args:
        inputs: (n, height, width), uint8 (n, height, width, channels) or float (n, channels, height, width).
        reach: pixels.

    """
    return {name: _shifted(pictures, reach) for name, pictures in inputs.items()}


def _shifted(pictures: Tensor, reach: int) -> Tensor:
    if pictures.ndim == 4 and pictures.is_floating_point():
        return _windows(pictures.permute(0, 2, 3, 1), reach).permute(0, 3, 1, 2)
    return _windows(pictures, reach)


def _windows(pictures: Tensor, reach: int) -> Tensor:
    """Cut a window of the same size out of each picture, widened by `reach` black pixels, at a random place."""
    rows, height, width = pictures.shape[:3]
    edge = [0] * (2 * (pictures.ndim - 3))
    padded = F.pad(pictures, [*edge, reach, reach, reach, reach])
    down, right = torch.randint(0, 2 * reach + 1, (2, rows, 1), device=pictures.device)
    down = down + torch.arange(height, device=pictures.device)
    right = right + torch.arange(width, device=pictures.device)
    return padded[torch.arange(rows, device=pictures.device)[:, None, None], down[:, :, None], right[:, None, :]]


def answer(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a module with its inputs by name where `forward` has these names, else in their order."""
    known = inspect.signature(module.forward).parameters
    scores: Tensor = module(**inputs) if all(name in known for name in inputs) else module(*inputs.values())
    return scores


def evaluate(module: nn.Module, rows: Arrays) -> tuple[float, float]:
    """Compute a module's mean loss (cross-entropy or squared error) and score (accuracy or R2), in evaluation mode."""
    scores = scores_of(module, rows.inputs)
    targets = torch.from_numpy(rows.targets)
    loss = float(compare(scores, targets, 0.0))
    if not targets.is_floating_point():
        return loss, float((scores.argmax(1) == targets).double().mean())
    return loss, 1 - loss / float(targets.double().var(correction=0).clamp_min(1e-12))


def scores_of(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> Tensor:
    """Compute a module's answers to many rows, in evaluation mode and without gradients, on the CPU."""
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    rows = len(next(iter(inputs.values())))
    with torch.no_grad():
        answers = []
        for start in range(0, rows, _EVALUATION_ROWS):
            chunk = {name: torch.from_numpy(array[start : start + _EVALUATION_ROWS]).to(device) for name, array in inputs.items()}
            answers.append(answer(module, chunk).cpu())
    module.train(was_training)
    return torch.cat(answers)


def compare(scores: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Compute the mean cross-entropy for integer targets, the mean squared error for floats."""
    if targets.is_floating_point():
        return F.mse_loss(scores.reshape(targets.shape), targets)
    return F.cross_entropy(scores, targets, label_smoothing=label_smoothing)
