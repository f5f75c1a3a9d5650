"""The default networks. They import torch alone, because a saved model carries this file to where mlflow_opt is not installed."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

Layout = Literal["hw", "hwc", "chw"]


class ResNet(nn.Module):
    """A small residual network in the layout of ResNet-18: 20 convolutions in four stages.

    The first convolution halves the picture, in place of ResNet-18's larger stem for 224 pixels, and the stages are half
    as wide. Source: He et al. 2016, "Deep residual learning for image recognition".

    Args:
        channels: of a picture.
        outputs: classes, or 1 for a regression.
        layout: `hw` (n, height, width), `hwc` or `chw`.
        divisor: what pixels are divided by, 255 for uint8.
        width: channels of the first stage; each further stage has twice as many.
    """

    def __init__(self, channels: int, outputs: int, layout: Layout = "hw", divisor: float = 255.0, width: int = 32) -> None:
        super().__init__()
        # Kept, so that the network can be built again from what it says of itself.
        self.channels, self.outputs, self.width = channels, outputs, width
        self.layout, self.divisor = layout, divisor
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Residual(before, after, 1 if before == after else 2), Residual(after, after, 1))
                for before, after in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Answer pictures as they are in the data, uint8 or float, with (n, outputs) logits."""
        if self.layout == "hw":
            image = image.unsqueeze(1)
        elif self.layout == "hwc":
            image = image.permute(0, 3, 1, 2)
        pixels = image.to(self.head.weight.dtype) / self.divisor
        features = self.stages(self.stem(pixels)).mean(dim=(2, 3))
        scores: Tensor = self.head(features)
        return scores


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        """Add what the body found to what came."""
        return torch.relu(self.body(features) + self.shortcut(features))


class Perceptron(nn.Module):
    """Two hidden layers over standardised numbers.

    Args:
        mean, spread: of each number in the training rows, shape (numbers,).
        outputs: classes, or 1 for a regression.
        width: of the hidden layers.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, outputs: int, width: int = 256) -> None:
        super().__init__()
        self.outputs, self.width = outputs, width
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.layers = nn.Sequential(
            nn.Linear(len(mean), width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )

    def forward(self, numbers: Tensor) -> Tensor:
        """Answer (n, numbers) with (n, outputs)."""
        scores: Tensor = self.layers((numbers.to(self.mean.dtype) - self.mean) / self.spread)
        return scores


class Recurrent(nn.Module):
    """One GRU over standardised steps; its last state is read out.

    Args:
        mean, spread: of each number in the training rows, shape (numbers,).
        outputs: classes, or 1 for a regression.
        width: of the state.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.outputs, self.width = outputs, width
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.memory = nn.GRU(len(mean), width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, series: Tensor) -> Tensor:
        """Answer (n, steps, numbers) with (n, outputs)."""
        states, _ = self.memory((series.to(self.mean.dtype) - self.mean) / self.spread)
        scores: Tensor = self.head(states[:, -1])
        return scores


class BagOfEmbeddings(nn.Module):
    """The mean of the words' vectors and a hidden layer: the smallest student of a transformer.

    Source: Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods for text classification".

    Args:
        vocabulary: number of token ids.
        outputs: classes, or 1 for a regression.
        width: of a vector and of the hidden layer.
    """

    def __init__(self, vocabulary: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.vocabulary, self.outputs, self.width = vocabulary, outputs, width
        self.words = nn.Embedding(vocabulary, width)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answer (n, tokens) ids with (n, outputs); the mask is 1 for words and 0 for padding."""
        mask = attention_mask.unsqueeze(-1).to(self.words.weight.dtype)
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp_min(1.0)
        scores: Tensor = self.head(torch.relu(self.hidden(mean)))
        return scores


class Rescaled(nn.Module):
    """A regression network whose answers are near 0 and 1, in the target's own units.

    Args:
        network: answers with (n, 1).
        mean, spread: of the target in the training rows.
    """

    def __init__(self, network: nn.Module, mean: float, spread: float) -> None:
        super().__init__()
        self.network, self.mean, self.spread = network, mean, spread

    def forward(self, values: Tensor) -> Tensor:
        """Answer with (n,)."""
        scores: Tensor = self.network(values).squeeze(1) * self.spread + self.mean
        return scores
