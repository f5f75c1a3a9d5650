"""Say how far a long piece of work is and how long it will still take, as log lines that read well in a terminal and in CI."""

from __future__ import annotations

import logging
import time

_logger = logging.getLogger(__name__)


class Progress:
    """Count steps of known or unknown number and log each with what it found and the time left.

    The estimate is the mean of the steps done so far; it is left out until one step is done or when the total is unknown.
    """

    def __init__(self, title: str, total: int = 0) -> None:
        """Start the clock.

        Args:
            title: what the steps are, for the log.
            total: number of steps, 0 if it is not known.
        """
        self.title = title
        self.total = total
        self.done = 0
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """Log that one more step is done."""
        self.done += 1
        elapsed = time.monotonic() - self._started
        count = f"{self.done}/{self.total}" if self.total else str(self.done)
        left = elapsed / self.done * (self.total - self.done)
        eta = f", about {duration(left)} left" if self.total > self.done else ""
        _logger.info("%s %s: %s (%s%s)", self.title, count, text, duration(elapsed), eta)


def duration(seconds: float) -> str:
    """Write a duration as people say it.

    Example:
        >>> duration(4.2), duration(75), duration(3700)
        ('4 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
