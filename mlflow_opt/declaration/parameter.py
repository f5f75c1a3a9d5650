"""One parameter of a recipe: its type, its choices, and its way through text, which is all that a shell and MLflow carry."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from mlflow_opt.records import Param

_KINDS: dict[type, Literal["str", "int", "float", "bool"]] = {str: "str", int: "int", float: "float", bool: "bool"}
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Parameter:
    """A named value that a recipe takes.

    Args:
        name: as in Python, `-P`, `--flag`, the logged parameter and the README.
        kind: its type.
        choices: the values of a `Literal`, in the order written; empty if any value of the type will do.
        default: the value where none is given; None where one must be given.
        doc: its text in the `Args:` block.
    """

    name: str
    kind: Literal["str", "int", "float", "bool"]
    choices: tuple[Param, ...]
    default: Param | None
    doc: str

    @property
    def expected(self) -> str:
        """Say in words which values it takes."""
        words = {"str": "text", "int": "a whole number", "float": "a finite number", "bool": "true or false"}
        return f"one of {', '.join(map(to_text, self.choices))}" if self.choices else words[self.kind]

    def read(self, text: str) -> Param:
        """Turn text into a value.

        Args:
            text: as typed in a shell or passed by `mlflow run`.

        Returns:
            The value, of the parameter's type.

        Raises:
            ValueError: the text is not of the type or not among the choices.
        """
        if self.choices:
            named = {to_text(choice): choice for choice in self.choices}
            if text in named:
                return named[text]
            raise ValueError(f"{self.name} must be {self.expected}, got '{text}'{nearest(text, named)}")
        value = _READERS[self.kind](text)
        if value is None:
            hint = f"; for example --{self.name} {to_text(self.default)}" if self.default is not None else ""
            raise ValueError(f"{self.name} must be {self.expected}, got '{text}'{hint}.")
        return value


def make_parameter(name: str, annotation: Any, default: Any, doc: str) -> Parameter:
    """Make a parameter of what a signature says.

    Args:
        name: the parameter's name.
        annotation: `str`, `int`, `float`, `bool` or a `Literal` of them.
        default: its default; None where the signature gives none.
        doc: its text in the `Args:` block.

    Returns:
        The parameter, known to read its own default back from text.

    Raises:
        TypeError: an annotation or a default that text cannot carry.
    """
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kinds = {type(choice) for choice in choices} or {annotation}
    if len(kinds) != 1 or not kinds <= set(_KINDS):
        raise TypeError(
            f"{name} must be annotated str, int, float, bool or a Literal of one of them, got {annotation}; text carries no other."
        )
    kind = _KINDS[kinds.pop()]
    if kind == "float" and type(default) is int:
        default = float(default)
    if default is not None and _KINDS.get(type(default)) != kind:
        raise TypeError(f"{name} must default to a {kind}, got {default!r}; use '' or 0 for 'not given'.")
    parameter = Parameter(name, kind, choices, default, doc)
    if default is not None and parameter.read(to_text(default)) != default:
        raise TypeError(f"{name} must default to a value that survives text, got {default!r}; write it shorter.")
    return parameter


def to_text(value: Param | None) -> str:
    """Write a value as MLflow, MLproject and a shell carry it.

    Example:
        >>> to_text(True), to_text(0.01), to_text(1.0), to_text("")
        ('true', '0.01', '1.0', '')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """End a message with the closest known word, where there is one.

    Example:
        >>> nearest("quantise", ["quantize", "prune"]), nearest("x", ["quantize"])
        ("; did you mean 'quantize'?", '.')
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


def _whole(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _truth(text: str) -> bool | None:
    # MLflow's Python API turns True into "True".
    return {"true": True, "false": False}.get(text.lower())


_READERS: dict[str, Callable[[str], Param | None]] = {"str": str, "int": _whole, "float": _finite, "bool": _truth}
