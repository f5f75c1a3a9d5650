"""How far a model of trees can be pruned: curves of quality over size on validation rows, and the smallest size that holds.

Two ways without training: the first rounds of the model as it is, and subtrees merged into leaves. Nothing here sees selection
or gate rows: a size is found on others, and whether it holds is somebody else's verdict.

A loss stands here with its standard error on top (the one-standard-error rule, turned around: as small as is safe, not as large):
of some hundred sizes and settings the smallest that seems to hold is the one that was lucky.

Source: Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984; the rule is in section 3.4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mlflow_opt import metrics
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.measurement.influence import pull
from mlflow_opt.measurement.own_metrics import OwnMetric
from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Fitted
from mlflow_opt.trees.tree_graphs import Site, scores_of, sites_of, with_trees
from mlflow_opt.trees.tree_leaves import grown
from mlflow_opt.trees.tree_paths import decisions_passed
from mlflow_opt.trees.tree_rounds import first_rounds, rounds_in

# From one size to the next smaller one.
_STEP = math.sqrt(0.5)
SMALLEST = 4
MOST_ROWS = 20_000
# A relative loss of 4% of log loss counts as much as one point of the headline.
_LOG_LOSS_WEIGHT, _LEAST_LOG_LOSS = 0.25, 1e-3
_LEAF_SHARES = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)


@dataclass(frozen=True)
class Judged:
    """How good answers are.

    Args:
        headline: the metric, turned so that larger is better.
        log_loss: 0 for a regression.
        pull: every row's part in the headline, shape (n,).
    """

    headline: float
    log_loss: float
    pull: np.ndarray

    def lost(self, reference: Judged) -> float:
        """Give what these answers lose against a reference on the same rows: in the headline, or in log loss where that says more.

        The headline of a binary task is a ranking's, which five small boosting rounds can have right while every probability
        is still close to the mean and no row is answered with the rarer class. Log loss sees that.

        Returns:
            The headline's loss has its standard error on top: 0 for equal answers, little for nearly equal ones.
        """
        worse = (self.log_loss - reference.log_loss) / max(reference.log_loss, _LEAST_LOG_LOSS)
        error = float((self.pull - reference.pull).std()) / math.sqrt(len(self.pull))
        return max(reference.headline - self.headline + error, _LOG_LOSS_WEIGHT * worse)


@dataclass(frozen=True)
class Ruler:
    """Rows with labels, by which answers are judged.

    Args:
        rows: that the judged models were not trained on.
        labels: shape (n,).
        task: what is predicted.
        headline: a quality metric of the task.
        own: the user's own metrics.
        threshold: probability of the later class from which it is the answer.
    """

    rows: pd.DataFrame
    labels: np.ndarray
    task: Task
    headline: str
    own: tuple[OwnMetric, ...] = ()
    threshold: float = 0.5

    def judge(self, scores: np.ndarray) -> Judged:
        """Judge answers: (n, classes) probabilities, (n,) of the later class, or values."""
        columns = np.stack([1 - scores, scores], axis=1) if self.task.kind == "binary" and scores.ndim == 1 else scores
        scored = score(self.task, self.labels, columns, self.own, self.threshold)
        values = scored.values
        if self.headline not in values:
            raise ValueError(f"{self.headline} must be defined on the {len(self.labels)} validation rows, which it is not; give more rows.")
        sign = 1.0 if metrics.larger_is_better(self.headline) else -1.0
        return Judged(sign * values[self.headline], values.get("log_loss", 0.0), pull(self.headline, scored))


@dataclass(frozen=True)
class Point:
    """A size, and what a model of that size loses at one standard error's distance: of `Judged.lost`."""

    size: float
    lost: float


def sizes_below(rounds: int) -> list[int]:
    """List sizes to try, largest first, each about 0.7 of the one before.

    Example:
        >>> sizes_below(40)
        [40, 28, 20, 14, 10, 7, 5]
    """
    count = 1 + max(0, math.floor(math.log(SMALLEST / max(rounds, SMALLEST)) / math.log(_STEP)))
    return list(dict.fromkeys(max(1, round(rounds * _STEP**step)) for step in range(count)))


def smallest(curve: Sequence[Point], allowed: float) -> float:
    """Find the smallest size from which on no larger one loses more than is allowed: a lucky dip of the curve does not count.

    Args:
        curve: at least one point.
        allowed: largest loss.

    Returns:
        The largest size if not even that one holds.

    Example:
        >>> smallest([Point(8, 0.0), Point(4, 0.01), Point(2, 0.2), Point(1, 0.0)], 0.02)
        4
    """
    ordered = sorted(curve, key=lambda point: -point.size)
    found = ordered[0].size
    for point in ordered:
        if point.lost > allowed:
            break
        found = point.size
    return found


def rounds_curve(fitted: Fitted, ruler: Ruler, reference: Judged) -> list[Point]:
    """Judge a trained model after ever fewer rounds; no points if it is no sequence.

    Args:
        fitted: it is left as it is.
        ruler: rows that it was not trained on.
        reference: what the losses are against.
    """
    sizes = sizes_below(rounds_in(fitted.estimator)) if rounds_in(fitted.estimator) else []
    return [Point(size, ruler.judge(shortened(fitted, size).scores(ruler.rows)).lost(reference)) for size in sizes]


def shortened(fitted: Fitted, rounds: int) -> Fitted:
    """Keep a trained model's first rounds."""
    return replace(fitted, estimator=first_rounds(fitted.estimator, rounds))


class LeafPruner:
    """The trees of a graph with the rows that came to each of their leaves counted, ready to be cut."""

    def __init__(self, graph: OnnxGraph, rows: pd.DataFrame) -> None:
        """Let rows run down the trees.

        Args:
            graph: an export, or the graph of a variant.
            rows: train rows, at most 20,000 of which are looked at.

        Raises:
            ValueError: the graph has no trees.
        """
        self.graph = graph
        found = sites_of(graph, rows.iloc[:MOST_ROWS])
        self._sites = [(site, grown(site.columns, matrix), matrix.shape[1]) for site, matrix in found]

    @property
    def leaves(self) -> int:
        """Count the leaves."""
        return sum(one.leaves for _, one, _ in self._sites)

    @property
    def trees(self) -> int:
        """Count the trees."""
        return sum(len(site.columns.root) for site, _, _ in self._sites)

    @property
    def depth(self) -> int:
        """Count the decisions on the longest way down a tree."""
        return max(one.depth for _, one, _ in self._sites)

    def cut(self, share: float = 1.0, depth: int = 0) -> tuple[OnnxGraph, float]:
        """Make a graph with about a share of the leaves, and none deeper than a depth.

        Args:
            share: in (0, 1].
            depth: most decisions that a row may pass in a tree; 0 is no limit.

        Returns:
            The graph, and the most that a sum of trees can have changed by, for any row.
        """
        made = [(site, one.merged(one.price_for(share) if share < 1 else 0.0, depth), width) for site, one, width in self._sites]
        changed: list[tuple[Site, int]] = [(replace(site, columns=merged.columns), width) for site, merged, width in made]
        return with_trees(self.graph, changed), max(merged.bound for _, merged, _ in made)

    def share_curve(self, ruler: Ruler, reference: Judged) -> list[Point]:
        """Judge ever smaller shares of the leaves."""
        return [Point(share, self._judged(ruler, share, 0).lost(reference)) for share in _LEAF_SHARES]

    def depth_curve(self, ruler: Ruler, reference: Judged) -> list[Point]:
        """Judge ever shallower trees."""
        depths = range(self.depth, 0, -max(1, self.depth // 12))
        return [Point(depth, self._judged(ruler, 1.0, depth).lost(reference)) for depth in depths]

    def _judged(self, ruler: Ruler, share: float, depth: int) -> Judged:
        return ruler.judge(scores_of(self.cut(share, depth)[0], ruler.rows))


def facts_of(graph: OnnxGraph, rows: pd.DataFrame) -> dict[str, float]:
    """Count a graph's trees and leaves, and the decisions that a row passes in them on average."""
    trees = leaves = passed = 0.0
    for site, matrix in sites_of(graph, rows):
        one = grown(site.columns, matrix)
        trees, leaves = trees + len(site.columns.root), leaves + one.leaves
        passed += decisions_passed(site.columns, one.leaf_rows) / max(len(rows), 1)
    return {"trees": trees, "leaves": leaves, "decisions_per_row": passed}
