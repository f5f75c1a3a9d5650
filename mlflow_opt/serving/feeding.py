"""Turn rows of Python values into what a runtime takes, one array for a whole batch of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from mlflow_opt.export.dropin_code import MISSING, Feed
from mlflow_opt.serving.tables import Column, Row

Filler = Callable[[Sequence[Row]], np.ndarray]

_WHOLE = {"long", "integer", "boolean"}


def filler(feed: Feed, columns: Sequence[Column]) -> Filler | None:
    """Find how one input of a graph is filled from rows in the signature's order.

    Args:
        feed: the graph's input; a matrix of some of the columns.
        columns: of the signature.

    Returns:
        rows -> array of shape (rows, columns of the feed); None if only the variant's own code knows.

    """
    places = {column.name: place for place, column in enumerate(columns)}
    if not feed.columns or any(name not in places for name in feed.columns):
        return None
    kinds = [columns[places[name]].kind for name in feed.columns]
    wanted = [places[name] for name in feed.columns]
    if feed.dtype == "str":
        known = [frozenset(feed.known[name]) if name in feed.known else None for name in feed.columns]
        return _texts(wanted, known) if set(kinds) == {"string"} else None
    dtype = np.dtype(feed.dtype)
    if any(kind == "string" and name not in feed.categories for name, kind in zip(feed.columns, kinds, strict=True)):
        return None
    # A float in a whole-number input is cast by rules of its own; a double is exact for every integer that a reader accepts.
    if dtype.kind != "f" and (not set(kinds) <= _WHOLE or dtype != np.int64):
        return None
    single = [at for at, kind in enumerate(kinds) if kind == "float"]
    if feed.categories:
        return _coded(feed, wanted, single, dtype)
    pick = None if wanted == list(range(len(columns))) else _picker(wanted)
    return _numbers(pick, single, dtype)


def _texts(wanted: list[int], known: Sequence[frozenset[str] | None]) -> Filler:
    pick = _picker(wanted)
    bound = [(at, texts) for at, texts in enumerate(known) if texts is not None]

    def fill(rows: Sequence[Row]) -> np.ndarray:
        matrix = [[MISSING if text is None else text for text in pick(row)] for row in rows]
        # Such a model refuses a text that it has not seen; the variant's own code then says so.
        if any(row[at] not in texts for at, texts in bound for row in matrix):
            raise ValueError("a text column must hold one of the texts of training, another one came; the variant's own code names it.")
        return np.array(matrix, dtype=object)

    return fill


def _numbers(pick: Callable[[Row], Row] | None, single: list[int], dtype: np.dtype[Any]) -> Filler:
    def fill(rows: Sequence[Row]) -> np.ndarray:
        matrix = np.array(rows if pick is None else [pick(row) for row in rows], dtype=np.float64)
        return _cast(matrix, single, dtype)

    return fill


def _coded(feed: Feed, wanted: list[int], single: list[int], dtype: np.dtype[Any]) -> Filler:
    codes: Mapping[int, dict[Any, float]] = {
        at: {value: float(code) for code, value in enumerate(feed.categories[name])}
        for at, name in enumerate(feed.columns)
        if name in feed.categories
    }
    plain = [(at, place) for at, place in enumerate(wanted) if at not in codes]
    coded = [(at, wanted[at], table) for at, table in codes.items()]
    missing = float("nan")

    def fill(rows: Sequence[Row]) -> np.ndarray:
        matrix = np.empty((len(rows), len(wanted)), np.float64)
        for at, place in plain:
            matrix[:, at] = [row[place] for row in rows]
        for at, place, table in coded:
            matrix[:, at] = [table.get(row[place], missing) for row in rows]
        return _cast(matrix, single, dtype)

    return fill


def _cast(matrix: np.ndarray, single: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    # A value beyond the range of a float32 becomes infinite, as it does in pandas, which only warns about it.
    with np.errstate(over="ignore"):
        if single and dtype.itemsize > 4:
            # Columns that the signature calls `float` pass through single precision on their way.
            matrix[:, single] = matrix[:, single].astype(np.float32)
        return matrix if matrix.dtype == dtype else matrix.astype(dtype)


def _picker(wanted: list[int]) -> Callable[[Row], Row]:
    if len(wanted) == 1:
        return lambda row: (row[wanted[0]],)
    return itemgetter(*wanted)
