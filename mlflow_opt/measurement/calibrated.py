"""Models whose speed-up over each other is known by construction: what the stopwatch is tested with.

A call repeats one small piece of real work so many times, so that a model of 420 units is exactly 1.05 times slower than
one of 400 whatever the machine does. A delay by the clock would not do: it waits as long on a busy machine as on a quiet
one, and so would hide the noise that the stopwatch must stand. The worker of the stopwatch imports this: keep it light.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np

# About a microsecond a piece: long enough that counting it costs little, short enough for steps of a quarter of a per cent.
_WIDTH = 32


class Calibrated:
    """A model of `units` pieces of work a call.

    Args:
        units: how often the piece is repeated, at least 1.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self._matrix = np.eye(_WIDTH)

    def prepare(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Take the batch's first row."""
        return np.asarray(batch["x"][0], dtype=float)

    def call(self, prepared: np.ndarray) -> Any:
        """Do the work."""
        # Counting by `range` would make the numbers beyond 256 dearer, which Python does not keep ready.
        for _ in repeat(None, self.units):
            done = self._matrix @ prepared
        return done


def load(uri: str, _threads: int) -> Calibrated:
    """Load a model from its number of units; the stopwatch's worker calls this."""
    return Calibrated(int(uri))


def rows(count: int = 256) -> dict[str, np.ndarray]:
    """Make rows for calibrated models to answer."""
    return {"x": np.random.default_rng(0).standard_normal((count, _WIDTH))}
