"""The probability from which a binary classifier answers the rarer class: where F1 is asked for, seldom one half."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_RESAMPLES = 25


def best_threshold(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], seed: int = 0) -> float:
    """Find the threshold with the largest F1, as the median over resamples of the rows.

    Helps wherever F1 decides and the classes are unequal. Does not help ranking metrics, which know no threshold. The F1 of
    few rows has many peaks of nearly one height; the median of their places is what comes back on other rows.

    Example:
        >>> best_threshold(np.array([False, False, False, True, True]), np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
        0.35

    Args:
        positive: whether a row is of the class, shape (n,).
        scores: its probability, from a model that was not trained on these rows, shape (n,).
        seed: of the resamples.

    Raises:
        ValueError: no row is of the class, or all are.

    References:
        Lipton, Elkan & Naryanaswamy 2014, "Optimal thresholding of classifiers to maximize F1 measure".
    """
    if not 0 < positive.sum() < len(positive):
        raise ValueError(f"a threshold needs rows of both classes, got {int(positive.sum())} of {len(positive)} in one; give more rows.")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order].astype(float)
    rng = np.random.default_rng(seed)
    weights = [np.ones(len(scores)), *(rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores))) for _ in range(_RESAMPLES))]
    return float(np.median([_peak(ranked, hits, np.asarray(weight, dtype=float)) for weight in weights]))


def f1_at(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], threshold: float) -> float:
    """Give F1 at a threshold.

    Example:
        >>> f1_at(np.array([False, True, True]), np.array([0.4, 0.6, 0.3]), 0.5)
        0.6666666666666666
    """
    given = scores >= threshold
    return float(2 * (given & positive).sum() / max(given.sum() + positive.sum(), 1))


def _peak(ranked: npt.NDArray[np.float64], hits: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Find the best cut of rows in falling order: halfway between the last row above it and the next below."""
    found, given = np.cumsum(weights * hits), np.cumsum(weights)
    f1 = 2 * found / np.maximum(given + found[-1], 1e-300)
    # Between equal scores there is no place to cut, nor before a row that the resample lacks.
    last = np.append(ranked[1:] < ranked[:-1], True)
    at = int(np.argmax(np.where(last, f1, -1.0)))
    below = ranked[at + 1] if at + 1 < len(ranked) else min(ranked[at], 0.0)
    return float((ranked[at] + below) / 2)
