"""Read a table out of a request's JSON without pandas, for exactly those requests that MLflow would read without a doubt.

Nothing is reported from here. A request that is unusual in any way (a missing column, a boolean where numbers are wanted,
an integer that a double cannot hold, text that might be a number) gets None, and the caller gives it to MLflow's own
scoring code, which casts it or refuses it in its own words. So this file needs to be right only about what it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import orjson

Kind = Literal["double", "float", "long", "integer", "string", "boolean"]
Row = Sequence[Any]
Picker = Callable[[Any], Row]

# Python types of a JSON value that MLflow turns into the column's type without loss or refusal.
_ACCEPTED: dict[str, frozenset[type]] = {
    "double": frozenset({float, int, type(None)}),
    "float": frozenset({float, int, type(None)}),
    "long": frozenset({int}),
    "integer": frozenset({int}),
    "string": frozenset({str, type(None)}),
    "boolean": frozenset({bool}),
}
# Whole numbers beyond these bounds are rounded or wrap around on their way into the model.
_EXACT = 2**53
_INT32 = 2**31 - 1
# Clients send few kinds of rows; a client that sends every mix of integers and floats must not fill the memory.
_REMEMBERED = 4096
# What stands before the rows of a `dataframe_split`; a client repeats everything up to it in each of its requests.
_ROWS_FOLLOW = b'"data":'
# Most of it kept, and most text of column names.
_OPENINGS_BYTES = _NAMES_CHARACTERS = 4_000_000


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the opening of a `dataframe_split` says: how its rows are picked, their width, the rows that its index has."""

    pick: Picker
    width: int
    index: int | None


@dataclass(frozen=True)
class Column:
    """A column that the model's signature requires."""

    name: str
    kind: Kind


class TableReader:
    """Reads rows in the order of the signature's columns; keeps what it has learnt about clients' layouts."""

    def __init__(self, columns: Sequence[Column]) -> None:
        """Prepare for a signature.

        Args:
            columns: all of the signature's, at least one.

        """
        self.columns = tuple(columns)
        self._names = tuple(column.name for column in columns)
        self._known = frozenset(self._names)
        # itemgetter of one name gives the value itself, not a tuple.
        get = itemgetter(*self._names)
        self._pick: Picker = get if len(self._names) > 1 else lambda record: (get(record),)
        self._accepted = [_ACCEPTED[column.kind] for column in columns]
        self._texts = [index for index, column in enumerate(columns) if column.kind == "string"]
        bounds = {"float": _EXACT, "long": _EXACT, "integer": _INT32}
        self._bounded = [(index, bounds[column.kind]) for index, column in enumerate(columns) if column.kind in bounds]
        self._layouts: dict[tuple[Any, ...], Picker | None] = {}
        self._kinds: dict[tuple[type, ...], bool] = {}
        # Where every column takes the same types, whichever they are, a row is asked for foreign ones only.
        self._alike = self._accepted[0] if len(set(self._accepted)) == 1 and not self._bounded and not self._texts else None
        self._openings: dict[bytes, _Layout] = {}
        self._room, self._names_room = _OPENINGS_BYTES, _NAMES_CHARACTERS

    def read_body(self, body: bytes) -> list[Row] | None:
        """Read the rows of a request as it came, None if only MLflow's own code can say what it means.

        A client sends the same column names with every row. Once they have been read, only what follows them is.
        """
        at = body.find(_ROWS_FOLLOW) + len(_ROWS_FOLLOW)
        opening = body[:at]
        known = self._openings.get(opening)
        try:
            if known is not None and body.endswith(b"}}"):
                rows = self._following(body[at:-2], known)
                if rows is not None:
                    return rows
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            # Python's parser accepts more (NaN), and MLflow says what is wrong with the rest.
            return None
        rows = self.read(payload)
        if rows and known is None and len(_ROWS_FOLLOW) <= at <= _OPENINGS_BYTES:
            self._remember(opening)
        return rows

    def _following(self, text: bytes, layout: _Layout) -> list[Row] | None:
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError:
            # More follows than the rows, such as an index.
            return None
        if type(data) is not list or not data or layout.index not in (None, len(data)):
            return None
        rows: list[Row] = []
        for row in data:
            if type(row) is not list or len(row) != layout.width:
                return None
            picked = layout.pick(row)
            if not self._clean(picked):
                return None
            rows.append(picked)
        return rows

    def _remember(self, opening: bytes) -> None:
        """Keep an opening if a value put behind it is the value of `data`, whatever the text before it looks like."""
        try:
            said = orjson.loads(opening + b"0}}")
        except orjson.JSONDecodeError:
            return
        content = said.get("dataframe_split") if len(said) == 1 else None
        if type(content) is not dict or content.get("data") != 0 or not content.keys() <= {"columns", "data", "index"}:
            return
        names: Any = content.get("columns")
        index: Any = content.get("index")
        pick = self._layouts.get(tuple(names)) if type(names) is list else None
        if pick is not None and (index is None or (type(index) is list and _plain_index(index, len(index)))):
            if len(opening) > self._room:
                # A client that numbers its rows never repeats an opening; it must not fill the memory, nor keep others out.
                self._openings.clear()
                self._room = _OPENINGS_BYTES
            self._room -= len(opening)
            self._openings[opening] = _Layout(pick, len(names), None if index is None else len(index))

    def read(self, payload: Any) -> list[Row] | None:
        """Read the rows of a request, None if only MLflow's own code can say what it means.

        Args:
            payload: the request's JSON.

        """
        if type(payload) is not dict or len(payload) != 1:
            return None
        ((form, content),) = payload.items()
        rows = self._rows(form, content)
        if not rows or not all(self._clean(row) for row in rows):
            return None
        # MLflow turns a missing text into the text "None" in these two formats.
        if form in ("instances", "inputs") and any(row[index] is None for row in rows for index in self._texts):
            return None
        return rows

    def _rows(self, form: str, content: Any) -> list[Row] | None:
        if form == "dataframe_split":
            return self._from_split(content)
        if form == "dataframe_records":
            return self._from_records(content, exact=False)
        if form == "instances":
            return self._from_records(content, exact=True)
        return self._from_lists(content) if form == "inputs" else None

    def _from_split(self, content: Any) -> list[Row] | None:
        if type(content) is not dict or not content.keys() <= {"columns", "data", "index"}:
            return None
        names, data, index = content.get("columns"), content.get("data"), content.get("index")
        if type(names) is not list or type(data) is not list or not _plain_index(index, len(data)):
            return None
        width = len(names)
        if not all(type(row) is list and len(row) == width for row in data):
            return None
        try:
            pick = self._layouts[tuple(names)]
        except KeyError:
            pick = self._learn(names)
        except TypeError:
            return None
        if pick is None:
            return None
        return data if pick is _as_it_is else [pick(row) for row in data]

    def _learn(self, names: list[Any]) -> Picker | None:
        pick: Picker | None = None
        if names == list(self._names):
            pick = _as_it_is
        elif len(set(names)) == len(names) and self._known.issubset(names):
            found = {name: place for place, name in enumerate(names)}
            places = [found[name] for name in self._names]
            pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        size = sum(1 + (len(name) if type(name) is str else 0) for name in names)
        if size > self._names_room:
            self._layouts.clear()
            self._names_room = _NAMES_CHARACTERS
        if size <= self._names_room:
            self._names_room -= size
            self._layouts[tuple(names)] = pick
        return pick

    def _from_records(self, content: Any, *, exact: bool) -> list[Row] | None:
        if type(content) is not list:
            return None
        width = len(self._names)
        if not all(type(record) is dict and (len(record) == width or not exact) for record in content):
            return None
        try:
            return [self._pick(record) for record in content]
        except KeyError:
            return None

    def _from_lists(self, content: Any) -> list[Row] | None:
        if type(content) is not dict or content.keys() != self._known:
            return None
        lists = [content[name] for name in self._names]
        if not all(type(values) is list and len(values) == len(lists[0]) for values in lists):
            return None
        return list(zip(*lists, strict=True))

    def _clean(self, row: Row) -> bool:
        if self._alike is not None:
            return self._alike.issuperset(map(type, row))
        kinds = tuple(map(type, row))
        known = self._kinds.get(kinds)
        if known is None:
            known = all(kind in accepted for kind, accepted in zip(kinds, self._accepted, strict=True))
            if len(self._kinds) < _REMEMBERED:
                self._kinds[kinds] = known
        if not known:
            return False
        for index, bound in self._bounded:
            value = row[index]
            if type(value) is int and not -bound <= value <= bound:
                return False
        return True


def _as_it_is(row: Row) -> Row:
    return row


def _plain_index(index: Any, rows: int) -> bool:
    """Tell whether pandas takes a row index without a remark; what it holds does not change the answer."""
    if index is None:
        return True
    return type(index) is list and len(index) == rows and all(type(label) in (int, str) for label in index)
