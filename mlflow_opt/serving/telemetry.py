"""What the server counts about itself, for Prometheus; with several workers each writes its own file and any one sums them up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as several

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Tally:
    """Counts as plain integers, handed to Prometheus when somebody looks: its own counters cost a microsecond a request."""

    def __init__(self, counter: Counter) -> None:
        """Count for a counter with labels."""
        self.counter = counter
        self._new: dict[tuple[object, ...], int] = {}

    def add(self, *labels: object) -> None:
        """Count one."""
        self._new[labels] = self._new.get(labels, 0) + 1

    def flush(self) -> None:
        """Hand over what was counted since the last time."""
        new, self._new = self._new, {}
        for labels, count in new.items():
            self.counter.labels(*map(str, labels)).inc(count)


@dataclass(frozen=True)
class Telemetry:
    """The server's counters.

    Args:
        registry: that `/metrics` shows.
        requests: by status and by who answered (`fast`, `pyfunc`, `cache`, `limit`, `unread`).
        seconds: from a request's headers to its answer.
        batch_rows: rows of each call of the fast path.
        cache: lookups by outcome: `hit`, `shared` (Redis), `joined` (an equal request was under way), `miss`, `error`.
        in_flight: requests taken and not yet answered.
        swaps: of versions, by outcome: `done`, `refused`, `unreachable`.

    """

    registry: CollectorRegistry
    requests: Tally
    seconds: Histogram
    batch_rows: Histogram
    cache: Tally
    in_flight: Gauge
    swaps: Tally

    def flush(self, in_flight: int) -> None:
        """Hand everything counted to Prometheus."""
        for tally in (self.requests, self.cache, self.swaps):
            tally.flush()
        self.in_flight.set(in_flight)

    def show(self) -> bytes:
        """Write everything in Prometheus' text format."""
        if not shared_by_workers():
            return generate_latest(self.registry)
        summed = CollectorRegistry()
        collect: Any = several.MultiProcessCollector
        collect(summed)
        return generate_latest(summed)


def shared_by_workers() -> bool:
    """Tell whether this process is one of several whose counts are summed."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def make() -> Telemetry:
    """Begin to count, in a registry of its own: two servers in one process do not mix."""
    registry = CollectorRegistry()
    prefix = "mlflow_opt_"
    return Telemetry(
        registry,
        Tally(Counter(prefix + "requests", "Requests answered.", ["status", "path"], registry=registry)),
        Histogram(prefix + "request_seconds", "Time from headers to answer.", buckets=_SECONDS, registry=registry),
        Histogram(prefix + "batch_rows", "Rows of each call of the fast path.", buckets=_ROWS, registry=registry),
        Tally(Counter(prefix + "cache", "Cache lookups.", ["outcome"], registry=registry)),
        Gauge(prefix + "in_flight", "Requests taken and not yet answered.", registry=registry, multiprocess_mode="livesum"),
        Tally(Counter(prefix + "swaps", "Versions swapped in or refused.", ["outcome"], registry=registry)),
    )
