"""The default models, trained when a recipe is given none: gradient-boosted trees for a table, a network for arrays.

They are what a user would plausibly have in production, so that a recipe's gain over them means something: not tuned, not
weakened. Nothing here looks at selection or gate rows.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_opt.data import Part, Split
from mlflow_opt.records import Task
from mlflow_opt.rows.batches import Batch, take
from mlflow_opt.tables.table_models import default_pipeline

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mlflow_opt.networks.training import Arrays, Loss, TrainSettings

logger = logging.getLogger(__name__)

# What LightGBM keeps outside of scikit-learn's own types; all of it is plain data or LightGBM's own loader.
_TRUSTED = ("collections.OrderedDict", "lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor")


def train_baseline(split: Split, folder: Path, seed: int) -> Path:
    """Train the default model for a data set and save it as an MLflow model.

    Helps to try a recipe on data before there is a model. It is no substitute for one: nothing is tuned.

    - A table: ordinal codes for texts, 300 LightGBM trees (scikit-learn flavour, skops format). Dates are left out.
    - uint8 pictures (n, height, width[, channels]) or float ones (n, channels, height, width): a ResNet with 20 convolutions,
      which takes the pictures as they are.
    - Numbers (n, f): a perceptron. Series (n, steps, f) of floats: a GRU.

    Args:
        split: the train rows teach; networks keep the epoch that is best on the calibration rows.
        folder: where to save it; must not exist or be empty.
        seed: every random choice derives from it; the same seed and number of threads give the same model.

    Returns:
        The folder, which `mlflow.pyfunc.load_model` reads.

    Raises:
        ValueError: if there is no default for such data.

    """
    rows = split.train.rows
    if isinstance(rows, pd.DataFrame):
        return _save_pipeline(train_pipeline(rows, split.train.labels, split.task, seed), rows, folder)
    return save_network(train_network(split, seed), next(iter(rows.values())), folder)


def train_pipeline(rows: pd.DataFrame, labels: np.ndarray, task: Task, seed: int) -> Any:
    """Train the default pipeline for a table.

    Raises:
        ValueError: if there are only date columns.

    """
    return default_pipeline(rows, task, seed).fit(rows, labels)


def train_network(split: Split, seed: int) -> nn.Module:
    """Train the default network for one array of pictures, numbers or series.

    Raises:
        ValueError: if there are several arrays, missing values, or a shape that no default network takes.

    """
    import torch

    from mlflow_opt.networks.networks import Rescaled, ResNet
    from mlflow_opt.networks.training import fit

    _check_complete(split.dataset.rows)
    # The caller's random numbers are left as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(_only_array(split.train.rows), max(len(split.task.classes), 1))
    is_picture = isinstance(network, ResNet)
    fitted = fit(
        # Oriented this way convolutions train about a fifth faster on a CPU; other weights have no such order.
        _oriented(network, torch.channels_last if is_picture else torch.contiguous_format),
        _arrays(split, split.train),
        _arrays(split, split.calibration),
        _settings(is_picture, len(split.train.labels), seed),
        _loss(is_picture),
        lambda epoch: logger.info("epoch %d: loss %.3f, score %.3f, %.1f s", epoch.number, epoch.loss, epoch.score, epoch.seconds),
    )
    trained = _oriented(fitted.module, torch.contiguous_format)
    if split.task.classes:
        return trained
    return Rescaled(trained, *_scale(split.train.labels)).eval()


def _only_array(rows: Batch) -> np.ndarray:
    if isinstance(rows, pd.DataFrame) or len(rows) != 1:
        raise ValueError(f"the default network takes one array, got {', '.join(map(str, rows))}; give model= for several inputs.")
    return next(iter(rows.values()))


def _check_complete(rows: Batch) -> None:
    array = _only_array(rows)
    missing = np.flatnonzero(np.isnan(array).reshape(len(array), -1).any(axis=1)) if array.dtype.kind == "f" else ()
    if len(missing):
        raise ValueError(f"the default network takes no missing values, got {len(missing)} rows with NaN; fill them, or give model=.")


def _network(array: np.ndarray, outputs: int) -> nn.Module:
    import torch

    from mlflow_opt.networks.networks import Perceptron, Recurrent, ResNet

    shape = array.shape[1:]
    if array.dtype == np.uint8 and len(shape) == 2:
        return ResNet(1, outputs, "hw")
    if array.dtype == np.uint8 and len(shape) == 3 and shape[2] <= 4:
        return ResNet(shape[2], outputs, "hwc")
    if array.dtype.kind == "f" and len(shape) == 3:
        return ResNet(shape[0], outputs, "chw", divisor=1.0)
    if array.dtype.kind in "fiu" and len(shape) in (1, 2):
        numbers = array.reshape(-1, shape[-1])
        mean, spread = numbers.mean(axis=0), numbers.std(axis=0)
        # A constant number would be divided by zero.
        scale = torch.tensor(mean, dtype=torch.float32), torch.tensor(np.where(spread > 0, spread, 1), dtype=torch.float32)
        return Perceptron(*scale, outputs) if len(shape) == 1 else Recurrent(*scale, outputs)
    raise ValueError(
        f"there is no default network for {array.dtype} arrays of shape (n, {', '.join(map(str, shape))}); give model=, or pictures as"
        " uint8 (n, height, width), numbers as (n, f), series as (n, steps, f)."
    )


def _oriented(network: nn.Module, order: torch.memory_format) -> nn.Module:
    # torch's own stub forgets the argument.
    oriented: nn.Module = network.to(memory_format=order)  # type: ignore[call-overload]
    return oriented


def _arrays(split: Split, part: Part) -> Arrays:
    from mlflow_opt.networks.training import Arrays

    rows = {"": _only_array(part.rows)}
    if split.task.classes:
        return Arrays(rows, np.searchsorted(np.array(split.task.classes), part.labels))
    mean, spread = _scale(split.train.labels)
    return Arrays(rows, ((part.labels - mean) / spread).astype(np.float32))


def _scale(labels: np.ndarray) -> tuple[float, float]:
    return float(labels.mean()), float(labels.std())


def _settings(is_picture: bool, rows: int, seed: int) -> TrainSettings:
    from mlflow_opt.networks.training import TrainSettings

    # At least thirty steps an epoch, or the statistics of batch normalisation have not settled when training ends.
    batch = max(16, min(128, rows // 30))
    if is_picture:
        return TrainSettings(
            epochs=10,
            batch_size=batch,
            learning_rate=0.1,
            schedule="one_cycle",
            optimizer="sgd",
            weight_decay=5e-4,
            label_smoothing=0.1,
            seed=seed,
        )
    return TrainSettings(
        epochs=30, batch_size=batch, learning_rate=2e-3, schedule="one_cycle", weight_decay=0.01, clip_norm=1.0, patience=8, seed=seed
    )


def _loss(is_picture: bool) -> Loss:
    from mlflow_opt.networks.losses import augmented, plain_loss, shift_pictures

    return augmented(plain_loss(0.1), shift_pictures) if is_picture else plain_loss()


def _save_pipeline(pipeline: Any, rows: pd.DataFrame, folder: Path) -> Path:
    import mlflow.sklearn
    from mlflow.models import infer_signature

    with warnings.catch_warnings():
        # MLflow's advice on integer columns; that they have no missing values is what the training rows say.
        warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")
        signature = infer_signature(rows, pipeline.predict(take(rows, slice(0, 2))))
    mlflow.sklearn.save_model(
        pipeline,
        str(folder),
        signature=signature,
        serialization_format="skops",
        skops_trusted_types=list(_TRUSTED),
        pip_requirements=_pinned("scikit-learn", "lightgbm", "pandas", "numpy", "skops"),
    )
    return folder


def save_network(network: nn.Module, array: np.ndarray, folder: Path) -> Path:
    """Save one of this package's networks as an MLflow model that loads where the package is not installed.

    Args:
        network: its class's file imports torch alone.
        array: some rows as the data has them.
        folder: where to.

    Returns:
        The folder.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.inference_mode():
        answer = network(torch.from_numpy(array[:2])).numpy()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]),
        outputs=Schema([TensorSpec(answer.dtype, (-1, *answer.shape[1:]))]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        # Folders without __init__ lend their file to an installed mlflow_opt's place only where that is missing.
        kind = type(network)
        home = Path(scratch).joinpath(*kind.__module__.split(".")).with_suffix(".py")
        home.parent.mkdir(parents=True)
        shutil.copy(inspect.getfile(kind), home)
        mlflow.pytorch.save_model(
            network,
            str(folder),
            code_paths=[str(Path(scratch) / kind.__module__.split(".")[0])],
            signature=signature,
            # pt2 would need no pickle, but cannot be trained further, which pruning, distilling and QAT do.
            serialization_format="pickle",
            pip_requirements=_pinned("torch", "numpy"),
        )
    return folder


def _pinned(*packages: str) -> list[str]:
    # A local version (2.13.0+cpu) is on no public index.
    return [f"{package}=={version(package).split('+')[0]}" for package in packages]
