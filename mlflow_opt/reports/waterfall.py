"""What each step of a chain brought: latency and quality after it, on rows that no step has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Level:
    """Where the chain stands after a step.

    Args:
        step: its name, `baseline` for the start.
        latency_ms: median of the model's own call for one row.
        quality: of the metric shown.
    """

    step: str
    latency_ms: float
    quality: float


def table(levels: Sequence[Level], metric: str) -> str:
    """Write the levels as a Markdown table: each step's own factor and change, and the total so far.

    Example:
        >>> print(table([Level("baseline", 4.0, 0.5), Level("compile", 1.0, 0.5)], "f1"))
        | after | one row ms | step | total | f1 | step | total |
        |---|---|---|---|---|---|---|
        | baseline | 4 | | | 0.5000 | | |
        | compile | 1 | 4.00x | 4.00x | 0.5000 | +0.0000 | +0.0000 |
    """
    lines = [f"| after | one row ms | step | total | {metric} | step | total |", "|---|---|---|---|---|---|---|"]
    for index, level in enumerate(levels):
        shown = f"| {level.step} | {level.latency_ms:.3g} |"
        if index == 0:
            lines.append(f"{shown} | | {level.quality:.4f} | | |")
            continue
        last, first = levels[index - 1], levels[0]
        faster = f" {last.latency_ms / level.latency_ms:.2f}x | {first.latency_ms / level.latency_ms:.2f}x |"
        lines.append(f"{shown}{faster} {level.quality:.4f} | {level.quality - last.quality:+.4f} | {level.quality - first.quality:+.4f} |")
    return "\n".join(lines)


def save(levels: Sequence[Level], metric: str, path: Path) -> None:
    """Draw the levels as two waterfalls, one above the other: latency on a logarithmic axis, quality."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(1.6 + 1.3 * len(levels), 6.4), sharex=True)
    names, places = [level.step for level in levels], range(len(levels))
    for axis, values, label in (
        (top, [level.latency_ms for level in levels], "one row, ms"),
        (bottom, [level.quality for level in levels], metric),
    ):
        low = min(values) / 2 if axis is top else min(values) - 0.2 * (max(values) - min(values) or 0.01)
        axis.bar(places, [value - low for value in values], bottom=low, color=["#8a8f98", *["#2563eb"] * (len(values) - 1)])
        for place, value in zip(places, values, strict=True):
            axis.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom", fontsize=9)
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    top.set_yscale("log")
    bottom.set_xticks(list(places), names, rotation=20, ha="right")
    figure.suptitle("After each step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
