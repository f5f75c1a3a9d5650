"""What a model answers: an array with rows first, or several of them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Answers = np.ndarray | dict[str, np.ndarray]


def divide(answers: Answers, sizes: Sequence[int]) -> list[Answers]:
    """Give each request its rows.

    Example:
        >>> [part.tolist() for part in divide(np.array([1, 2, 3]), [1, 2])]
        [[1], [2, 3]]

    Raises:
        ValueError: there are not as many rows as were asked for.

    """
    if isinstance(answers, dict):
        columns = {name: divide(array, sizes) for name, array in answers.items()}
        return [{name: np.asarray(parts[at]) for name, parts in columns.items()} for at in range(len(sizes))]
    if answers.ndim == 0 or len(answers) != sum(sizes):
        raise ValueError(f"a call must answer as many rows as it is asked, got shape {answers.shape} for {sum(sizes)}.")
    if len(sizes) == 1:
        return [answers]
    parts: list[Answers] = []
    start = 0
    for size in sizes:
        parts.append(answers[start : start + size])
        start += size
    return parts


def same(first: Answers, second: Answers) -> bool:
    """Tell whether two answers are the same bit for bit, NaN included."""
    if isinstance(first, dict) or isinstance(second, dict):
        both = isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys()
        return both and all(same(first[name], second[name]) for name in first)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))


def plain(answers: Answers) -> Any:
    """Turn answers into lists of Python's own numbers and texts."""
    return {name: array.tolist() for name, array in answers.items()} if isinstance(answers, dict) else answers.tolist()


def finite(answers: Answers) -> bool:
    """Tell whether every number is one that JSON can write."""
    if isinstance(answers, dict):
        return all(finite(array) for array in answers.values())
    return answers.dtype.kind != "f" or bool(np.isfinite(answers).all())
