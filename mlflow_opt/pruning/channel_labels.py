"""Which channels, neurons and heads of a network live and die together: labels on the elements of its tensors.

Every index of every axis of every parameter gets a label. A label travels with the values that the parameter makes, and
wherever an operation needs two elements to be there together (a residual addition, a normalisation, a group of a grouped
convolution, all numbers of an attention head), their labels are joined in a union-find. What shares a label in the end is
one unit: it can be removed as a whole and not in part. Joining too much only makes units larger, never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
# The label of whatever must stay: inputs, outputs, and what an unknown operation has touched.
FIXED = 0


@dataclass(frozen=True)
class Value:
    """A tensor on its way through the network.

    Args:
        shape: of the tensor.
        labels: as many axes, each of full size, or 1 where the label does not change along it.
    """

    shape: tuple[int, ...]
    labels: Ints


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, or a part of one, before an operation has used it.

    Args:
        shape: of the tensor.
        name: of the parameter.
        axes: for each axis of the tensor the parameter's own axis and the indices on it; None for an axis of size 1 that was added.
    """

    shape: tuple[int, ...]
    name: str
    axes: tuple[tuple[int, Ints] | None, ...]


class Ledger:
    """The union-find of labels, and the labels of every axis of every parameter."""

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._axes: dict[tuple[str, int], Ints] = {}

    def new(self, count: int) -> Ints:
        """Hand out labels that nothing has yet."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def add_parameter(self, name: str, shape: Sequence[int]) -> Weight:
        """Label every index of every axis of a parameter."""
        for axis, size in enumerate(shape):
            self._axes[name, axis] = self.new(size)
        return Weight(tuple(shape), name, tuple((axis, np.arange(size)) for axis, size in enumerate(shape)))

    def find(self, label: int) -> int:
        """Return the label that stands for all that are joined with this one; `FIXED` stands for itself."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def roots(self, labels: Ints) -> Ints:
        """Return `find` of every label."""
        unique, inverse = np.unique(labels, return_inverse=True)
        found: Ints = np.array([self.find(int(one)) for one in unique], dtype=np.int64)[inverse].reshape(labels.shape)
        return found

    def join(self, first: Ints, second: Ints) -> None:
        """Join labels element by element; the arrays are broadcast."""
        pairs = np.stack([one.ravel() for one in np.broadcast_arrays(first, second)])
        for a, b in np.unique(pairs, axis=1).T:
            low, high = sorted((self.find(int(a)), self.find(int(b))))
            # The smaller one stands for both, so that FIXED always wins.
            self._parent[high] = low

    def fix(self, labels: Ints) -> None:
        """Keep everything with these labels."""
        self.join(labels, np.array(FIXED))

    def join_along(self, labels: Ints, axes: Iterable[int]) -> Ints:
        """Join all labels along some axes, and return them with these axes of size 1."""
        for axis in axes:
            if labels.shape[axis] > 1:
                first = labels.take([0], axis)
                self.join(labels, first)
                labels = first
        return self.roots(labels)

    def along(self, value: Value, axis: int) -> Ints:
        """Return one label an index of one axis, whatever lies behind an index being joined; shape (size,)."""
        others = [one for one in range(len(value.shape)) if one != axis]
        labels = self.join_along(value.labels, others).reshape(-1)
        return np.broadcast_to(labels, (value.shape[axis],))

    def of_axis(self, weight: Weight, axis: int) -> Ints:
        """Return the labels of an axis of a parameter, shape (size,)."""
        where = weight.axes[axis]
        if where is None:
            return np.zeros(1, dtype=np.int64)
        return self._axes[weight.name, where[0]][where[1]]

    def fix_weight(self, weight: Weight) -> None:
        """Keep a parameter as it is."""
        for (name, _), labels in self._axes.items():
            if name == weight.name:
                self.fix(labels)

    def parameters(self) -> dict[tuple[str, int], Ints]:
        """Return the roots of every axis of every parameter."""
        return {key: self.roots(labels) for key, labels in self._axes.items()}

    def untracked(self, shape: Sequence[int]) -> Value:
        """Return a tensor all of which must stay."""
        return Value(tuple(shape), np.full((1,) * len(shape), FIXED, dtype=np.int64))

    def varying(self, value: Value) -> list[int]:
        """List the axes along which the labels change."""
        roots = self.roots(value.labels)
        return [axis for axis in range(roots.ndim) if not (roots == roots.take([0], axis)).all()]

    def compressed(self, value: Value) -> Value:
        """Return the value with labels of size 1 along every axis on which they do not change."""
        labels = self.roots(value.labels)
        for axis in range(labels.ndim):
            if (labels == labels.take([0], axis)).all():
                labels = labels.take([0], axis)
        return Value(value.shape, labels)

    def full(self, value: Value) -> Ints:
        """Return one label an element, shape as the tensor's."""
        return np.broadcast_to(value.labels, value.shape)

    def combine(self, first: Value, second: Value, shape: Sequence[int]) -> Value:
        """Join two tensors element by element, as an addition or a product does.

        What is the same for all channels (a scalar, a mask over places) does not bind them.
        """
        a, b = (self.compressed(_widened(one, len(shape))) for one in (first, second))
        for one, other in ((a, b), (b, a)):
            neutral = not self.roots(one.labels).any()
            if neutral and all(one.shape[axis] == 1 for axis in self.varying(other)):
                return Value(tuple(shape), other.labels)
        labels = np.broadcast_arrays(a.labels, b.labels)
        self.join(*labels)
        return self.compressed(Value(tuple(shape), self.roots(labels[0])))

    def bind(self, value: Value, weight: Weight) -> None:
        """Join a parameter with the tensor that it is added to or multiplied with."""
        ahead = len(value.shape) - len(weight.shape)
        for axis, size in enumerate(weight.shape):
            at = axis + ahead
            if weight.axes[axis] is None:
                continue
            if at < 0 or size == 1 or at not in self.varying(value):
                self.fix(self.of_axis(weight, axis))
            else:
                self.join(self.along(value, at), self.of_axis(weight, axis))


def _widened(value: Value, axes: int) -> Value:
    ahead = (1,) * (axes - len(value.shape))
    return Value(ahead + value.shape, value.labels.reshape(ahead + value.labels.shape))
