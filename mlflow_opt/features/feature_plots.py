"""Draw what a selection of columns found: quality against their number, their SHAP values, and how often each one comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_opt import metrics
from mlflow_opt.features.feature_trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns that one picture can name.
SHOWN = 20
_DOTS = 400


@dataclass(frozen=True)
class Swarm:
    """SHAP values of some rows.

    Args:
        columns: names.
        values: shape (rows, columns), in the model's own units (log-odds for classes).
        levels: the columns' values as ranks in [0, 1], shape (rows, columns); NaN where missing.
        of: what the values push towards.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    levels: np.ndarray
    of: str


def curve(trials: Sequence[Trial], full: float, headline: str, chosen: Trial | None) -> Figure:
    """Draw quality against the number of columns, one line a method, with the interval of the chosen one.

    Args:
        trials: of every method and size.
        full: quality with all columns.
        headline: the quality metric.
        chosen: what was chosen, None if nothing was.
    """
    figure, axes = _empty(9, 5.5)
    for method in dict.fromkeys(trial.method for trial in trials):
        mine = sorted((trial for trial in trials if trial.method == method), key=lambda trial: trial.size)
        axes.plot([trial.size for trial in mine], [trial.values[headline] for trial in mine], marker="o", markersize=4, label=method)
    axes.axhline(full, color="#8c8c8c", linestyle="--", linewidth=1, label="all columns")
    if chosen:
        sign = -1 if metrics.larger_is_better(headline) else 1
        drop = chosen.drops[f"drop_{headline}"]
        ends = sorted(chosen.values[headline] + sign * (end - drop.value) for end in (drop.lo, drop.hi))
        axes.vlines(chosen.size, ends[0], ends[1], color="#2ca02c", linewidth=3, alpha=0.6, label="chosen, interval of its loss")
    axes.set_xscale("log")
    ticks = sorted({trial.size for trial in trials})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("columns kept (log scale)")
    axes.set_ylabel(f"{headline} on train rows that neither ranked nor trained")
    axes.set_title("Quality against number of columns", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def beeswarm(swarm: Swarm) -> Figure:
    """Draw the SHAP values of the columns that matter most, a dot a row, coloured by the column's value."""
    order = np.argsort(-np.abs(swarm.values).mean(axis=0), kind="stable")[:SHOWN]
    figure, axes = _empty(9, 1.2 + 0.35 * len(order))
    rng = np.random.default_rng(0)
    for place, at in enumerate(order[::-1]):
        values, levels = swarm.values[:_DOTS, at], swarm.levels[:_DOTS, at]
        known = ~np.isnan(levels)
        heights = place + _spread(values, rng)
        axes.scatter(values[~known], heights[~known], s=6, color="#999999", linewidths=0)
        dots = axes.scatter(values[known], heights[known], s=6, c=levels[known], cmap="coolwarm", vmin=0, vmax=1, linewidths=0)
    axes.set_yticks(range(len(order)), [swarm.columns[at] for at in order[::-1]])
    axes.axvline(0, color="#8c8c8c", linewidth=1)
    axes.set_xlabel(f"SHAP value: pushes towards {swarm.of}")
    axes.set_title("What the columns kept do, row by row (grey: missing)", fontsize=10)
    bar = figure.colorbar(dots, ax=axes, ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"])
    return figure


def frequencies(shares: Mapping[str, float], kept: Sequence[str], index: float, resamples: int) -> Figure:
    """Draw how often each column is among the first ones when the rows are resampled.

    Args:
        shares: column -> share of the resamples.
        kept: columns that were chosen.
        index: of stability.
        resamples: how many there were.
    """
    ranked = sorted(shares.items(), key=lambda item: -item[1])[: 2 * SHOWN]
    figure, axes = _empty(9, 1.2 + 0.25 * len(ranked))
    colours = ["#2ca02c" if name in kept else "#bbbbbb" for name, _ in ranked]
    axes.barh([name for name, _ in ranked][::-1], [share for _, share in ranked][::-1], color=colours[::-1])
    axes.set_xlabel(f"share of {resamples} bootstrap samples in which the column is chosen")
    axes.set_title(f"Stability {index:.2f} (1: the same columns each time, 0: chance). Green: kept.", fontsize=10)
    return figure


def _spread(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move dots that lie on each other apart, as far as their neighbourhood is crowded."""
    if np.ptp(values) == 0:
        return np.zeros(len(values))
    counts, edges = np.histogram(values, bins=40)
    crowd = counts[np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(counts) - 1)] / counts.max()
    return np.asarray(rng.uniform(-0.4, 0.4, size=len(values)) * crowd)


def _empty(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="tight")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
