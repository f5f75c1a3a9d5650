"""Networks whose shape is an argument, for architecture search. They import torch alone: a variant carries this file along."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layout = Literal["hw", "hwc", "chw"]
Stage = dict[str, Any]
# `{"outputs", "shift", "spread"}`: classes, or 1 for a regression, whose answers are in the target's own units.
Target = dict[str, Any]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "hardswish": nn.Hardswish}


class SearchedCNN(nn.Module):
    """Stages of convolution blocks over pictures.

    A stage is `{"width", "depth", "kernel", "expansion", "stride", "skip"}`. With an expansion its blocks are MobileNetV2's:
    widened by a 1 x 1 convolution, a depthwise one, narrowed again (Sandler et al. 2018, "MobileNetV2: inverted residuals and
    linear bottlenecks"); with expansion 0 they are one plain convolution. `skip` adds what came in where the shape allows it.

    Args:
        picture: `{"channels", "layout", "divisor"}`: `hw` (n, height, width), `hwc` or `chw`, and what pixels are divided by.
        target: see `Target`.
        stages: see above.
        stem: channels of the first convolution.
        stem_stride: 2 halves the picture at once.
        head: channels of a last 1 x 1 convolution, 0 for none.
    """

    def __init__(
        self,
        picture: dict[str, Any],
        target: Target,
        stages: Sequence[Stage],
        stem: int = 16,
        stem_stride: int = 2,
        head: int = 0,
    ) -> None:
        super().__init__()
        self.picture, self.target, self.stages = picture, target, list(stages)
        self.stem, self.stem_stride, self.head = stem, stem_stride, head
        self.first = _convolution(picture["channels"], stem, 3, stem_stride)
        widths = [stem, *(stage["width"] for stage in stages)]
        self.body = nn.Sequential(
            *(
                nn.Sequential(*(Block(before if at == 0 else after, stage, first=at == 0) for at in range(stage["depth"])))
                for (before, after), stage in zip(itertools.pairwise(widths), stages, strict=True)
            )
        )
        self.last = _convolution(widths[-1], head, 1, 1) if head else nn.Identity()
        self.scores = nn.Linear(head or widths[-1], target["outputs"])

    def forward(self, image: Tensor) -> Tensor:
        """Answer pictures as they are in the data, uint8 or float, with (n, outputs)."""
        if self.picture["layout"] == "hw":
            image = image.unsqueeze(1)
        elif self.picture["layout"] == "hwc":
            image = image.permute(0, 3, 1, 2)
        pixels = image.to(self.scores.weight.dtype) / self.picture["divisor"]
        features = self.last(self.body(self.first(pixels)))
        return _in_units(self.scores(features.mean(dim=(2, 3))), self.target)


class Block(nn.Module):
    """One block of a stage of `SearchedCNN`."""

    def __init__(self, before: int, stage: Stage, *, first: bool) -> None:
        super().__init__()
        after, kernel, expansion = stage["width"], stage["kernel"], stage["expansion"]
        stride = stage["stride"] if first else 1
        self.adds = bool(stage["skip"]) and stride == 1 and before == after
        if expansion == 0:
            self.path: nn.Module = _convolution(before, after, kernel, stride)
            return
        inner = before * expansion
        widen = [_convolution(before, inner, 1, 1)] if expansion > 1 else []
        narrow = nn.Sequential(nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after))
        self.path = nn.Sequential(*widen, _convolution(inner, inner, kernel, stride, groups=inner), narrow)

    def forward(self, features: Tensor) -> Tensor:
        """Answer features, added to what came in where that fits."""
        found: Tensor = self.path(features)
        return features + found if self.adds else found


class SearchedMLP(nn.Module):
    """Layers over standardised numbers.

    Args:
        features: how many numbers.
        target: see `Target`.
        widths: of the hidden layers.
        activation: `relu`, `gelu`, `silu` or `tanh`.
        normalise: whether each hidden layer is followed by batch normalisation, which costs nothing once exported.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        features: int,
        target: Target,
        widths: Sequence[int],
        activation: str = "relu",
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.target, self.widths = features, target, list(widths)
        self.activation, self.normalise = activation, normalise
        # Set from the train rows by whoever builds it.
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([features, *widths]):
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if normalise else []), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.scores = nn.Linear(widths[-1] if widths else features, target["outputs"])

    def forward(self, numbers: Tensor) -> Tensor:
        """Answer (n, features) with (n, outputs)."""
        return _in_units(self.scores(self.layers((numbers.to(self.mean.dtype) - self.mean) / self.scale)), self.target)


class SearchedEncoder(nn.Module):
    """A small transformer encoder over token ids (0 pads) or series of numbers, read out by the mean over steps.

    Args:
        target: see `Target`.
        sequence: `{"steps", "vocabulary", "features"}`: the most steps, token ids (0 for series), numbers a step (0 for tokens).
        width: of the embedding.
        heads: of each attention; a divisor of the width.
        depth: encoder blocks.
        expansion: of each block's MLP.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        target: Target,
        sequence: dict[str, int],
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.target, self.sequence = target, sequence
        self.width, self.heads, self.depth, self.expansion = width, heads, depth, expansion
        steps, vocabulary, features = sequence["steps"], sequence["vocabulary"], sequence["features"]
        self.register_buffer("mean", torch.zeros(max(features, 1)))
        self.register_buffer("scale", torch.ones(max(features, 1)))
        self.embed: nn.Module = nn.Embedding(vocabulary, width, padding_idx=0) if vocabulary else nn.Linear(features, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, steps, width))
        self.blocks = nn.ModuleList(Encoder(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, target["outputs"])

    def forward(self, steps: Tensor) -> Tensor:
        """Answer (n, steps) ids or (n, steps, features) numbers with (n, outputs)."""
        is_ids = bool(self.sequence["vocabulary"])
        known = (steps != 0).to(self.place.dtype) if is_ids else torch.ones_like(steps[:, :, 0], dtype=self.place.dtype)
        x = self.embed(steps if is_ids else (steps.to(self.mean.dtype) - self.mean) / self.scale) + self.place[:, : steps.shape[1]]
        hidden = ((1 - known) * -1e4)[:, None, None, :]
        for block in self.blocks:
            x = block(x, hidden)
        shares = known / known.sum(dim=1, keepdim=True).clamp_min(1.0)
        return _in_units(self.scores((self.norm(x) * shares.unsqueeze(-1)).sum(dim=1)), self.target)


class Encoder(nn.Module):
    """Attention and an MLP, each added to what came in, normalised before."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.quiet, self.calm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Answer steps; `hidden` is added to every score and hides the padding."""
        rows, steps, _ = x.shape
        q, k, v = (one.reshape(rows, steps, self.heads, -1).transpose(1, 2) for one in self.ask(self.quiet(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, hidden).transpose(1, 2).reshape(rows, steps, -1)
        x = x + self.mix(mixed)
        found: Tensor = x + self.layers(self.calm(x))
        return found


def mobilenet_stages(multiplier: float, small: bool) -> list[Stage]:
    """List the stages of MobileNetV2, table 2 of Sandler et al. 2018.

    Args:
        multiplier: of the widths, which are rounded to multiples of 8.
        small: for pictures below 64 pixels: two of the four later halvings are left out.
    """
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 1 if small else 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 1 if small else 2),
        (6, 320, 1, 1),
    ]
    return [
        {"width": _rounded(width * multiplier), "depth": depth, "kernel": 3, "expansion": factor, "stride": stride, "skip": True}
        for factor, width, depth, stride in rows
    ]


def _in_units(found: Tensor, target: Target) -> Tensor:
    return found if target["spread"] == 1.0 and target["shift"] == 0.0 else found * target["spread"] + target["shift"]


def _rounded(width: float) -> int:
    return max(8, int(width + 4) // 8 * 8)


def _convolution(before: int, after: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6() if groups > 1 else nn.ReLU())
