"""The same rows under fixed noise and fixed damage: what a pruned network loses first, before its score on clean rows falls.

Reference: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations";
Hooker et al. 2019, "What do compressed deep neural networks forget?".
"""

from __future__ import annotations

import numpy as np

from mlflow_opt import measure
from mlflow_opt.data import Batch, Part
from mlflow_opt.measurement.own_metrics import OwnMetric
from mlflow_opt.models import Model
from mlflow_opt.records import Task

# Noise in standard deviations of the rows' own values; of a row's numbers or tokens this share is damaged.
NOISE, DAMAGED = 0.3, 0.15
# Never the recipe's seed: every variant of every run meets the same noise.
_SEED = 20_19


def robustness(model: Model, part: Part, task: Task, headline: str, own: OwnMetric | None = None) -> dict[str, float]:
    """Score a model on noisy and on damaged rows.

    Args:
        model: what is scored.
        part: rows with labels; arrays, not a table.
        task: what is predicted.
        headline: the metric to give.
        own: the user's own metric.

    Returns:
        `noisy_<metric>` and `damaged_<metric>`.
    """
    found = {}
    for name, change in (("noisy", noisy), ("damaged", damaged)):
        rows = change(part.rows)
        found[f"{name}_{headline}"] = measure.quality(model, Part(part.name, rows, part.labels, part.digest), task, own).values[headline]
    return found


def noisy(rows: Batch) -> dict[str, np.ndarray]:
    """Add noise to every array of numbers: normal, of 0.3 standard deviations of the array; tokens are left alone.

    Args:
        rows: arrays, rows first.

    Raises:
        TypeError: the rows are a table.
    """
    rng = np.random.default_rng(_SEED)
    return {name: _noisy(array, rng) for name, array in _arrays(rows).items()}


def damaged(rows: Batch) -> dict[str, np.ndarray]:
    """Damage every row: a grey square in a picture, mean values in place of numbers, other rows' tokens in place of tokens.

    Args:
        rows: arrays, rows first.

    Raises:
        TypeError: the rows are a table.
    """
    rng = np.random.default_rng(_SEED)
    return {name: _damaged(array, rng) for name, array in _arrays(rows).items()}


def _arrays(rows: Batch) -> dict[str, np.ndarray]:
    if not isinstance(rows, dict):
        raise TypeError("noise is added to arrays, the data are a table; give an npz.")
    return rows


def _is_tokens(array: np.ndarray) -> bool:
    return array.dtype.kind in "iub" and array.dtype != np.uint8


def _noisy(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if _is_tokens(array):
        return array
    values = array + rng.normal(0, NOISE * float(array.std()) + 1e-12, array.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8) if array.dtype == np.uint8 else values.astype(array.dtype)


def _damaged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    made = array.copy()
    if array.ndim >= 3 and not _is_tokens(array):
        _cover(made, rng)
    elif array.ndim > 1:
        hit = rng.random(array.shape) < DAMAGED
        made[hit] = array[rng.permutation(len(array))][hit] if _is_tokens(array) else np.broadcast_to(array.mean(axis=0), array.shape)[hit]
    return made


def _cover(pictures: np.ndarray, rng: np.random.Generator) -> None:
    # uint8 pictures are (n, height, width[, channels]), float ones (n, channels, height, width) or without channels.
    first = 1 if pictures.dtype == np.uint8 or pictures.ndim == 3 else 2
    height, width = pictures.shape[first : first + 2]
    tall, wide = (max(1, round(DAMAGED**0.5 * size)) for size in (height, width))
    tops, lefts = rng.integers(0, height - tall + 1, len(pictures)), rng.integers(0, width - wide + 1, len(pictures))
    grey = np.asarray(pictures.mean()).astype(pictures.dtype)
    for picture, top, left in zip(pictures, tops, lefts, strict=True):
        area = picture if first == 1 else np.moveaxis(picture, 0, -1)
        area[top : top + tall, left : left + wide] = grey
