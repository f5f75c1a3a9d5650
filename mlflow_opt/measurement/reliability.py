"""How well probabilities say how often they are right: the expected calibration error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 15


def calibration_error(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], bins: int = BINS) -> float:
    """Compute the expected calibration error: how far confidence and accuracy are apart, averaged over bins of confidence.

    Source: Guo et al. 2017, "On calibration of modern neural networks" (equal widths, confidence of the answered class).

    Example:
        >>> sure = np.array([[0.1, 0.9], [0.9, 0.1]])
        >>> round(calibration_error(sure, np.array([1, 0])), 6)
        0.1

    Args:
        probabilities: (n, classes).
        labels: class codes, (n,).
        bins: of equal width over [0, 1].

    Returns:
        A value in [0, 1]; 0 is perfect.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = np.bincount(place, minlength=bins)
    apart = np.abs(np.bincount(place, weights=right, minlength=bins) - np.bincount(place, weights=confidence, minlength=bins))
    return float(apart[rows > 0].sum() / len(labels))
