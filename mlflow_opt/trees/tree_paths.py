"""Walking down the trees of a TreeEnsemble: where decisions lead, which leaves rows reach, how many decisions that takes."""

from __future__ import annotations

import numpy as np

from mlflow_opt.export.tree_columns import LESS, MEMBER, TreeColumns

# Two parts of one key: a decision's number and a category's code.
_CODES = 2**31


def leaves_reached(columns: TreeColumns, rows: np.ndarray) -> np.ndarray:
    """Number the leaf that each row reaches in each tree, shape (n, trees)."""
    (true, false), test = ways_of(columns), _Tests(columns)
    trees = len(columns.root)
    at = np.tile(np.array(columns.root), len(rows))
    row = np.repeat(np.arange(len(rows)), trees)
    found = np.empty(len(at), np.int64)
    active = np.arange(len(at))
    while active.size:
        here = at[active]
        to = np.where(test.holds(here, rows[row[active], test.feature[here]]), true[here], false[here])
        found[active[to < 0]] = -to[to < 0] - 1
        at[active] = to
        active = active[to >= 0]
    return found.reshape(len(rows), trees)


def decisions_passed(columns: TreeColumns, leaf_rows: np.ndarray) -> float:
    """Count the decisions that rows passed in all trees: what walking down costs.

    Args:
        columns: the trees.
        leaf_rows: how many rows reached each leaf.
    """
    true, false = ways_of(columns)
    passed = np.zeros(len(true))
    levels = levels_of(columns)
    for at in reversed(levels):
        passed[at] = through(passed, true[at], leaf_rows) + through(passed, false[at], leaf_rows)
    return float(passed.sum())


def member_sets(columns: TreeColumns) -> dict[int, list[float]]:
    """Give for each decision by membership the values that make it hold."""
    sets: list[list[float]] = [[]]
    for value in columns.members:
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    at = [number for number, mode in enumerate(columns.mode) if mode == MEMBER]
    return dict(zip(at, sets, strict=False))


def ways_of(columns: TreeColumns) -> tuple[np.ndarray, np.ndarray]:
    """Give where each decision leads: a decision's number, or -1 - a leaf's."""
    sides = []
    for ids, leaves in ((columns.true_id, columns.true_leaf), (columns.false_id, columns.false_leaf)):
        numbers = np.array(ids, np.int64)
        sides.append(np.where(np.array(leaves, bool), -numbers - 1, numbers))
    return sides[0], sides[1]


def levels_of(columns: TreeColumns) -> list[np.ndarray]:
    """List the decisions by their distance from the root."""
    true, false = ways_of(columns)
    found = [np.array(columns.root)]
    while found[-1].size:
        below = np.concatenate([true[found[-1]], false[found[-1]]])
        found.append(below[below >= 0])
    return found[:-1]


def through(of_decision: np.ndarray, way: np.ndarray, of_leaf: np.ndarray | float) -> np.ndarray:
    """Look up what ways lead to.

    Args:
        of_decision: a value for each decision.
        way: ways of decisions, as `ways_of` gives them.
        of_leaf: a value for each leaf, or one for all.
    """
    at_leaf = of_leaf[np.maximum(-way - 1, 0)] if isinstance(of_leaf, np.ndarray) else of_leaf
    return np.where(way >= 0, of_decision[np.maximum(way, 0)], at_leaf)


class _Tests:
    """The decisions' conditions, for many at once."""

    def __init__(self, columns: TreeColumns) -> None:
        self.feature, self.split = np.array(columns.feature), np.array(columns.split)
        self._mode, self._missing = np.array(columns.mode), np.array(columns.missing_true, bool)
        sets = member_sets(columns)
        self._members = np.sort([at * _CODES + int(value) for at, values in sets.items() for value in values])

    def holds(self, at: np.ndarray, values: np.ndarray) -> np.ndarray:
        mode, split = self._mode[at], self.split[at]
        # A comparison with a missing value does not hold.
        found = np.where(mode == LESS, values < split, values <= split)
        if len(self._members):
            coded = mode == MEMBER
            whole = np.nan_to_num(values[coded], nan=-1.0, posinf=-1.0, neginf=-1.0)
            keys = at[coded] * _CODES + np.clip(whole, -1, _CODES - 1).astype(np.int64)
            near = np.minimum(np.searchsorted(self._members, keys), len(self._members) - 1)
            found[coded] = (self._members[near] == keys) & (whole == np.trunc(whole)) & (whole >= 0)
        return np.asarray(found | (self._missing[at] & np.isnan(values)))
