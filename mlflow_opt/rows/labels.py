"""Labels: what may stand in a target, and which task it asks for."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from mlflow_opt.records import Task

logger = logging.getLogger(__name__)

# Whole numbers with at most this many distinct values are classes.
MANY_CLASSES = 20
_SHOWN = 5


def labels_of(column: pd.Series | np.ndarray, target: str) -> np.ndarray:
    """Check a target and give it as a plain array of booleans, numbers or texts.

    Args:
        column: the target as it was read, one value per row.
        target: its name, for messages.

    Returns:
        Array of shape (n,): bool, integer, float, or object with `str` values.

    Raises:
        ValueError: if it is not one value per row, has missing or infinite values, or values of several types.

    """
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise ValueError(
            f"the target must hold one value per row, got {target!r} of shape {column.shape};"
            " store class numbers instead of one-hot rows (argmax over axis 1), or flatten a single column (ravel)."
        )
    series = pd.Series(column, name=target)
    missing = np.flatnonzero(series.isna().to_numpy())
    if len(missing):
        raise ValueError(
            f"the target must not have missing values, got {len(missing)} in {target!r}{_places(missing)};"
            " drop these rows, or fill in what is known."
        )
    values = _plain(series)
    infinite = np.flatnonzero(np.isinf(values)) if values.dtype.kind == "f" else np.empty(0)
    if len(infinite):
        raise ValueError(
            f"the target must be finite, got {len(infinite)} infinite values in {target!r}{_places(infinite)};"
            " drop these rows, or clip them to the largest value that makes sense."
        )
    return values


def _places(rows: np.ndarray) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    return f" (rows {shown}{', ...' if len(rows) > _SHOWN else ''}, counted from 0)"


def _plain(series: pd.Series) -> np.ndarray:
    dtype = series.dtype.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return series.to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(dtype):
        return series.to_numpy(dtype=np.int64)
    if pd.api.types.is_float_dtype(dtype):
        return series.to_numpy(dtype=np.float64)
    values = series.to_numpy(dtype=object)
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return values.astype(bool)
    if len(kinds) == 1 and issubclass(next(iter(kinds)), str):
        return np.array([str(value) for value in values], dtype=object)
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(
        f"a target must hold booleans, numbers or texts of one type, got {names} in {series.name!r}; cast the column to string."
    )


def infer_task(labels: np.ndarray) -> Task:
    """Infer what the labels ask for: two classes, several, or a number.

    - Booleans and texts (categories too) are classes.
    - Whole numbers (an integer type) are classes if there are at most 20 different ones, or if they are exactly
      0..k-1 and none is rarer than a fifth of the average (ten thousand images of 100 classes, but not ages or counts).
    - Other numbers are a regression, unless there are just two different values.

    There is no parameter for it: cast the target to string to get classes, to float to get a regression. Texts sort as
    texts, so write class numbers with leading zeros ("007") where their order is the order of a model's outputs.

    Example:
        >>> infer_task(np.array(["no", "yes", "no"])).kind, infer_task(np.array([0.5, 1.5, 2.5])).kind
        ('binary', 'regression')

    Args:
        labels: shape (n,), as `Dataset.labels`.

    Returns:
        The kind of task and its classes in sorted order, which is the order of a classifier's score columns.

    Raises:
        ValueError: if all labels are equal, or there are none.

    """
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        got = f"only {values.tolist()[0]!r}" if len(values) else "no rows"
        raise ValueError(f"the target must have at least two different values, got {got} in {len(labels)} rows; check the target's name.")
    if labels.dtype.kind == "f" and len(values) > 2:
        return Task("regression")
    if labels.dtype.kind in "iu" and len(values) > MANY_CLASSES and not _numbered(values, counts):
        logger.info("%d different whole numbers in the target: a regression; cast it to string if they are classes.", len(values))
        return Task("regression")
    return Task("binary" if len(values) == 2 else "multiclass", tuple(values.tolist()))


def _numbered(values: np.ndarray, counts: np.ndarray) -> bool:
    return bool(values[0] == 0 and values[-1] == len(values) - 1 and counts.min() >= counts.mean() / 5)
