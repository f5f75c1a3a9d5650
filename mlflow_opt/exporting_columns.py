"""How a table enters a scikit-learn estimator's graph: which columns share an input, and where the estimator finds them then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.dropin_code import Feed

NUMBERS, TEXT = "numbers", "text"


def entrance(estimator: Any, table: pd.DataFrame, *, frame: bool) -> tuple[Any, list[Feed]]:
    """Group a table's columns into graph inputs and point an estimator's ColumnTransformers at them.

    Args:
        estimator: a copy that may be changed.
        table: the columns it takes, in its order.
        frame: whether it was fitted on a table with names.

    Returns:
        The estimator, and the inputs with double precision for numbers.
    """
    _settle(estimator)
    text = [column for column in table.columns if not _is_number(table[column])]
    numbers = [column for column in table.columns if column not in text]
    if not frame:
        return estimator, [Feed(NUMBERS, "float64", tuple(table.columns))]
    first = _first_transformers(estimator)
    if not first and text and numbers:
        return estimator, [Feed(str(column), "str" if column in text else "float64", (column,)) for column in table.columns]
    if first:
        # skl2onnx takes a whole matrix as it lies when all of its columns are asked for, so they must lie in that order.
        order = _asked_order(first, list(table.columns))
        numbers, text = [one for one in order if one in numbers], [one for one in order if one in text]
    at = {column: position for position, column in enumerate([*numbers, *text])}
    for transformer in first:
        _point(transformer, list(table.columns), at)
    feeds = [Feed(NUMBERS, "float64", tuple(numbers))] if numbers else []
    return estimator, feeds + ([Feed(TEXT, "str", tuple(text))] if text else [])


def _settle(estimator: Any) -> None:
    # skl2onnx refuses the default of a parameter that only concerns `transform`, which nobody exports here.
    for one in [estimator, *_inside(estimator)]:
        if hasattr(one, "flatten_transform"):
            one.flatten_transform = False


def _is_number(values: pd.Series[Any]) -> bool:
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return pd.api.types.is_numeric_dtype(dtype.categories.dtype)
    return pd.api.types.is_numeric_dtype(dtype)


def _inside(estimator: Any) -> list[Any]:
    found = []
    parts = [step for _, step in getattr(estimator, "steps", ())] + [getattr(estimator, "best_estimator_", None)]
    parts += list(np.ravel(np.array(getattr(estimator, "estimators_", ()), dtype=object)))
    for one in parts:
        if hasattr(one, "get_params"):
            found += [one, *_inside(one)]
    return found


def _first_transformers(estimator: Any) -> list[Any]:
    """Find the ColumnTransformers that see the table itself; none if anything else sees it too."""
    if hasattr(estimator, "transformers_"):
        return [estimator]
    if hasattr(estimator, "steps"):
        return _first_transformers(estimator.steps[0][1])
    if hasattr(estimator, "best_estimator_"):
        return _first_transformers(estimator.best_estimator_)
    members = getattr(estimator, "estimators_", None)
    if members is None or hasattr(estimator, "tree_"):
        return []
    found = [_first_transformers(one) for one in np.ravel(np.array(members, dtype=object)) if hasattr(one, "predict")]
    return [one for some in found for one in some] if found and all(found) else []


def _asked_order(transformers: Sequence[Any], columns: list[Any]) -> list[Any]:
    asked = [
        name for one in transformers for _, step, wanted in one.transformers_ if not _dropped(step) for name in _names(wanted, columns)
    ]
    return list(dict.fromkeys([*asked, *columns]))


def _point(transformer: Any, columns: list[Any], at: dict[Any, int]) -> None:
    pointed = []
    for name, step, wanted in transformer.transformers_:
        named = _names(wanted, columns)
        if hasattr(step, "transformers_"):
            _point(step, named, {column: position for position, column in enumerate(named)})
        pointed.append((name, step, [at[one] for one in named]))
    transformer.transformers_ = pointed


def _dropped(step: Any) -> bool:
    return isinstance(step, str) and step == "drop"


def _names(wanted: Any, columns: list[Any]) -> list[Any]:
    if isinstance(wanted, slice):
        if isinstance(wanted.start, str) or isinstance(wanted.stop, str):
            start = 0 if wanted.start is None else columns.index(wanted.start)
            stop = len(columns) if wanted.stop is None else columns.index(wanted.stop) + 1
            return columns[start:stop]
        return columns[wanted]
    several = [wanted] if isinstance(wanted, (str, int, np.integer)) else list(wanted)
    if several and all(isinstance(one, (bool, np.bool_)) for one in several):
        return [column for column, chosen in zip(columns, several, strict=True) if chosen]
    return [one if isinstance(one, str) else columns[int(one)] for one in several]
