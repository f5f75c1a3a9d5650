"""Decision trees as the columns of ONNX's tree operators, whatever library grew them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Codes of ai.onnx.ml.TreeEnsemble, version 5.
LEQ, LESS, MEMBER = 0, 1, 6
_SUM, _NO_TRANSFORM = 1, 0


@dataclass(frozen=True)
class NodeArrays:
    """A tree as arrays over its nodes: children (negative at a leaf), what is compared with what, where missing goes, leaf values."""

    left: Any
    right: Any
    feature: Any
    threshold: Any
    missing_left: Any
    value: Any


@dataclass
class TreeColumns:
    """The attributes of one TreeEnsemble (version 5) while they are being filled, node by node; a leaf has one target."""

    feature: list[int] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    split: list[float] = field(default_factory=list)
    true_id: list[int] = field(default_factory=list)
    true_leaf: list[int] = field(default_factory=list)
    false_id: list[int] = field(default_factory=list)
    false_leaf: list[int] = field(default_factory=list)
    missing_true: list[int] = field(default_factory=list)
    members: list[float] = field(default_factory=list)
    root: list[int] = field(default_factory=list)
    leaf_value: list[float] = field(default_factory=list)
    leaf_target: list[int] = field(default_factory=list)

    def decision(self, feature: int, mode: int, split: float, *, missing_true: bool) -> int:
        """Add a decision whose two ways are joined later, and number it."""
        self.feature.append(feature)
        self.mode.append(mode)
        self.split.append(split)
        self.missing_true.append(int(missing_true))
        for column in (self.true_id, self.true_leaf, self.false_id, self.false_leaf):
            column.append(0)
        return len(self.feature) - 1

    def leaf(self, value: float, target: int) -> int:
        """Add a leaf and number it."""
        self.leaf_value.append(value)
        self.leaf_target.append(target)
        return len(self.leaf_value) - 1

    def join(self, at: int, true: tuple[int, bool], false: tuple[int, bool]) -> None:
        """Say where a decision leads: the number of a decision or of a leaf, and whether it is a leaf."""
        self.true_id[at], self.true_leaf[at] = true[0], int(true[1])
        self.false_id[at], self.false_leaf[at] = false[0], int(false[1])

    def only_leaf(self, value: float, target: int) -> int:
        """Add a tree that never decides: the operator's root must be a decision, so both ways lead to the same answer."""
        at = self.decision(0, LEQ, 0.0, missing_true=True)
        self.join(at, (self.leaf(value, target), True), (self.leaf(value, target), True))
        return at

    def grow(self, tree: NodeArrays, target: int, mode: int = LEQ) -> None:
        """Add a tree whose leaves add to a column of the answer.

        Args:
            tree: its nodes, the root first.
            target: the column.
            mode: the comparison that sends a value left.
        """
        left, right = np.asarray(tree.left), np.asarray(tree.right)
        if left[0] < 0:
            self.root.append(self.only_leaf(float(tree.value[0]), target))
            return
        inner = left >= 0
        numbers = np.where(inner, np.cumsum(inner) - 1 + len(self.feature), np.cumsum(~inner) - 1 + len(self.leaf_value))
        at = np.flatnonzero(inner)
        self.root.append(int(numbers[0]))
        self.feature += np.asarray(tree.feature)[at].tolist()
        self.mode += [mode] * len(at)
        self.split += np.asarray(tree.threshold, float)[at].tolist()
        self.missing_true += np.asarray(tree.missing_left)[at].astype(int).tolist()
        self.true_id += numbers[left[at]].tolist()
        self.true_leaf += (~inner[left[at]]).astype(int).tolist()
        self.false_id += numbers[right[at]].tolist()
        self.false_leaf += (~inner[right[at]]).astype(int).tolist()
        self.leaf_value += np.asarray(tree.value, float)[~inner].tolist()
        self.leaf_target += [target] * int((~inner).sum())

    def attributes(self, targets: int, share: int, dtype: Any) -> dict[str, Any]:
        """Write the operator's attributes.

        Args:
            targets: columns of the answer.
            share: number that every leaf is divided by.
            dtype: np.float32 or np.float64, of thresholds, leaves, input and answer.
        """
        from onnx import numpy_helper

        made: dict[str, Any] = {
            "n_targets": targets,
            "aggregate_function": _SUM,
            "post_transform": _NO_TRANSFORM,
            "tree_roots": self.root,
            "nodes_featureids": self.feature,
            "nodes_modes": numpy_helper.from_array(np.array(self.mode, np.uint8), "nodes_modes"),
            "nodes_splits": numpy_helper.from_array(np.array(self.split, dtype), "nodes_splits"),
            "nodes_truenodeids": self.true_id,
            "nodes_trueleafs": self.true_leaf,
            "nodes_falsenodeids": self.false_id,
            "nodes_falseleafs": self.false_leaf,
            "nodes_missing_value_tracks_true": self.missing_true,
            "leaf_targetids": self.leaf_target,
            "leaf_weights": numpy_helper.from_array((np.array(self.leaf_value) / share).astype(dtype), "leaf_weights"),
        }
        if self.members:
            made["membership_values"] = numpy_helper.from_array(np.array(self.members, dtype), "membership_values")
        return made
