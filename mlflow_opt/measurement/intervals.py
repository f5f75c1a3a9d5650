"""Confidence intervals that are honest at small samples, and the levels for looking at data more than once.

Everything here is pure arithmetic: no clock, no models, no I/O. Each function names the paper it follows and
`tests/test_intervals.py` shows its coverage by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Student's walk crosses the Gaussian recursion's bounds a tenth more often than it should (simulated for 3 to 24 sessions in
# tests/test_intervals.py), so that this much of the error is spent on purpose.
SPENT = 0.9


def t_interval(values: Sequence[float] | Floats, level: float, within_sd: float = 0.0) -> tuple[float, float, float]:
    """Give the mean of a few independent sessions with Student's interval: (mean, lo, hi).

    Use it on per-session log-ratios of medians: sessions are the independent units of a two-level experiment, so their
    spread already holds the noise within a session (Kalibera & Jones 2013). A percentile bootstrap over 5 sessions covers
    some 85% instead of 95%, because it uses the sessions' spread without its own uncertainty; Student's t holds
    its level there. Two sessions may agree by luck; `within_sd`, what one session's value is uncertain by from
    its own calls, keeps the interval from collapsing then.

    Example:
        >>> mean, lo, hi = t_interval([0.10, 0.12, 0.11], level=0.95)
        >>> round(mean, 2), round(lo, 3), round(hi, 3)
        (0.11, 0.085, 0.135)

    Args:
        values: one value a session, shape (sessions,), at least 2.
        level: two-sided confidence in (0, 1).
        within_sd: standard deviation of one session's value given its own calls, a floor for the spread.

    Raises:
        ValueError: fewer than two sessions, or a value that is not finite.

    """
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=float)
    if array.size < 2 or not np.isfinite(array).all():
        raise ValueError(f"an interval needs at least 2 finite session values, got {array.tolist()}; run more sessions.")
    mean, spread = float(array.mean()), max(float(array.std(ddof=1)), within_sd)
    half = float(stdtrit(array.size - 1, (1 + level) / 2)) * spread / math.sqrt(array.size)
    return mean, mean - half, mean + half


def median_log_sd(values: Floats) -> float:
    """Estimate the standard deviation of the log of a sample's median, from order statistics (Woodruff 1952)."""
    ordered = np.sort(values)
    reach = 0.5 * math.sqrt(ordered.size)
    low, high = max(0, math.floor(ordered.size / 2 - reach)), min(ordered.size - 1, math.ceil(ordered.size / 2 + reach))
    return float(np.log(ordered[high] / ordered[low])) / 2


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Give the exact two-sided interval of a rate (Clopper & Pearson 1934); (0, 1) without trials.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 300)]
        [0.0, 0.0122]
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    lo = float(betaincinv(successes, trials - successes + 1, tail)) if successes > 0 else 0.0
    hi = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return lo, hi


def paired_share_difference(lost: int, won: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Give the interval of a difference of two shares measured on the same rows (Tango 1998, score interval).

    It is McNemar's setting: only the rows on which the two models disagree carry information. It stays honest where a
    bootstrap degenerates: with no disagreement at all in n rows its ends are about +-3.8/n, not 0.

    Example:
        >>> [round(end, 5) for end in paired_share_difference(0, 0, 1000)]
        [-0.00383, 0.00383]

    Args:
        lost: rows that only the reference answered rightly.
        won: rows that only the candidate answered rightly.
        rows: all rows.
        level: two-sided confidence.

    Returns:
        ends of the interval of (lost - won) / rows: positive is a loss.

    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    centre, edge = (lost - won) / rows, 1 - 1e-12

    def gap(delta: float, side: float) -> float:
        return _tango_score(delta, lost, won, rows) - side * z

    lo = -1.0 if lost - won == -rows else float(brentq(gap, -edge, centre, args=(1.0,)))
    hi = 1.0 if lost - won == rows else float(brentq(gap, centre, edge, args=(-1.0,)))
    return lo, hi


def _tango_score(delta: float, lost: int, won: int, rows: int) -> float:
    a = 2.0 * rows
    b = -lost - won + (2 * rows - lost + won) * delta
    c = -won * delta * (1 - delta)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * share + delta * (1 - delta))
    distance = lost - won - rows * delta
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


@dataclass(frozen=True)
class Sample:
    """What a bootstrap says about an estimate.

    Args:
        draws: the estimate on resamples of the rows, shape (resamples,).
        influence: how much each row moves the estimate, times the number of rows, shape (rows,), mean 0; empty where nobody knows.
        unseen: what it would change, in the same units, if a row behaved as badly as a row can; any number of examples.
        rows: rows behind the estimate.
    """

    draws: Floats
    influence: Floats
    unseen: Floats
    rows: int


def careful_interval(value: float, sample: Sample, level: float = 0.95) -> tuple[float, float]:
    """Give a bootstrap interval that reckons with skewness and with rows not yet seen.

    It is the bias-corrected and accelerated interval, BCa (Efron 1987), by its second-order expansion (Hall 1988), which
    needs three moments where BCa reads off extreme quantiles. Two departures, both on the safe side: the moments include
    z^2/2 rows that behave badly, as Agresti & Coull (1998) add imagined failures to a share, so that no sample is without
    spread; and the correction never narrows an end. With k equal losses among many rows it follows the exact Poisson limit.

    Example:
        >>> influence = np.repeat([1.0, 0.0], [10, 990]) - 0.01
        >>> draws = np.random.default_rng(0).poisson(10, 20000) / 1000
        >>> [round(end, 4) for end in careful_interval(0.010, Sample(draws, influence, np.ones(1), 1000))]
        [0.0032, 0.0182]

    Args:
        value: the estimate on the rows as they are.
        sample: the bootstrap.
        level: two-sided confidence.

    """
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    added, middle = z * z / 2, float(sample.draws.mean())
    second = float(sample.draws.var()) + added * float(np.mean(sample.unseen**2)) / sample.rows**2
    if second == 0:
        return value, value
    bad = added * float(np.mean(sample.unseen**3))
    skewness = (float(np.mean((sample.draws - middle) ** 3)) + bad / sample.rows**3) / second**1.5
    power = float(np.sum(sample.influence**2)) + added * float(np.mean(sample.unseen**2))
    acceleration = (float(np.sum(sample.influence**3)) + bad) / (6 * power**1.5) if sample.influence.size else skewness / 6
    tilt = skewness / 6 * (z * z + 1) + acceleration * z * z
    centre, spread = 2 * value - middle, math.sqrt(second)
    return centre - spread * (z + max(-tilt, 0.0)), centre + spread * (z + max(tilt, 0.0))


def spend(fraction: float, alpha: float) -> float:
    """Give how much of `alpha` may be spent once `fraction` of the planned sessions is in: Pocock-type (Lan & DeMets 1983).

    Pocock's shape rather than O'Brien and Fleming's: most candidates are far from their bound, and a timing session costs
    seconds, so that early stops are worth more than the last per cent of power.
    """
    return alpha * math.log(1 + (math.e - 1) * min(max(fraction, 0.0), 1.0))


def look_levels(sessions: Sequence[int], fractions: Sequence[float], level: float) -> list[float]:
    """Give the confidence of the interval to show at each look so that all looks together keep `level`.

    The nominal levels come from the exact recursion for a Gaussian walk (Armitage, McPherson & Rowe 1969; Lan & DeMets 1983)
    and are then used with Student's quantiles (the significance-level approach, Jennison & Turnbull 2000, ch. 3.8). What
    results are repeated confidence intervals (Jennison & Turnbull 1989): they hold however the decision to stop was taken.

    Example:
        >>> [round(x, 4) for x in look_levels([10], [1.0], 0.95)]
        [0.95]
        >>> [round(x, 4) for x in look_levels([4, 8], [0.5, 1.0], 0.95)]
        [0.9721, 0.9753]

    Args:
        sessions: sessions in hand at each look so far, increasing.
        fractions: share of the plan that each look stands for, the last 1.0 if it is the final one.
        level: two-sided confidence of all looks together.

    Raises:
        ValueError: a look that brings no new sessions.

    """
    if any(later <= earlier for earlier, later in pairwise(sessions)):
        raise ValueError(f"looks must each bring new sessions, got {list(sessions)}; leave out the repeated ones.")
    return list(_look_levels(tuple(sessions), tuple(fractions), level))


@lru_cache(maxsize=256)
def _look_levels(sessions: tuple[int, ...], fractions: tuple[float, ...], level: float) -> tuple[float, ...]:
    from scipy.special import ndtr, ndtri

    # With one look Student's quantile is exact.
    tail = (1 - level) / 2 * (SPENT if fractions[0] < 1 else 1.0)
    spent, levels = 0.0, []
    grid, weight = np.zeros(1), np.ones(1)
    before = 0
    for number, fraction in zip(sessions, fractions, strict=True):
        step = math.sqrt(number - before)
        increment = spend(fraction, tail) - spent
        bound = _crossing(grid, weight, step, increment)
        levels.append(2 * float(ndtr(bound / math.sqrt(number))) - 1)
        grid, weight = _survivors(grid, weight, step, bound, math.sqrt(number) * float(-ndtri(1e-12)))
        spent, before = spent + increment, number
    return tuple(levels)


def _crossing(grid: Floats, weight: Floats, step: float, increment: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import ndtr

    def excess(bound: float) -> float:
        return float(weight @ ndtr((grid - bound) / step)) - increment

    reach = 12 * step + float(np.abs(grid).max())
    return float(brentq(excess, -reach, reach))


def _survivors(grid: Floats, weight: Floats, step: float, bound: float, reach: float) -> tuple[Floats, Floats]:
    """Carry the walk's distribution below the bound one look further, as a weighted grid (trapezoid rule)."""
    after = np.linspace(-reach, bound, 1200)
    density = np.exp(-0.5 * ((after[:, None] - grid[None, :]) / step) ** 2) @ weight / (step * math.sqrt(2 * math.pi))
    width = np.full(after.size, after[1] - after[0])
    width[[0, -1]] /= 2
    return after, density * width
