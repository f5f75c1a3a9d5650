"""Rows of features, a table or arrays, and what identifies a row: its content, never its position or its file.

A row's 64-bit hash decides which part of the split it belongs to, so it must not change between versions of the
libraries that could compute it: numbers are mixed by SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators"), texts by the keyed hash of pandas, array rows by BLAKE2b (RFC 7693).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

Batch = pd.DataFrame | dict[str, np.ndarray]

# Changing it moves rows between the parts, which makes every split digest of before worthless: never do.
SALT = b"mlflow_opt.split"
# MLflow keeps at most 36 characters of a data set's digest; 16 bytes are 32.
_DIGEST_BYTES = 16
_MISSING = np.uint64(0x9E3779B97F4A7C15)


def n_rows(rows: Batch) -> int:
    """Count the rows of a batch."""
    if isinstance(rows, pd.DataFrame):
        return len(rows)
    return len(next(iter(rows.values()))) if rows else 0


def as_table(rows: Batch) -> pd.DataFrame:
    """Insist that a batch is a table.

    Raises:
        TypeError: it holds arrays.
    """
    if not isinstance(rows, pd.DataFrame):
        raise TypeError(f"an estimator is trained on a table, the data are arrays ({', '.join(rows)}); train a network on them.")
    return rows


def take(rows: Batch, index: np.ndarray | slice) -> Batch:
    """Take some rows of a batch, in the order of `index` (positions, a boolean mask or a slice)."""
    if isinstance(rows, pd.DataFrame):
        return rows.iloc[index].reset_index(drop=True)
    return {name: array[index] for name, array in rows.items()}


def row_hashes(rows: Batch) -> np.ndarray:
    """Hash every row by its content, independently of the order of rows, columns and inputs.

    Numbers are compared as doubles, so `1`, `1.0` and `True` hash alike, as do all missing values; integers that differ
    only beyond 2**53 hash alike too. A csv and a parquet copy of one table therefore have the same hashes unless a
    column changes its type (dates read as text).

    Args:
        rows: a table, or arrays with rows first.

    Returns:
        One uint64 per row.

    Raises:
        ValueError: if a column holds lists or other values without a hash.

    """
    if isinstance(rows, pd.DataFrame):
        return _combine([_column_hashes(rows[name]) for name in sorted(rows.columns, key=str)], len(rows))
    return _array_hashes(rows)


def label_hashes(labels: np.ndarray) -> np.ndarray:
    """Hash every label by its value, so that data that were labelled anew get another digest."""
    return _combine([_column_hashes(pd.Series(labels, name="labels"))], len(labels))


def content_digest(hashes: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> str:
    """Digest a set of rows with their labels, in any order: 32 hexadecimal characters.

    Args:
        hashes: `row_hashes` of the rows.
        labels: their labels.
        names: names of the columns or inputs and of the target, where they belong to the identity.

    """
    both = np.sort(_combine([hashes, label_hashes(labels)], len(hashes)))
    return text_digest("\n".join(sorted(names)), both.astype("<u8").tobytes())


def text_digest(text: str, more: bytes = b"") -> str:
    """Digest a text, and bytes after it: 32 hexadecimal characters."""
    return hashlib.blake2b(text.encode() + b"\0" + more, digest_size=_DIGEST_BYTES, key=SALT).hexdigest()


def _column_hashes(column: pd.Series) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _text_hashes(column)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        # Adding zero makes -0.0 equal 0.0, as the comparison of two rows would.
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
        return np.where(np.isnan(numbers), _MISSING, _mix(numbers.view(np.uint64)))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        moments = pd.to_datetime(column, utc=True).dt.as_unit("us")
        ticks = moments.dt.tz_localize(None).to_numpy().view(np.int64).view(np.uint64)
        return np.where(moments.isna().to_numpy(), _MISSING, _mix(ticks))
    return _text_hashes(column)


def _text_hashes(column: pd.Series) -> np.ndarray:
    try:
        codes, values = pd.factorize(column, use_na_sentinel=True)
    except TypeError as error:
        raise ValueError(
            f"a column must hold numbers, texts, categories or dates, got {column.name!r} with {type(column.iloc[0]).__name__} values;"
            " spread them over several columns, or give arrays in an npz."
        ) from error
    texts = np.array([str(value) for value in values], dtype=object)
    hashes = pd.util.hash_array(texts, hash_key=SALT.decode()) if len(texts) else np.empty(0, np.uint64)
    # Code -1 means missing, and picks the last entry.
    return np.append(hashes, _MISSING)[codes]


def _array_hashes(rows: dict[str, np.ndarray]) -> np.ndarray:
    views = [_as_bytes(rows[name]) for name in sorted(rows)]
    joined = views[0] if len(views) == 1 else np.concatenate(views, axis=1)
    digests = b"".join(hashlib.blake2b(row, digest_size=8, key=SALT).digest() for row in joined)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    # Adding zero makes -0.0 equal 0.0.
    array = array + array.dtype.type(0) if array.dtype.kind == "f" else array
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


def _combine(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    total = np.full(rows, int.from_bytes(SALT[:8], "little"), dtype=np.uint64)
    for column in columns:
        total = _mix(total ^ _mix(column))
    return total


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
