"""The plot of what an ensemble's selections cost and hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_opt import metrics


@dataclass(frozen=True)
class Point:
    """One selection: members, quality on the rows held out, milliseconds, and the method that found it (`""` if none did)."""

    members: int
    quality: float
    latency_ms: float
    name: str = ""


def save_members(points: Sequence[Point], path: Sequence[Point], headline: str, file: Path) -> None:
    """Draw every selection looked at by latency and quality, the front joined, and beside it how both grow with the members.

    Args:
        points: every selection; those with a name are labelled.
        path: the greedy selection of one member, two members, and so on.
        headline: metric that stands for quality.
        file: where to write the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=120, layout="tight")
    left, right = figure.subplots(1, 2)
    left.scatter([p.latency_ms for p in points], [p.quality for p in points], s=14, color="#c8c8c8", label="selections looked at")
    best = front(points, headline)
    left.plot([p.latency_ms for p in best], [p.quality for p in best], color="#8c8c8c", zorder=1)
    for point in (p for p in points if p.name):
        left.scatter([point.latency_ms], [point.quality], s=46, zorder=3)
        left.annotate(
            f"{point.name} ({point.members})", (point.latency_ms, point.quality), textcoords="offset points", xytext=(6, 4), fontsize=8
        )
    left.set(xlabel="latency of one row, ms (from the members' own)", ylabel=f"{headline} on rows held out", title="Selections")
    right.plot([p.members for p in path], [p.quality for p in path], marker="o", color="#1f77b4")
    right.set(xlabel="members", ylabel=f"{headline} on rows held out", title="Greedy selection, member by member")
    cost = right.twinx()
    cost.plot([p.members for p in path], [p.latency_ms for p in path], marker="s", color="#d62728", linestyle="--")
    cost.set_ylabel("latency of one row, ms (dashed)")
    figure.savefig(file)


def front(points: Sequence[Point], headline: str) -> list[Point]:
    """Keep the points that no other beats in both latency and quality, the fastest first.

    Example:
        >>> [p.members for p in front([Point(1, 0.8, 1.0), Point(2, 0.7, 2.0), Point(3, 0.9, 3.0)], "roc_auc")]
        [1, 3]
    """
    sign = 1 if metrics.larger_is_better(headline) else -1
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -sign * p.quality)):
        if not kept or sign * point.quality > sign * kept[-1].quality:
            kept.append(point)
    return kept
