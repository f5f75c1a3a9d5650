"""Whether a classifier's probabilities mean what they say: how often what it gave 80% to was so, in bins with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_opt.measurement.intervals import clopper_pearson
from mlflow_opt.measurement.scoring import Scored


@dataclass(frozen=True)
class Bin:
    """Rows whose probabilities lie next to each other.

    Args:
        predicted: their mean probability.
        observed: the share of them that came true.
        lo: lower end of its interval.
        hi: upper end of its interval.
        rows: how many.
    """

    predicted: float
    observed: float
    lo: float
    hi: float
    rows: int


def reliability(scored: Scored, bins: int = 10, level: float = 0.95) -> tuple[Bin, ...]:
    """Compare probabilities with what came true, in bins of equally many rows.

    Of a binary task it is the probability of the positive class, of several classes that of the answer given. Bins of
    equally many rows have intervals of about equal width; rows of one probability stay together, so there may be fewer
    bins. A regression has none.

    Example:
        >>> from mlflow_opt.records import Task
        >>> from mlflow_opt.measurement.scoring import score
        >>> labels = np.arange(100) % 2
        >>> (one,) = reliability(score(Task("binary", (0, 1)), labels, np.full((100, 2), 0.5)))
        >>> one.predicted, one.observed, one.rows
        (0.5, 0.5, 100)

    Args:
        scored: a model's answers on labelled rows.
        bins: at most so many.
        level: two-sided confidence of each bin's interval (Clopper & Pearson 1934).

    References:
        DeGroot & Fienberg 1983, "The comparison and evaluation of forecasters" (reliability diagrams).
    """
    if scored.task.kind == "regression" or not len(scored.labels):
        return ()
    given, true = _positive(scored) if scored.task.kind == "binary" else _answered(scored)
    order = np.argsort(given, kind="stable")
    given, true = given[order], true[order]
    # A cut between rows of one probability would tell them apart by their place in the file.
    cuts = sorted({int(np.searchsorted(given, given[at])) for at in np.linspace(0, len(given), bins + 1)[1:-1].astype(int)} - {0})
    parts = zip(np.split(given, cuts), np.split(true, cuts), strict=True)
    return tuple(_bin(probabilities, came, level) for probabilities, came in parts)


def _positive(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    return scored.outputs[:, 1], scored.labels == 1


def _answered(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    answers = np.argmax(scored.outputs, axis=1)
    return scored.outputs[np.arange(len(answers)), answers], answers == scored.labels


def _bin(given: np.ndarray, true: np.ndarray, level: float) -> Bin:
    hits, rows = int(true.sum()), len(true)
    return Bin(float(given.mean()), hits / rows, *clopper_pearson(hits, rows, level), rows)
