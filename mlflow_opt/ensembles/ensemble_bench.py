"""What is known of an ensemble's members when some are chosen: how well they hold the truth, and what each of them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_opt import metrics
from mlflow_opt.ensembles.ensemble_selection import Holds
from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Task


@dataclass(frozen=True)
class Bench:
    """Members' answers on rows that they were not trained on, and their measured costs.

    Args:
        task: its classes are class codes.
        holds: the members' hold on the truth.
        answers: (members, rows, classes) or (members, rows).
        labels: class codes or targets of these rows.
        costs: milliseconds of each member at one row beyond the fixed cost of a call, shape (members,).
        fixed: milliseconds of a call, whatever it computes.
        whole: milliseconds of the whole ensemble in the same runtime.
        full: weights that stand for the whole ensemble.
    """

    task: Task
    holds: Holds
    answers: np.ndarray
    labels: np.ndarray
    costs: np.ndarray
    fixed: float
    whole: float
    full: tuple[float, ...]

    @property
    def headline(self) -> str:
        """Name the metric that stands for quality."""
        return metrics.QUALITY[self.task.kind][0]

    def latency(self, weights: Sequence[float]) -> float:
        """Estimate the milliseconds of a selection; its variant is timed for itself later."""
        return self.fixed + float(self.costs[np.asarray(weights) > 0].sum())

    def quality(self, weights: Sequence[float]) -> Mapping[str, float]:
        """Score a weighted average on the rows held out."""
        shares = np.asarray(weights, dtype=float) / sum(weights)
        return score(self.task, self.labels, np.tensordot(shares, self.answers, axes=1)).values

    def lost(self, weights: Sequence[float]) -> float:
        """Give how much worse than the whole ensemble a selection is on the rows held out."""
        drop = self.quality(self.full)[self.headline] - self.quality(weights)[self.headline]
        return drop if metrics.larger_is_better(self.headline) else -drop


def figures(bench: Bench, weights: Sequence[float]) -> dict[str, float]:
    """Give what a selection looks like before it is built and measured."""
    values = bench.quality(weights)
    shown = {name: values[name] for name in (bench.headline, "log_loss", "rmse") if name in values}
    members = float(np.count_nonzero(np.asarray(weights)))
    return {f"held_out_{name}": value for name, value in shown.items()} | {
        "members": members,
        "latency_estimate_ms": bench.latency(weights),
    }
