"""How a table enters a scikit-learn estimator's graph: which columns share an input, and where the estimator finds them then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.export.converters import is_missing
from mlflow_opt.export.dropin_code import MISSING, Feed

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
    known = _known_texts(estimator, list(table.columns))
    entries = _entries(estimator)
    first = [one for one in entries if hasattr(one, "transformers_")]
    if len(first) < len(entries) and text and numbers:
        kinds = {column: "str" if column in text else "float64" for column in table.columns}
        return estimator, [Feed(str(column), kinds[column], (column,), known=_of([column], known)) for column in table.columns]
    if len(first) == len(entries):
        # skl2onnx takes a whole matrix as it lies when all of its columns are asked for, so they must lie in that order.
        order = _asked_order(first, list(table.columns))
        numbers, text = [one for one in order if one in numbers], [one for one in order if one in text]
    at = {column: position for position, column in enumerate([*numbers, *text])}
    for transformer in first:
        _point(transformer, list(table.columns), at)
    feeds = [Feed(NUMBERS, "float64", tuple(numbers))] if numbers else []
    return estimator, feeds + ([Feed(TEXT, "str", tuple(text), known=_of(text, known))] if text else [])


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
    parts += _flat(getattr(estimator, "estimators_", ()))
    for one in parts:
        if hasattr(one, "get_params"):
            found += [one, *_inside(one)]
    return found


def _flat(members: Any) -> list[Any]:
    # Boosting keeps an array of trees. A list is no array to be: a pipeline has a length, and numpy would take it apart.
    return list(members.ravel()) if isinstance(members, np.ndarray) else list(members)


def _entries(estimator: Any) -> list[Any]:
    """Find the parts of an estimator that see the table itself."""
    if hasattr(estimator, "steps"):
        return _entries(estimator.steps[0][1])
    if hasattr(estimator, "best_estimator_"):
        return _entries(estimator.best_estimator_)
    members = getattr(estimator, "estimators_", None)
    if members is None or hasattr(estimator, "tree_"):
        return [estimator]
    found = [_entries(one) for one in _flat(members) if hasattr(one, "predict")]
    return [one for some in found for one in some]


def _known_texts(estimator: Any, columns: list[Any]) -> dict[Any, tuple[str, ...]]:
    """List the texts that an encoder with `handle_unknown="error"` takes, by column: any other is refused, as by scikit-learn."""
    known: dict[Any, tuple[str, ...]] = {}
    for entry in _entries(estimator):
        blocks = getattr(entry, "transformers_", [("", entry, columns)])
        for _, step, wanted in blocks:
            steps = [one for _, one in step.steps] if hasattr(step, "steps") else [step]
            filled = [MISSING] if type(steps[0]).__name__ == "SimpleImputer" and is_missing(steps[0].missing_values) else []
            encoder = steps[1] if filled and len(steps) > 1 else steps[0]
            if getattr(encoder, "handle_unknown", "") != "error":
                continue
            for column, values in zip(_names(wanted, columns), encoder.categories_, strict=False):
                texts = [MISSING if is_missing(one) else str(one) for one in values] + filled
                known[column] = tuple(one for one in texts if one in known.get(column, texts))
    return known


def _of(columns: Sequence[Any], known: dict[Any, tuple[str, ...]]) -> dict[Any, tuple[str, ...]]:
    return {column: known[column] for column in columns if column in known}


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
