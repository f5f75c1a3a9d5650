"""End requests whose time is up, at the price of a dictionary entry for those whose time is not.

A timer for each request (`asyncio.timeout`) costs 4 us, a tenth of what a cache hit costs in all; one look over the open
requests every few milliseconds costs next to nothing, and a deadline needs no better clock.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

_LOOK_S = 0.01


class Cancellable(Protocol):
    """What answers a request: a task, or something that says False when it has ended the request by itself."""

    def cancel(self) -> bool:
        """End it."""


class Deadlines:
    """What answers requests, and until when each may."""

    def __init__(self) -> None:
        """Begin with no request."""
        self._open: dict[Cancellable, float] = {}
        self._expired: set[Cancellable] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, one: Cancellable, seconds: float) -> None:
        """Watch one; it is cancelled once its time is up."""
        loop = asyncio.get_running_loop()
        self._open[one] = loop.time() + seconds
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look)

    def leave(self, one: Cancellable) -> None:
        """Stop watching one."""
        self._open.pop(one, None)

    def ended(self, task: asyncio.Task[Any]) -> bool:
        """Tell, on `CancelledError`, whether the task was cancelled from here; it may then go on, to answer so."""
        if task not in self._expired:
            return False
        self._expired.discard(task)
        # Without this the task would count as cancelled by its owner as well.
        return task.uncancel() == 0

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for one in [one for one, until in self._open.items() if until <= now]:
            del self._open[one]
            if one.cancel():
                self._expired.add(one)
        self._timer = loop.call_later(_LOOK_S, self._look) if self._open else None
