"""Read a data set, whatever it is stored in, and split it once and for all: train, calibration, selection, gate.

The parts depend on the rows' content and a fixed salt, never on a seed, so a row that decided about one version of a
model never trains the next one. Everything here keeps features as they came: strings, categories, missing values.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pandas as pd

from mlflow_opt.records import Task
from mlflow_opt.rows import batches, splits
from mlflow_opt.rows.batches import Batch, n_rows, take
from mlflow_opt.rows.labels import infer_task, labels_of
from mlflow_opt.rows.reading import SPLIT, read_content

__all__ = ["BUNDLED", "Batch", "Dataset", "Part", "Split", "infer_task", "n_rows", "read", "split", "take"]

logger = logging.getLogger(__name__)

# Of the gate: what steps of a chain are judged on, and what its end is judged on.
HALVES = ("steps", "final")
BUNDLED = {"fashion_mnist": "fashion_mnist.npz", "telco_churn": "telco_churn.parquet"}


@dataclass(frozen=True)
class Dataset:
    """A data set as it came: features, labels, where from, and the `split` column if there was one.

    Args:
        name: short name, for runs and messages.
        rows: the features, without target and split.
        labels: shape (n,): bool, integer, float or text.
        target: the target's name.
        source: the path, URI or bundled name as given.
        parts: "train" or "test" per row, None if the data do not say.
        digest: over content and names, in any order of rows and columns.
        half: of the gate, `steps` or `final`, `""` for all of it.
    """

    name: str
    rows: Batch
    labels: np.ndarray
    target: str
    source: str
    parts: np.ndarray | None
    digest: str
    half: str = ""


@dataclass(frozen=True)
class Part:
    """One part of a split: `train`, `calibration`, `selection` or `gate`."""

    name: str
    rows: Batch
    labels: np.ndarray
    digest: str


@dataclass(frozen=True)
class Split:
    """A data set in its four parts; `digest` is what a chain of versions must keep."""

    task: Task
    train: Part
    calibration: Part
    selection: Part
    gate: Part
    digest: str
    dataset: Dataset


def read(data: str, target: str = "target") -> Dataset:
    """Read a data set: a table or arrays, with its labels and, if it has one, its own split.

    A table keeps its columns as they are, but for pandas' nullable types, which become numpy's. An npz holds one array
    per model input, rows first, and the target; `X_train`, `X_test`, `y_train`, `y_test` are read as `X` and `y` with a
    split. A column or array `split` with the values `train` and `test` is respected, and is not a feature. In a folder
    tables are put one below the other, npz files likewise; two tables named `train` and `test` are the split.

    Example:
        >>> telco = read("telco_churn")
        >>> telco.rows.shape, telco.target
        ((7043, 19), 'target')

    Args:
        data: path or URI of a parquet, csv or npz file or of a folder of them, or a bundled name: `telco_churn`
            (7,043 customers), `fashion_mnist` (8,000 training and 10,000 test images). With `#steps` or `#final` at its end
            the gate is one half of itself: a chain of recipes is judged on the one and its result on the other.
        target: name of the target column or array.

    Returns:
        The data set; nothing is dropped, filled or encoded.

    Raises:
        ValueError: if the data cannot be read, have no such target, or labels are missing or infinite.

    """
    half = next((name for name in HALVES if data.endswith(f"#{name}")), "")
    data = data.removesuffix(f"#{half}")
    content = _read_bundled(data) if data in BUNDLED else read_content(data)
    names = list(content.columns) if isinstance(content, pd.DataFrame) else list(content)
    _check_target(names, target, data)
    if n_rows(content) == 0:
        raise ValueError(f"data must have rows, got none in {data}; check how it was written.")
    labels = labels_of(content[target], target)
    parts = _parts_of(content[SPLIT], data) if SPLIT in names else None
    features = [name for name in names if name not in (target, SPLIT)]
    rows = content[features] if isinstance(content, pd.DataFrame) else {name: content[name] for name in features}
    digest = batches.content_digest(batches.row_hashes(rows), labels, [*map(str, features), f"target={target}"])
    return Dataset(_short_name(data), rows, labels, target, data, parts, digest, half)


def split(dataset: Dataset) -> Split:
    """Split a data set once and for all, by content and stratified by class; equal rows share a part.

    Without a `split` column 60% train, 5% calibrate, 15% select and 20% are the gate. With one the gate is all of its
    test rows, and 7% and 20% of its train rows calibrate and select. Running it again, in another order of rows, or
    with other seeds gives the same parts. Rows with equal features but different labels stay together too.

    Example:
        >>> parts = split(read("telco_churn"))
        >>> parts.task.kind, n_rows(parts.gate.rows)
        ('binary', 1408)

    Args:
        dataset: what `read` gave.

    Returns:
        The four parts with their digests, each in the order of its rows' hashes, so that the first rows of a part are
        a random sample (a series must be cut into windows before, one per row), and the task inferred from the labels
        (see `infer_task`).

    Raises:
        ValueError: if the gate has fewer than 50 rows, or a part fewer than 2 rows of a class.

    """
    task = infer_task(dataset.labels)
    strata = np.searchsorted(np.array(task.classes), dataset.labels) if task.classes else np.zeros(len(dataset.labels), dtype=np.int64)
    hashes = batches.row_hashes(dataset.rows)
    assigned = _assign(hashes, strata, dataset.parts)
    splits.check_sizes(assigned, strata, task.classes)
    parts = {name: _part(name, dataset, hashes, assigned) for name in splits.PARTS}
    digest = batches.text_digest(" ".join(f"{part.name}={part.digest}" for part in parts.values()))
    if dataset.half:
        # The digest stays: a half is another gate within the same split.
        assigned = np.where((assigned == splits.GATE) & ~_half(hashes, dataset.half), "", assigned)
        splits.check_sizes(assigned, strata, task.classes)
        parts[splits.GATE] = _part(splits.GATE, dataset, hashes, assigned)
    return Split(task=task, digest=digest, dataset=dataset, **parts)


def _assign(hashes: np.ndarray, strata: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    if given is None:
        return splits.assign(hashes, strata, splits.SHARES)
    is_train = given == "train"
    both = np.isin(hashes[~is_train], hashes[is_train]).sum()
    if both:
        logger.info("%d of %d test rows have the same features as a train row; the split column is kept as it is.", both, (~is_train).sum())
    assigned = np.full(len(hashes), splits.GATE, dtype="<U11")
    assigned[is_train] = splits.assign(hashes[is_train], strata[is_train], splits.TRAIN_SHARES)
    return assigned


def _half(hashes: np.ndarray, wanted: str) -> np.ndarray:
    """Mark the rows of one half of the gate, by a bit of their hashes: equal rows share a half."""
    return np.asarray((hashes >> np.uint64(17) & np.uint64(1)) == HALVES.index(wanted))


def _part(name: str, dataset: Dataset, hashes: np.ndarray, assigned: np.ndarray) -> Part:
    index = np.flatnonzero(assigned == name)
    # By hash, not as in the file: files are often sorted by class or time, and whoever takes the first rows of a part
    # (to calibrate, to time) must get a random sample.
    index = index[np.argsort(hashes[index], kind="stable")]
    labels = dataset.labels[index]
    return Part(name, take(dataset.rows, index), labels, batches.content_digest(hashes[index], labels))


def _read_bundled(name: str) -> Batch:
    with resources.as_file(resources.files("mlflow_opt.datasets") / BUNDLED[name]) as path:
        return read_content(str(path))


def _short_name(data: str) -> str:
    last = data.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last.split(".", 1)[0] or last


def _check_target(names: Iterable[str], target: str, data: str) -> None:
    there = [str(name) for name in names]
    if target in there and len(set(there) - {target, SPLIT}):
        return
    if target in there:
        raise ValueError(f"data must have features besides the target, got only {', '.join(there)} in {data}.")
    usual = [name for name in ("y", "label", "labels", "class") if name in there]
    nearest = difflib.get_close_matches(target, there, n=1, cutoff=0.75) or usual[:1]
    remedy = f"pass target={nearest[0]}" if nearest else "pass target=NAME with one of them"
    shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    raise ValueError(f"the target must be a column or array of the data, got {target!r}; {data} has {shown}: {remedy}.")


def _parts_of(column: pd.Series | np.ndarray, data: str) -> np.ndarray:
    values = np.asarray(pd.Series(column).astype("str").fillna("missing").to_numpy(dtype=object))
    others = sorted(set(values) - {"train", "test"})
    if others or len(set(values)) < 2:
        got = ", ".join(map(repr, others[:5])) if others else f"only {values[0]!r}"
        raise ValueError(
            f"a `split` column must say 'train' or 'test' for every row and use both, got {got} in {data};"
            " call validation rows train (selection rows are taken from them), or rename the column if it is a feature."
        )
    return values.astype("<U5")
