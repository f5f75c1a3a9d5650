"""What a change of arithmetic does to a regression's errors: not only how large they are, but whether they lean to one side.

A mean error that stays the same may hide that all predictions moved up a little, or that the large ones moved down and the
small ones up; totals and thresholds built on the predictions would then be wrong though r2 is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TENTHS = 10
# Shares of the float model's own RMSE: what is below them disappears in the error that is there anyway.
SAFE_SHIFT, SAFE_TENTH, SAFE_SPREAD = 0.02, 0.10, 0.25
_SIGMAS = 1.96


@dataclass(frozen=True)
class Shift:
    """How predictions moved, in shares of the float model's RMSE.

    Args:
        mean: mean movement; a bias if it is not near 0.
        half: half width of its 95% interval.
        worst_tenth: largest mean movement, either way, within a tenth of the rows by prediction.
        spread: standard deviation of the movement.
        tail: the movement that 1 row in 100 exceeds.
    """

    mean: float
    half: float
    worst_tenth: float
    spread: float
    tail: float

    @property
    def is_safe(self) -> bool:
        """Tell whether the movement disappears in the float model's own error."""
        return bool(abs(self.mean) + self.half <= SAFE_SHIFT and self.worst_tenth <= SAFE_TENTH and self.spread <= SAFE_SPREAD)

    def figures(self) -> dict[str, float]:
        """Give the values as metrics."""
        return {
            "error_shift": self.mean,
            "error_shift_worst_tenth": self.worst_tenth,
            "error_spread": self.spread,
            "error_tail": self.tail,
        }

    def told(self, name: str) -> str:
        """Say whether the variant is safe, and why."""
        shown = (
            f"mean shift {100 * self.mean:+.1f} +- {100 * self.half:.1f}%, worst tenth {100 * self.worst_tenth:.1f}%, spread "
            f"{100 * self.spread:.1f}% of the float model's RMSE"
        )
        limits = f"bounds {100 * SAFE_SHIFT:.0f}, {100 * SAFE_TENTH:.0f} and {100 * SAFE_SPREAD:.0f}%"
        return f"{name} is {'safe' if self.is_safe else 'not safe'} for this regression: {shown} ({limits})."


def shift_of(labels: Floats, before: Floats, after: Floats) -> Shift:
    """Compare predictions of the same rows before and after a change.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.normal(size=2000)
        >>> before = labels + rng.normal(size=2000)
        >>> shift_of(labels, before, before + 0.001).is_safe, shift_of(labels, before, before + 0.1).is_safe
        (True, False)

    Args:
        labels: shape (n,).
        before: the float model's predictions.
        after: the changed model's.
    """
    moved = after - before
    rmse = max(float(np.sqrt(np.mean((before - labels) ** 2))), 1e-12)
    tenths = [moved[rows].mean() for rows in tenths_of(before)]
    spread = float(moved.std())
    return Shift(
        mean=float(moved.mean()) / rmse,
        half=_SIGMAS * spread / np.sqrt(len(moved)) / rmse,
        worst_tenth=float(np.abs(tenths).max()) / rmse,
        spread=spread / rmse,
        tail=float(np.quantile(np.abs(moved), 0.99)) / rmse,
    )


def tenths_of(predictions: Floats) -> list[npt.NDArray[np.intp]]:
    """Cut rows into tenths by their prediction, the lowest first; fewer parts where there are fewer rows."""
    return [part for part in np.array_split(np.argsort(predictions, kind="stable"), TENTHS) if len(part)]


def plot(labels: Floats, before: Floats, after: Mapping[str, Floats], name: str = "error_distribution.png") -> Path:
    """Draw the distributions of the errors before and after, and the mean movement by tenth of the prediction.

    Args:
        labels: shape (n,).
        before: the float model's predictions.
        after: name of a variant -> its predictions.
        name: of the file.

    Returns:
        A file in a new temporary folder, which is the caller's to remove.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    errors = before - labels
    bins = np.histogram_bin_edges(np.clip(errors, *np.quantile(errors, [0.005, 0.995])), 60)
    left.hist(errors, bins=bins, histtype="step", color="black", label="float")
    for title, values in after.items():
        left.hist(values - labels, bins=bins, histtype="step", label=title)
        parts = tenths_of(before)
        moved = [(values - before)[rows] for rows in parts]
        half = [_SIGMAS * one.std() / np.sqrt(len(one)) for one in moved]
        right.errorbar(range(1, len(parts) + 1), [one.mean() for one in moved], yerr=half, marker="o", capsize=3, label=title)
    left.set_xlabel("error (prediction - label)")
    left.legend()
    right.axhline(0, color="black", linewidth=1)
    right.set_xlabel("tenth of the rows by float prediction")
    right.set_ylabel("mean movement [95%]")
    path = Path(tempfile.mkdtemp(prefix="mlflow-opt-shift-")) / name
    figure.savefig(path, dpi=110)
    return path
