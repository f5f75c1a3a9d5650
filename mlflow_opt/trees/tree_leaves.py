"""Smaller trees from trained ones, without training: subtrees become leaves where that changes the answers least.

For a price per leaf, every tree is cut back to the subtree with the least sum of error and price: minimal cost-complexity
pruning. The error is the mean squared change of the tree's own answer on given rows, not the error on labels, so that it
works on any sum of trees (boosting, forests, single trees), and one price serves all of them: leaves go first where they
matter least. A merged leaf answers with the mean over the rows that came there.

Departure from the book: it grows the error of a class or a mean in one tree; for a single regression tree, and for a binary
classification tree with the Gini impurity, both are the same.

Source: Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlflow_opt.export.tree_columns import TreeColumns
from mlflow_opt.trees.tree_paths import leaves_reached, levels_of, member_sets, through, ways_of

# Every leaf counts as if this part of a row more had come, so that what no row reached has a mean too.
_PRIOR_ROWS = 0.01
_BLOCK_ROWS = 1000
_HALVINGS = 40


@dataclass(frozen=True)
class Merged:
    """Trees with fewer leaves, and the most that the sum of a row's trees can have changed, for any row at all."""

    columns: TreeColumns
    bound: float


@dataclass(frozen=True)
class Grown:
    """Trees and how many of some rows reached each leaf.

    Args:
        columns: the trees.
        leaf_rows: shape (leaves,).
        rows: how many rows there were.
    """

    columns: TreeColumns
    leaf_rows: np.ndarray
    rows: int

    @property
    def leaves(self) -> int:
        """Count the leaves."""
        return len(self.columns.leaf_value)

    @property
    def depth(self) -> int:
        """Count the decisions on the longest way down a tree."""
        return len(self._stats.levels)

    def merged(self, price: float, depth: int = 0) -> Merged:
        """Cut every tree back to the cheapest of its subtrees.

        Args:
            price: of a leaf, in squared change of the answer; 0 merges only leaves that say the same.
            depth: most decisions that a row may pass in a tree; 0 is no limit.

        Returns:
            The trees. One that is a leaf alone is added to another's leaves.
        """
        return _rebuilt(self.columns, self._collapsed(price, depth), self._stats)

    def price_for(self, share: float) -> float:
        """Find the price at which about a share of the leaves is left.

        Args:
            share: in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}; 0.5 keeps half of the leaves.")
        errors = self._stats.error
        low, high = 0.0, float(errors.max(initial=0.0)) + 1e-12
        if self._left(self._collapsed(high, 0)) > share * self.leaves:
            return high
        low = 1e-15 * high
        for _ in range(_HALVINGS):
            # Prices span many orders of magnitude.
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self._left(self._collapsed(middle, 0)) > share * self.leaves else (low, middle)
        return high

    def _left(self, collapsed: np.ndarray) -> int:
        kept = _kept(self.columns, collapsed)
        return int(kept.sum()) + len(self.columns.root)

    def _collapsed(self, price: float, depth: int) -> np.ndarray:
        stats, (true, false) = self._stats, ways_of(self.columns)
        best = np.full(len(true), np.inf)
        collapsed = np.zeros(len(true), bool)
        for level in reversed(range(len(stats.levels))):
            at = stats.levels[level]
            split = through(best, true[at], price) + through(best, false[at], price)
            whole = stats.error[at] + price
            collapsed[at] = (whole <= split) | (bool(depth) and level >= depth)
            best[at] = np.where(collapsed[at], whole, split)
        return collapsed

    @cached_property
    def _stats(self) -> _Stats:
        return _stats(self.columns, self.leaf_rows, self.rows)


def grown(columns: TreeColumns, rows: np.ndarray) -> Grown:
    """Let rows run down the trees.

    Args:
        columns: the trees.
        rows: (n, features), in the number type of the trees.
    """
    counted = np.zeros(len(columns.leaf_value))
    for start in range(0, len(rows), _BLOCK_ROWS):
        counted += np.bincount(leaves_reached(columns, rows[start : start + _BLOCK_ROWS]).ravel(), minlength=len(counted))
    return Grown(columns, counted, len(rows))


@dataclass(frozen=True)
class _Stats:
    """Decisions by level; of every decision the rows that came, and mean and squared error of a leaf in its place."""

    levels: list[np.ndarray]
    count: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    leaf_count: np.ndarray


def _stats(columns: TreeColumns, leaf_rows: np.ndarray, rows: int) -> _Stats:
    (true, false), levels = ways_of(columns), levels_of(columns)
    leaf_count, leaf_value = leaf_rows + _PRIOR_ROWS, np.array(columns.leaf_value)
    count, mean, error = (np.zeros(len(true)) for _ in range(3))
    for at in reversed(levels):
        ones, others = (through(count, way[at], leaf_count) for way in (true, false))
        first, second = (through(mean, way[at], leaf_value) for way in (true, false))
        # Summed this way, and not as a difference of squares, leaves that say the same have no error at all (Chan et al. 1979).
        count[at] = ones + others
        mean[at] = first + (second - first) * others / count[at]
        below = through(error, true[at], 0.0) + through(error, false[at], 0.0)
        error[at] = below + (second - first) ** 2 * ones * others / count[at]
    return _Stats(levels, count, mean, error / max(rows, 1), leaf_count)


def _kept(columns: TreeColumns, collapsed: np.ndarray) -> np.ndarray:
    """Tell which decisions are still reached when some have become leaves."""
    true, false = ways_of(columns)
    kept = np.zeros(len(true), bool)
    at = np.array(columns.root)
    while at.size:
        at = at[~collapsed[at]]
        kept[at] = True
        at = np.concatenate([true[at], false[at]])
        at = at[at >= 0]
    return kept


@dataclass(frozen=True)
class _Places:
    """Which tree every decision and leaf is in, and the topmost decision above a leaf that has become one (-1: none has)."""

    tree: np.ndarray
    leaf_tree: np.ndarray
    leaf_owner: np.ndarray


def _places(columns: TreeColumns, levels: list[np.ndarray], collapsed: np.ndarray) -> _Places:
    tree, owner = (np.full(len(columns.feature), -1) for _ in range(2))
    leaf_tree, leaf_owner = (np.full(len(columns.leaf_value), -1) for _ in range(2))
    roots = np.array(columns.root)
    tree[roots], owner[roots] = np.arange(len(roots)), np.where(collapsed[roots], roots, -1)
    for at in levels:
        for way in ways_of(columns):
            inner, leaf = way[at] >= 0, way[at] < 0
            below, last = way[at][inner], -way[at][leaf] - 1
            above = owner[at][inner]
            tree[below], leaf_tree[last] = tree[at][inner], tree[at][leaf]
            owner[below] = np.where(above >= 0, above, np.where(collapsed[below], below, -1))
            leaf_owner[last] = owner[at][leaf]
    return _Places(tree, leaf_tree, leaf_owner)


def _rebuilt(columns: TreeColumns, collapsed: np.ndarray, stats: _Stats) -> Merged:
    values, targets = np.array(columns.leaf_value), np.array(columns.leaf_target)
    places = _places(columns, stats.levels, collapsed)
    of_tree = np.zeros(len(columns.root), int)
    of_tree[places.leaf_tree] = targets
    if np.any(of_tree[places.leaf_tree] != targets):
        raise ValueError("trees whose leaves add to several columns cannot lose leaves; export the model again with this project.")
    change = np.zeros(len(columns.root))
    moved = np.where(places.leaf_owner >= 0, np.abs(stats.mean[places.leaf_owner] - values), 0.0)
    np.maximum.at(change, places.leaf_tree, moved)
    kept, roots = _kept(columns, collapsed), np.array(columns.root)
    made = _shrunk(columns, kept, stats, of_tree[places.tree])
    for target in sorted(set(of_tree.tolist())):
        alone = ~kept[roots] & (of_tree == target)
        _add_constant(made, float(stats.mean[roots[alone]].sum()), target)
    return Merged(made, max(float(change[of_tree == target].sum()) for target in set(of_tree.tolist())))


def _shrunk(columns: TreeColumns, kept: np.ndarray, stats: _Stats, target: np.ndarray) -> TreeColumns:
    """Keep some decisions; where a way led to another one there is now a leaf."""
    at, number = np.flatnonzero(kept), np.cumsum(kept) - 1
    way = np.stack(ways_of(columns), axis=1)[at]
    inner = (way >= 0) & kept[np.maximum(way, 0)]
    values = through(stats.mean, way, np.array(columns.leaf_value))
    ends = np.where(inner, number[np.maximum(way, 0)], np.cumsum(~inner).reshape(way.shape) - 1)
    counts = through(stats.count, way, stats.leaf_count)
    sets = member_sets(columns)
    return TreeColumns(
        feature=np.array(columns.feature)[at].tolist(),
        mode=np.array(columns.mode)[at].tolist(),
        split=np.array(columns.split)[at].tolist(),
        true_id=ends[:, 0].tolist(),
        true_leaf=(~inner[:, 0]).astype(int).tolist(),
        false_id=ends[:, 1].tolist(),
        false_leaf=(~inner[:, 1]).astype(int).tolist(),
        missing_true=np.array(columns.missing_true)[at].tolist(),
        members=[value for one in at.tolist() if one in sets for value in (*sets[one], float("nan"))],
        root=[int(number[one]) for one in columns.root if kept[one]],
        leaf_value=values[~inner].tolist(),
        leaf_target=np.repeat(target[at], 2).reshape(way.shape)[~inner].tolist(),
        likely=(counts[:, 0] > counts[:, 1]).tolist(),
    )


def _add_constant(columns: TreeColumns, constant: float, target: int) -> None:
    """Add to a column what trees that are one leaf now say: on the leaves of another tree, or as a tree if there is no other."""
    if target not in columns.leaf_target:
        columns.root.append(columns.only_leaf(constant, target))
        return
    if not constant:
        return
    levels, none = levels_of(columns), np.zeros(len(columns.feature), bool)
    trees = _places(columns, levels, none).leaf_tree
    first = trees[columns.leaf_target.index(target)]
    columns.leaf_value = np.where(trees == first, np.array(columns.leaf_value) + constant, columns.leaf_value).tolist()
