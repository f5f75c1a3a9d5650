"""Pruning curves where people look for them: loss over size as metrics with steps, and one picture of all on the parent run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt.runs import tracking
from mlflow_opt.trees.tree_pruning import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish(run_id: str, curves: Mapping[str, Sequence[Point]], headline: str, allowed: float) -> None:
    """Write curves on a run.

    Args:
        run_id: the parent run.
        curves: name of a way to prune -> its points; sizes below 1 are shares, shown in hundredths as steps.
        headline: metric that the losses are of.
        allowed: loss.
    """
    drawn = {name: sorted(curve, key=lambda point: point.size) for name, curve in curves.items() if curve}
    if not drawn:
        return
    tracking.log_steps(run_id, {f"curve_{name}": [(_step(point.size), point.lost) for point in curve] for name, curve in drawn.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruning_curves.png"
        _draw(drawn, headline, allowed).savefig(path, dpi=110)
        tracking.log_file(run_id, path)


def _step(size: float) -> int:
    return round(size) if size >= 1 else round(100 * size)


def _draw(curves: Mapping[str, Sequence[Point]], headline: str, allowed: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in curves.items():
        largest = max(point.size for point in curve)
        axes.plot([point.size / largest for point in curve], [point.lost for point in curve], marker="o", label=name)
    axes.axhline(allowed, color="black", linestyle=":", label="allowed")
    # What is far beyond the allowed loss would flatten all that matters.
    axes.set_ylim(top=8 * allowed)
    axes.set_xscale("log")
    axes.set_xlabel("share of the largest size tried")
    axes.set_ylabel(f"loss of {headline}, or a quarter of the relative loss of log loss, on validation rows")
    axes.legend()
    return figure
