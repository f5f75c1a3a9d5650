"""Networks of every kind of coupling that structured pruning must follow, and random ones made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, width: int, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.width, self.inner, self.groups = width, inner, groups
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Inverted(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, before: int, after: int, factor: int = 2) -> None:
        super().__init__()
        inner = before * factor
        self.expand = nn.Sequential(nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner), nn.PReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 4, 1), nn.ReLU(), nn.Conv2d(4, inner, 1), nn.Sigmoid())
        self.project = nn.Conv2d(inner, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.expand(x))
        answer: Tensor = self.project(x * self.gate(x))
        return answer


class Dense(nn.Module):
    """Adds new channels beside those that came, with a normalisation over both."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], dim=1)


class Shuffle(nn.Module):
    """One half goes on, the other is changed, and the two are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Conv2d(width // 2, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.change(right)], 1)
        rows, _, height, width = x.shape
        return x.view(rows, 2, -1, height, width).transpose(1, 2).flatten(1, 2)


class Attention(nn.Module):
    """Attention of one's own with a fused projection and normalised queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.size = width, heads, width // heads
        self.norm, self.quiet = nn.LayerNorm(width), nn.LayerNorm(self.size)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(rows, steps, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        weights = (self.quiet(q) @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(rows, steps, self.heads * self.size))
        return x + mixed


class Pictures(nn.Module):
    """Blocks on 8x8 pictures, read out through a flatten or a mean."""

    def __init__(self, blocks: list[nn.Module], width: int, flat: bool) -> None:
        super().__init__()
        self.blocks, self.flat = nn.Sequential(*blocks), flat
        self.head = nn.Sequential(nn.Linear(width * (16 if flat else 1), 12), nn.GELU(), nn.Linear(12, 3))

    def forward(self, picture: Tensor) -> Tensor:
        features = nn.functional.max_pool2d(self.blocks(picture), 2)
        scores: Tensor = self.head(features.flatten(1) if self.flat else features.mean((2, 3)))
        return scores


class Steps(nn.Module):
    """A small encoder over token ids: embedding, positions, torch's own layers or ours, mean, head."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, width), nn.Parameter(torch.randn(1, 16, width))
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[:, : tokens.shape[1]]
        scores: Tensor = self.head(self.blocks(x).mean(1))
        return scores


class Encoders(nn.Module):
    """torch's own encoder layers over token ids, built from numbers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = nn.Embedding(20, width)
        self.layers = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(self.embed(tokens)).mean(1))
        return scores


def random_pictures(seed: int) -> nn.Module:
    """Stack blocks of random kinds and widths on 3-channel pictures."""
    torch.manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, ()))

    width = 8 * (1 + below(3))
    blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)]
    for _ in range(2 + below(3)):
        kind = below(6)
        if kind == 0:
            blocks.append(Residual(width, 8 * (1 + below(2))))
        elif kind == 1:
            after = 8 * (1 + below(3))
            blocks.append(Inverted(width, after))
            width = after
        elif kind == 2:
            blocks.append(Dense(width, 8))
            width += 8
        elif kind == 3:
            blocks.append(Shuffle(width))
        elif kind == 4:
            blocks.append(Residual(width, 16, groups=(2, 4, 8)[below(3)]))
        else:
            blocks += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.AvgPool2d(3, 1, 1), nn.LeakyReLU()]
    return settled(Pictures(blocks, width, flat=bool(below(2))))


def random_steps(seed: int) -> nn.Module:
    """Stack attention and MLP blocks of random widths over tokens."""
    torch.manual_seed(seed)
    heads, size = 2 + seed % 3, 4 + 2 * (seed % 2)
    width = heads * size
    kinds = [
        nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=bool(seed % 2)),
        Attention(width, heads),
        nn.TransformerEncoderLayer(width, heads, 3 * width, 0.0, batch_first=bool(seed % 3)),
    ]
    return settled(Steps([kinds[int(at)] for at in torch.randperm(3)[: 1 + seed % 3]], width))


def settled(network: nn.Module) -> nn.Module:
    """Give every normalisation statistics of its own, as training would, so that a wrong channel shows."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.load_state_dict({**layer.state_dict(), "running_mean": torch.randn(layer.num_features)})
            layer.load_state_dict({**layer.state_dict(), "running_var": 0.5 + torch.rand(layer.num_features)})
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return network.eval()
