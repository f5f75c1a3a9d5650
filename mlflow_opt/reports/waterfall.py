"""What each step of a chain brought: latency and quality after it, on rows that no step has seen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_opt.records import Quantity
from mlflow_opt.reports.report import show
from mlflow_opt.reports.report_page import Chart


@dataclass(frozen=True)
class Level:
    """Where the chain stands after a step.

    Args:
        step: its name, `baseline` for the start.
        latency_ms: median of the model's own call for one row.
        quality: of the metric shown.
        step_gain: what this step alone changed of it, positive is better; None at the start.
        whole_gain: what all steps up to here changed, None at the start.
    """

    step: str
    latency_ms: float
    quality: float
    step_gain: Quantity | None = None
    whole_gain: Quantity | None = None


def table(levels: Sequence[Level], metric: str) -> str:
    """Write the levels as a Markdown table: each step's own factor and change, and the total so far.

    Example:
        >>> gain = Quantity(0.02, 0.01, 0.03, 700)
        >>> print(table([Level("baseline", 4.0, 0.5), Level("tune", 1.0, 0.52, gain, gain)], "f1"))
        | after | one row, ms | times as fast: this step | so far | f1 | gain: this step | so far |
        |---|---|---|---|---|---|---|
        | baseline | 4 | | | 0.5000 | | |
        | tune | 1 | 4.00x | 4.00x | 0.5200 | +0.0200 [+0.0100, +0.0300] | +0.0200 [+0.0100, +0.0300] |
    """
    lines = [
        f"| after | one row, ms | times as fast: this step | so far | {metric} | gain: this step | so far |",
        "|---|---|---|---|---|---|---|",
    ]
    for last, level in zip((None, *levels), levels, strict=False):
        shown = f"| {level.step} | {show('latency_p50_ms', level.latency_ms)} |"
        if last is None:
            lines.append(f"{shown} | | {show(metric, level.quality)} | | |")
            continue
        faster = f" {last.latency_ms / level.latency_ms:.2f}x | {levels[0].latency_ms / level.latency_ms:.2f}x |"
        lines.append(
            f"{shown}{faster} {show(metric, level.quality)} | {_gain(metric, level.step_gain)} | {_gain(metric, level.whole_gain)} |"
        )
    return "\n".join(lines)


def charts(levels: Sequence[Level], metric: str) -> tuple[Chart, Chart]:
    """Draw the levels for the page: latency as bars on a logarithmic axis, quality as a waterfall."""
    names = [level.step for level in levels]
    grey, blue, green, red = "#8c8c8c", "#3f86d8", "#2f9e5b", "#d9534f"
    bars = {
        "type": "bar",
        "x": names,
        "y": [level.latency_ms for level in levels],
        "text": [f"{level.latency_ms:.3g} ms" for level in levels],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": [grey, *[blue] * (len(levels) - 1)]},
        "hoverinfo": "skip",
    }
    changes = [level.quality - before.quality for before, level in itertools.pairwise(levels)]
    falls = {
        "type": "waterfall",
        "x": names,
        "measure": ["absolute", *["relative"] * len(changes)],
        "y": [levels[0].quality, *changes],
        "text": [show(metric, levels[0].quality), *(f"{change:+.4f}" for change in changes)],
        "textposition": "outside",
        "cliponaxis": False,
        "increasing": {"marker": {"color": green}},
        "decreasing": {"marker": {"color": red}},
        "totals": {"marker": {"color": grey}},
        "hoverinfo": "skip",
    }
    found = [level.quality for level in levels]
    room = max(max(found) - min(found), 0.01 * abs(found[0]), 1e-6)
    return (
        Chart(
            [bars],
            {"yaxis": {"type": "log", "dtick": 1, "title": {"text": "one row, ms (log)"}}, "height": 320},
            "The model's own call after each step.",
        ),
        Chart(
            [falls],
            {"yaxis": {"title": {"text": metric}, "range": [min(found) - room, max(found) + 0.35 * room]}, "height": 320},
            f"What each step changed of {metric}, on rows that no step has seen. The axis does not begin at zero.",
        ),
    )


def save(levels: Sequence[Level], metric: str, path: Path) -> None:
    """Draw the levels as two waterfalls, one above the other: latency on a logarithmic axis, quality."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(1.6 + 1.3 * len(levels), 6.4), sharex=True)
    names, places = [level.step for level in levels], range(len(levels))
    for axis, values, label in (
        (top, [level.latency_ms for level in levels], "one row, ms (log)"),
        (bottom, [level.quality for level in levels], metric),
    ):
        low = min(values) / 2 if axis is top else min(values) - 0.2 * (max(values) - min(values) or 0.01)
        axis.bar(places, [value - low for value in values], bottom=low, color=["#8a8f98", *["#2563eb"] * (len(values) - 1)])
        for place, value in zip(places, values, strict=True):
            axis.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom", fontsize=9)
        axis.set_ylabel(label)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    top.set_yscale("log")
    bottom.set_xticks(list(places), names, rotation=20, ha="right")
    figure.suptitle("After each step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _gain(metric: str, gain: Quantity | None) -> str:
    if gain is None:
        return ""
    shown = [show(f"drop_{metric}", end) for end in (gain.value, gain.lo, gain.hi)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
