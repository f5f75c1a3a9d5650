"""What a model's signature asks of a batch: which columns in which order, of which kind, or which arrays of which type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

_NUMBERS = ("boolean", "integer", "long", "float", "double")
_WHOLE = ("boolean", "integer", "long")


def columns_of(signature: Any, otherwise: Iterable[Any] | None) -> list[Any] | None:
    """Name the columns a model takes, in its order: by the signature, else as the library remembers them; None if nobody says."""
    if (
        signature is not None
        and signature.inputs is not None
        and signature.inputs.has_input_names()
        and not signature.inputs.is_tensor_spec()
    ):
        return list(signature.inputs.input_names())
    return None if otherwise is None else list(otherwise)


def tensors_of(signature: Any) -> dict[str, np.dtype[Any]]:
    """Name the arrays a model takes and their types, in its order; one without a name is called `""`; empty if nobody says."""
    if signature is None or signature.inputs is None or not signature.inputs.is_tensor_spec():
        return {}
    return {spec.name or "": np.dtype(spec.type) for spec in signature.inputs.inputs}


def to_table(batch: Any, names: list[Any] | None, signature: Any) -> pd.DataFrame:
    """Pick and order a model's columns from a batch; columns that it does not know are ignored.

    Raises:
        ValueError: a column is missing, or holds text where numbers are wanted or the other way round.
    """
    table = batch if isinstance(batch, pd.DataFrame) else _table_of_arrays(batch, names)
    if names is None:
        return table
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"the model needs the columns {_listed(missing)}, which the data does not have (it has {_listed(table.columns)}); add them."
        )
    _check_kinds(table, signature)
    return table if list(table.columns) == names else table[names]


def to_matrix(table: pd.DataFrame) -> np.ndarray:
    """Turn a table of numbers, missing ones included, into a float64 matrix.

    Raises:
        ValueError: a column holds something else.
    """
    try:
        return np.ascontiguousarray(table.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        text = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name].dtype)]
        raise ValueError(
            f"the model takes numbers, and {_listed(text)} hold something else ({error}); encode them as in training."
        ) from error


def _table_of_arrays(batch: Any, names: list[Any] | None) -> pd.DataFrame:
    if isinstance(batch, Mapping):
        if len(batch) != 1:
            return pd.DataFrame({key: list(value) if np.ndim(value) > 1 else value for key, value in batch.items()})
        batch = next(iter(batch.values()))
    matrix = np.asarray(batch)
    if matrix.ndim != 2:
        raise ValueError(f"the model takes a table, got an array of shape {matrix.shape}; give a matrix with one row per sample.")
    if names is not None and len(names) != matrix.shape[1]:
        raise ValueError(
            f"the model takes the {len(names)} columns {_listed(names)}, got a matrix of {matrix.shape[1]}; give a table with names."
        )
    return pd.DataFrame(matrix, columns=names)


def _check_kinds(table: pd.DataFrame, signature: Any) -> None:
    if signature is None or signature.inputs is None or signature.inputs.is_tensor_spec():
        return
    wrong = []
    for spec in signature.inputs.inputs:
        wanted = getattr(spec.type, "name", "")
        if spec.name not in table.columns or wanted not in (*_NUMBERS, "string"):
            continue
        dtype = table[spec.name].dtype
        if not _fits(dtype, wanted):
            wrong.append(f"{spec.name} must be {wanted}, got {dtype}")
    if wrong:
        raise ValueError(f"the data must have the types of the model's signature: {'; '.join(wrong)}; convert these columns.")


def _fits(dtype: Any, wanted: str) -> bool:
    if isinstance(dtype, pd.CategoricalDtype):
        return True
    numeric = pd.api.types.is_numeric_dtype(dtype)
    if wanted == "string":
        return not numeric
    return numeric and not (wanted in _WHOLE and pd.api.types.is_float_dtype(dtype))


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
