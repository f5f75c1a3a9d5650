"""Tiny networks of every kind with tiny data, saved as a user would: digits, numbers, series, token ids with a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A transformer encoder of one layer over token ids; the mask is 1 for words and 0 for padding."""

    def __init__(self, vocabulary: int = 20, width: int = 16, outputs: int = 2) -> None:
        super().__init__()
        self.vocabulary, self.width, self.outputs = vocabulary, width, outputs
        self.embedding = nn.Embedding(vocabulary, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answer (n, outputs)."""
        words = self.embedding(input_ids)
        weights = self.query(words) @ self.key(words).transpose(1, 2) / self.width**0.5
        weights = weights.masked_fill(attention_mask[:, None, :] == 0, -1e4).softmax(-1)
        words = self.norm(words + weights @ self.value(words))
        words = words + self.outer(torch.relu(self.inner(words)))
        mask = attention_mask[:, :, None].to(words.dtype)
        scores: Tensor = self.head((words * mask).sum(1) / mask.sum(1).clamp_min(1.0))
        return scores


class Memory(nn.Module):
    """An LSTM whose last state is read out, for a regression."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.memory = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        """Answer (n, 1)."""
        states, _ = self.memory(series)
        scores: Tensor = self.head(states[:, -1])
        return scores


class Depthwise(nn.Module):
    """A convolution, a depthwise one and a pointwise one with batch normalisation, over 8 x 8 digits."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Answer (n, 10)."""
        features = nn.functional.max_pool2d(self.point(self.depth(self.stem(images))), 2)
        scores: Tensor = self.head(features.flatten(1))
        return scores


@dataclass(frozen=True)
class Case:
    """A data file and the folder of a model for it."""

    data: Path
    model: Path


def digits(folder: Path, *, rows: int = 600) -> Case:
    """Take handwritten digits and a depthwise network, trained a little."""
    from sklearn.datasets import load_digits

    found = load_digits()
    arrays = {"images": (found.images[:rows, None] / 16).astype(np.float32)}
    return _case(folder, "digits", Depthwise(), arrays, found.target[:rows])


def perceptron(folder: Path, *, rows: int = 400, classes: int = 2) -> Case:
    """Make numbers whose products matter and a perceptron of torch's own layers; one class means a regression."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 6)).astype(np.float32)
    value = numbers[:, 0] * numbers[:, 1] + numbers[:, 2]
    target = (value > 0).astype(np.int64) if classes > 1 else 40 + 10 * value
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))
    return _case(folder, f"perceptron{classes}", network, {"numbers": numbers}, target)


def series(folder: Path, *, rows: int = 400) -> Case:
    """Make waves whose next values an LSTM predicts."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 6, (rows, 1))
    steps = np.arange(12)[None, :] * 0.5
    waves = (np.sin(start + steps) + 0.05 * rng.normal(size=(rows, 12))).astype(np.float32)
    return _case(folder, "series", Memory(), {"series": waves[:, :, None]}, np.sin(start[:, 0] + 8) * 5 + 20)


def tokens(folder: Path, *, rows: int = 400) -> Case:
    """Make sentences of token ids with padding; the label says whether word 3 occurs more often than word 4."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (rows, 8))
    mask = (np.arange(8)[None, :] < rng.integers(4, 9, (rows, 1))).astype(np.int64)
    ids = np.where(rng.random((rows, 8)) < 0.4, rng.integers(3, 5, (rows, 8)), ids) * mask
    target = ((ids == 3).sum(1) > (ids == 4).sum(1)).astype(np.int64)
    return _case(folder, "tokens", Encoder(), {"input_ids": ids, "attention_mask": mask}, target)


def save(module: nn.Module, folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Save a module as an MLflow model with the signature of its arrays."""
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [TensorSpec(array.dtype, (-1, *array.shape[1:]), name) for name, array in arrays.items()]
    if len(inputs) == 1:
        (only,) = arrays.values()
        inputs = [TensorSpec(only.dtype, (-1, *only.shape[1:]))]
    with torch.no_grad():
        answer = module.eval()(*(torch.from_numpy(array[:2]) for array in arrays.values())).numpy()
    signature = ModelSignature(Schema(inputs), Schema([TensorSpec(answer.dtype, (-1, *answer.shape[1:]))]))
    kept: dict[str, Any] = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(module, str(folder), signature=signature, **kept)
    return folder


def _case(folder: Path, name: str, module: nn.Module, arrays: Mapping[str, np.ndarray], target: np.ndarray) -> Case:
    from mlflow_opt.networks.training import Arrays, TrainSettings, fit

    kept: dict[str, Any] = {**arrays, "target": target}
    np.savez(folder / f"{name}.npz", **kept)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in module.modules():
            draw: Any = getattr(layer, "reset_parameters", None)
            if draw is not None:
                draw()
    targets = target.astype(np.float32) if target.dtype.kind == "f" else target
    rows = Arrays(dict(arrays), targets)
    trained = fit(module, rows, rows, TrainSettings(epochs=6, batch_size=32, learning_rate=0.01)).module
    return Case(folder / f"{name}.npz", save(trained, folder / name, arrays))
