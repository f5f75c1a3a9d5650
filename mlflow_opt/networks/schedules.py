"""Learning-rate schedules as pure functions of how far training has come, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["constant", "step", "cosine", "cosine_restarts", "one_cycle", "plateau"]

_STEP_FACTOR = 0.1
_WARM_UP = 0.3
_START, _END = 1 / 25, 1e-3
_CYCLES = (1, 2, 4)
_PLATEAU_FACTOR = 0.3
_PLATEAU_PATIENCE = 3


def rate_factor(schedule: Schedule, progress: float, losses: Sequence[float] = ()) -> float:
    """Tell what the learning rate is multiplied with.

    - `constant`: 1.
    - `step`: a tenth after half of the training and again after three quarters (He et al. 2016, "Deep residual learning
      for image recognition", section 4.2).
    - `cosine`, `cosine_restarts`: to zero along half a cosine, once, or in three cycles of which each is twice as long
      as the one before (Loshchilov, Hutter 2017, "SGDR: stochastic gradient descent with warm restarts").
    - `one_cycle`: up from 1/25 over the first 30%, then down to 1/1000, both along a cosine; the learning rate given is
      the highest (Smith, Topin 2019, "Super-convergence"). Momentum is left alone, unlike in the paper.
    - `plateau`: times 0.3 whenever the validation loss has not improved for three epochs.

    Example:
        >>> [round(rate_factor("one_cycle", progress), 3) for progress in (0, 0.3, 1)]
        [0.04, 1.0, 0.001]

    Args:
        schedule: which one.
        progress: steps done divided by all steps, in [0, 1].
        losses: validation losses of the epochs so far; only `plateau` looks at them.

    Raises:
        ValueError: if there is no such schedule.

    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(_STEP_FACTOR ** ((progress >= 0.5) + (progress >= 0.75)))
    if schedule == "cosine":
        return _fall(progress)
    if schedule == "cosine_restarts":
        return _fall(_within_cycle(progress))
    if schedule == "one_cycle":
        if progress < _WARM_UP:
            return 1 - (1 - _START) * _fall(progress / _WARM_UP)
        return _END + (1 - _END) * _fall((progress - _WARM_UP) / (1 - _WARM_UP))
    if schedule == "plateau":
        return float(_PLATEAU_FACTOR ** _plateaus(losses))
    raise ValueError(
        f"schedule must be constant, step, cosine, cosine_restarts, one_cycle or plateau, got {schedule!r}; cosine is a safe choice."
    )


def _fall(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _within_cycle(progress: float) -> float:
    place = min(progress, 1.0) * sum(_CYCLES)
    for length in _CYCLES[:-1]:
        if place < length:
            return place / length
        place -= length
    return place / _CYCLES[-1]


def _plateaus(losses: Sequence[float]) -> int:
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == _PLATEAU_PATIENCE:
            waited, count = 0, count + 1
    return count
