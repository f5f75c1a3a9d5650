"""When a machine is too noisy to judge a ratio: the noise guard that answers INCONCLUSIVE rather than guess.

Candidate and reference take turns within milliseconds, so noise hits both alike and leaves their ratio's interval honest,
only wider, and a wide interval already decides nothing: with six busy processes on two cores the median ratio of two equal
models stayed within 1%. Latencies in milliseconds do not cancel like that, so a policy that bounds them is
guarded more tightly. The guard is for what no interval can show: a machine on which most of the time went elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlflow_opt.measurement.timing_session import Reading

# Shares of the time, for ratios and for latencies as such. One busy process on two cores: steal 0, off its core 0.05 to 0.15,
# drift 1.1; five busy ones: off its core 0.5 to 0.8, drift up to 1.5.
MAX_STEAL = {"ratio": 0.50, "latency": 0.10}
MAX_OFF_CPU = {"ratio": 0.90, "latency": 0.35}
MAX_DRIFT = {"ratio": 4.0, "latency": 2.0}
# A standard deviation of the sessions' log-ratios beyond this (a factor of 1.35) means that processes do not agree on who is faster.
# Where the gain itself is many times that (15x against a spread of 1.4x) they do agree, so the limit grows with the mean log-ratio.
MAX_DISPERSION, SHARE_OF_GAIN = 0.30, 0.25


def doubt_of(readings: Sequence[Reading], log_ratios: Sequence[float], judged: Literal["ratio", "latency"]) -> str:
    """Say why a measurement should not be trusted, `""` if nothing speaks against it.

    Example:
        >>> quiet = Reading(steal=0.0, foreign=0.1, off_cpu=0.01, switches=3.0, drift=1.1, settled=True)
        >>> doubt_of([quiet] * 4, [0.1, 0.11, 0.1, 0.09], "latency")
        ''

    Args:
        readings: one a session.
        log_ratios: log of the speed-up found in each session; empty if nothing was compared.
        judged: `latency` if anything in milliseconds, rows a second or dollars is judged, else `ratio`.

    """
    complaints = [
        _complain("the hypervisor withheld", [r.steal for r in readings], MAX_STEAL[judged], "of the CPU time"),
        _complain("other processes kept the stopwatch off its core for", [r.off_cpu for r in readings], MAX_OFF_CPU[judged], "of the time"),
        _drift([r.drift for r in readings], MAX_DRIFT[judged]),
        _dispersion(log_ratios),
    ]
    return "; ".join(complaint for complaint in complaints if complaint)


def _complain(what: str, shares: Sequence[float], limit: float, of: str) -> str:
    # The median session: one bad one among many widens the interval, which says enough.
    typical = float(np.median(shares)) if shares else 0.0
    return f"{what} {typical:.0%} {of} (limit {limit:.0%})" if typical > limit else ""


def _drift(drifts: Sequence[float], limit: float) -> str:
    typical = float(np.median(drifts)) if drifts else 1.0
    return f"the speed of the CPU varied {typical:.1f}-fold within a session (limit {limit:g})" if typical > limit else ""


def _dispersion(log_ratios: Sequence[float]) -> str:
    if len(log_ratios) < 2:
        return ""
    spread = float(np.std(log_ratios, ddof=1))
    limit = max(MAX_DISPERSION, SHARE_OF_GAIN * abs(float(np.mean(log_ratios))))
    if spread <= limit:
        return ""
    return f"speed-ups differed by a factor of {math.exp(spread):.2f} between processes (limit {math.exp(limit):.2f})"
