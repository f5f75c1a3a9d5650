"""Read arrays out of a request's JSON by the very numpy call that MLflow's scoring code makes, so that the casts are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """An array that the model's signature requires: its name (`""` if it has none), its type, its shape with -1 for rows."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class TensorReader:
    """Reads the arrays of a request: `inputs` as they are, `instances` row by row."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Prepare for a signature.

        Args:
            tensors: all of the signature's; each has rows first.

        """
        self.tensors = tuple(tensors)
        self._names = {tensor.name for tensor in tensors}

    def read(self, payload: Any) -> dict[str, np.ndarray] | None:
        """Read the arrays of a request, None if only MLflow's own code can say what it means."""
        if type(payload) is not dict or len(payload) != 1:
            return None
        ((form, content),) = payload.items()
        lists = self._lists(form, content)
        if lists is None:
            return None
        try:
            arrays = {tensor.name: np.array(lists[tensor.name], dtype=tensor.dtype) for tensor in self.tensors}
        except (TypeError, ValueError, OverflowError):
            return None
        rows = {len(array) if array.ndim else 0 for array in arrays.values()}
        fits = all(_fits(arrays[tensor.name].shape, tensor.shape) for tensor in self.tensors)
        return arrays if fits and len(rows) == 1 and rows != {0} else None

    def _lists(self, form: str, content: Any) -> dict[str, Any] | None:
        if form not in ("inputs", "instances"):
            return None
        if type(content) is list and content and len(self.tensors) == 1 and not any(type(row) is dict for row in content):
            return {self.tensors[0].name: content}
        if self._names == {""}:
            return None
        if form == "inputs":
            return content if type(content) is dict and content.keys() == self._names else None
        if type(content) is list and all(type(row) is dict and row.keys() == self._names for row in content):
            return {name: [row[name] for row in content] for name in self._names}
        return None


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for got, want in zip(shape, wanted, strict=True))
