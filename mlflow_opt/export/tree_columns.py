"""Decision trees as the columns of ONNX's tree operators, whatever library grew them.

ONNX Runtime walks one row down a tree by a jump where a decision holds and by the next node in memory where it does not.
So the way that more training rows took should be the one where it does not hold: the likely path lies in consecutive
memory and the processor's branch prediction is right more often. A decision `x <= t` that holds more often than not is
therefore turned into `-x <= u`, u being the largest number below -t, which holds exactly where it did not; the operator
reads `-x` from a second half of its input. No answer changes by a bit.

Source: Asadi, Lin, de Vries, "Runtime optimizations for tree-based machine learning models", 2014 (why mispredicted
branches and cache misses, not comparisons, are what trees cost).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Codes of ai.onnx.ml.TreeEnsemble, version 5.
LEQ, LESS, MEMBER = 0, 1, 6
_SUM, _NO_TRANSFORM = 1, 0
# Below this the two more nodes cost one row more (0.6 us) than the order gains.
_WORTH_TURNING = 2_500


@dataclass(frozen=True)
class NodeArrays:
    """A tree as arrays over its nodes: children (negative at a leaf), what is compared with what, where missing goes, leaf values.

    `rows`, training rows that came to each node, orders the ways of a decision by how likely they are; None if nobody knows.
    """

    left: Any
    right: Any
    feature: Any
    threshold: Any
    missing_left: Any
    value: Any
    rows: Any = None


@dataclass
class TreeColumns:
    """The attributes of one TreeEnsemble (version 5) while they are being filled, node by node; a leaf has one target.

    `likely` tells of each decision whether it holds more often than not.
    """

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
    likely: list[bool] = field(default_factory=list)

    def decision(self, feature: int, mode: int, split: float, *, missing_true: bool, likely: bool = False) -> int:
        """Add a decision whose two ways are joined later, and number it."""
        self.feature.append(feature)
        self.mode.append(mode)
        self.split.append(split)
        self.missing_true.append(int(missing_true))
        self.likely.append(likely)
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
        rows = np.zeros(len(left)) if tree.rows is None else np.asarray(tree.rows)
        self.likely += (rows[left[at]] > rows[right[at]]).tolist()

    def likely_last(self, width: int, dtype: Any) -> bool:
        """Turn around the decisions that hold more often than not, if there are enough of them to pay for the second half of the input.

        Args:
            width: columns of the operator's input; those that a turned decision reads begin there.
            dtype: np.float32 or np.float64, of the thresholds.

        Returns:
            Whether any was turned: the input must then be the features and, behind them, the features negated.
        """
        if len(self.feature) < _WORTH_TURNING:
            return False
        split, mode = rounded(self.split, self.mode, dtype), np.array(self.mode)
        with np.errstate(over="ignore"):
            turned = np.nextafter(-split, np.array(-np.inf, dtype))
        # Nothing is below minus infinity, and what is below the smallest normal number some settings take for zero.
        turns = np.array(self.likely) & (mode == LEQ) & np.isfinite(turned) & (np.abs(turned) >= np.finfo(dtype).tiny)
        self.split = np.where(turns, turned, split).tolist()
        self.feature = (np.array(self.feature) + width * turns).tolist()
        self.missing_true = (np.array(self.missing_true) ^ turns).tolist()
        for one, other in (("true_id", "false_id"), ("true_leaf", "false_leaf")):
            true, false = np.array(getattr(self, one)), np.array(getattr(self, other))
            setattr(self, one, np.where(turns, false, true).tolist())
            setattr(self, other, np.where(turns, true, false).tolist())
        self.likely = (np.array(self.likely) & ~turns).tolist()
        return bool(turns.any())

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
            "nodes_splits": numpy_helper.from_array(rounded(self.split, self.mode, dtype), "nodes_splits"),
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


def rounded(thresholds: Any, modes: Any, dtype: Any) -> np.ndarray:
    """Give thresholds in the graph's number type so that no number of that type changes its side.

    `x <= t` means the same for every x of single precision as with t rounded down to it, and `x < t` as with t rounded up.

    Example:
        >>> rounded([0.3, 0.3], [LEQ, LESS], np.float32).tolist() == [0.29999998211860657, 0.30000001192092896]
        True
    """
    exact = np.asarray(thresholds, dtype=float)
    # Beside the largest number of single precision lies infinity, which is meant.
    with np.errstate(over="ignore"):
        near = exact.astype(dtype)
        down, up = np.nextafter(near, np.array(-np.inf, dtype)), np.nextafter(near, np.array(np.inf, dtype))
    above = (near > exact) & (np.asarray(modes) == LEQ)
    below = (near < exact) & (np.asarray(modes) == LESS)
    return np.asarray(np.where(above, down, np.where(below, up, near)), dtype)
