"""A small convolutional network and the pictures it was trained on: noisy stripes of four kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def pictures(folder: Path, *, seed: int = 0, rows: int = 1200) -> Path:
    """Write an npz of noisy 12x12 pictures whose stripes say the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 4
    wave = np.sin(np.arange(12) * 1.3)
    patterns = np.stack([np.tile(wave, (12, 1)), np.tile(wave, (12, 1)).T, np.outer(wave, wave), -np.outer(wave, wave)])
    image = patterns[labels] + rng.normal(0, 0.6, (rows, 12, 12))
    path = folder / "pictures.npz"
    np.savez(path, image=image.astype(np.float32), target=labels)
    return path


def cnn(folder: Path, data: Path, *, width: int = 16, epochs: int = 12) -> Path:
    """Train a small convolutional network on the pictures and save it as an MLflow model."""
    import mlflow
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    torch.manual_seed(0)
    arrays = np.load(data)
    module = _network(width)
    images, labels = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["target"])
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(epochs):
        for at in range(0, len(images), 128):
            loss = torch.nn.functional.cross_entropy(module(images[at : at + 128]), labels[at : at + 128])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, 12, 12))])
    signature = ModelSignature(inputs, Schema([TensorSpec(np.dtype("float32"), (-1, 4))]))
    path = folder / "cnn"
    mlflow.pytorch.save_model(module.eval(), path, signature=signature, pip_requirements=["torch"], serialization_format="pickle")
    return path


def _network(width: int) -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(width * 16, 4),
    )
