"""A search space of one's own for `nas`: what may be tried, and the network that each trial's answers make.

    mlflow run . -e nas -P data=pictures.npz -P space=examples/network_space.py:space

The class lies in this file, imports torch alone and keeps its arguments as attributes of the same names: so what is found can
be registered with its network, and pruned, distilled or quantised afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from optuna.trial import Trial


class Pooled(nn.Module):
    """Convolutions over uint8 pictures (n, height, width), halved by pooling after each, with a hidden layer behind them.

    Args:
        widths: channels of each convolution.
        kernel: of all of them.
        hidden: neurons behind them.
        outputs: classes.
    """

    def __init__(self, widths: list[int], kernel: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.widths, self.kernel, self.hidden, self.outputs = widths, kernel, hidden, outputs
        layers: list[nn.Module] = []
        for before, after in zip([1, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.scores = nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, picture: Tensor) -> Tensor:
        """Answer (n, height, width) with (n, outputs)."""
        found = self.features(picture.unsqueeze(1).to(torch.float32) / 255)
        scores: Tensor = self.scores(found.mean(dim=(2, 3)))
        return scores


def space(trial: Trial, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the network that a trial proposes.

    Args:
        trial: of Optuna; its `suggest_*` methods are the space.
        shape: of one row of the data.
        outputs: numbers that the network must answer a row.
    """
    # Pooling halves the picture: as many convolutions as leave something of it.
    depth = trial.suggest_int("depth", 1, 3 if min(shape) >= 8 else 2)
    widths = [trial.suggest_int(f"width_{at}", 8, 32, step=8) for at in range(3)][:depth]
    return Pooled(widths, trial.suggest_categorical("kernel", (3, 5)), trial.suggest_int("hidden", 16, 64, step=16), outputs)
