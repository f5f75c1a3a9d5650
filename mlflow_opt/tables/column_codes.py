"""A table's columns as small whole numbers: bins of numbers, groups of texts, a bin of its own for what is missing.

On codes a column's dependence on the target, or on another column, is a table of counts, whatever the column holds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlflow_opt.records import Task

# Of numbers; a text with more values than this is ordered by the target first.
BINS = 32
# A target of numbers is cut into so many bins where its dependence is counted.
TARGET_BINS = 10
# Rows that a category's mean is mixed with, so that a category of one row says nothing.
_PRIOR_ROWS = 10.0


def coded(rows: pd.DataFrame, labels: np.ndarray, task: Task, bins: int = BINS) -> np.ndarray:
    """Give every column as codes below `bins`, 0 for missing.

    A text with many values is ordered by the target's mean over its values, taken from the other half of the rows, so that
    no row's code knows its own label. An identifier therefore looks as useless as it is.

    Args:
        rows: n rows.
        labels: shape (n,).
        task: what is predicted.
        bins: codes a column may have.

    Returns:
        Shape (n, columns), int64.
    """
    target = leading(labels, task)
    columns = [_numbers(rows[name], bins) if is_number(rows[name]) else _texts(rows[name], target, bins) for name in rows]
    return np.column_stack(columns) if columns else np.empty((len(rows), 0), dtype=np.int64)


def target_codes(labels: np.ndarray, task: Task) -> np.ndarray:
    """Give the labels as codes: of the classes, or of bins of a number."""
    if task.classes:
        return np.asarray(np.searchsorted(np.array(task.classes), labels))
    return _binned(np.asarray(labels, dtype=float), TARGET_BINS)


def information(one: np.ndarray, other: np.ndarray) -> float:
    """Give the mutual information of two columns of codes in nats, corrected for chance (Miller 1955), at least 0.

    Example:
        >>> codes = np.arange(1000) % 2
        >>> round(information(codes, codes), 3), round(information(codes, np.arange(1000) % 5), 3)
        (0.693, 0.0)
    """
    width = int(other.max()) + 1
    counts = np.bincount(one * width + other, minlength=(int(one.max()) + 1) * width).reshape(-1, width).astype(float)
    rows, columns, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    seen = counts > 0
    joint = counts[seen] / total
    expected = np.outer(rows, columns)[seen] / total**2
    bias = ((rows > 0).sum() - 1) * ((columns > 0).sum() - 1) / (2 * total)
    return max(0.0, float((joint * np.log(joint / expected)).sum() - bias))


def leading(labels: np.ndarray, task: Task) -> np.ndarray:
    """Give the labels as one number a row: the rank of a number, or whether it is the later (of several: the commonest) class."""
    if not task.classes:
        return np.asarray(pd.Series(labels).rank(pct=True))
    if task.kind == "binary":
        return np.asarray(labels == task.positive, dtype=float)
    values, counts = np.unique(labels, return_counts=True)
    return np.asarray(labels == values[counts.argmax()], dtype=float)


def is_number(column: pd.Series) -> bool:
    """Tell whether a column holds numbers or truth values."""
    return not isinstance(column.dtype, pd.CategoricalDtype) and column.dtype.kind in "biuf"


def random_half(index: np.ndarray) -> np.ndarray:
    """Mark half of some rows, always the same ones: one half answers for the other. Rows of one index, copies, stay together.

    Example:
        >>> random_half(np.array([7, 7, 8, 9, 9, 9])).sum() in (2, 3, 4)
        True
    """
    ids, at = np.unique(index, return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(ids)) % 2 == 0)[at])


def _numbers(column: pd.Series, bins: int) -> np.ndarray:
    values = column.to_numpy(dtype=float)
    missing = np.isnan(values)
    return np.where(missing, 0, _binned(values, bins - 1) + 1)


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    known = values[~np.isnan(values)]
    if not len(known):
        return np.zeros(len(values), dtype=np.int64)
    # "lower": between an infinite and a finite value there is no number to interpolate.
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    return np.asarray(np.searchsorted(edges, values, side="left"), dtype=np.int64).clip(max=bins - 1)


def _texts(column: pd.Series, target: np.ndarray, bins: int) -> np.ndarray:
    codes, values = pd.factorize(column.astype(object), use_na_sentinel=True)
    if len(values) < bins:
        return codes.astype(np.int64) + 1
    half = random_half(column.index.to_numpy())
    means = np.full(len(codes), np.nan)
    for mine, others in ((half, ~half), (~half, half)):
        known = others & (codes >= 0)
        counts = np.bincount(codes[known], minlength=len(values))
        sums = np.bincount(codes[known], weights=target[known], minlength=len(values))
        smooth = (sums + _PRIOR_ROWS * target.mean()) / (counts + _PRIOR_ROWS)
        means[mine & (codes >= 0)] = smooth[codes[mine & (codes >= 0)]]
    return np.where(codes < 0, 0, _binned(means, bins - 1) + 1)
