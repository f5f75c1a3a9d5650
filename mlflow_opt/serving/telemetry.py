"""What the server counts about itself, for Prometheus; with several workers each writes its own file and any one sums them up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as several

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Telemetry:
    """The server's counters.

    Args:
        registry: that `/metrics` shows.
        requests: by status and by who answered (`fast`, `pyfunc`, `cache`, `limit`).
        seconds: from a request's headers to its answer.
        batch_rows: rows of each call of the fast path.
        cache: lookups by outcome: `hit`, `shared` (Redis), `joined` (an equal request was under way), `miss`, `error`.
        in_flight: requests taken and not yet answered.
        swaps: of versions, by outcome: `done`, `refused`, `unreachable`.

    """

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batch_rows: Histogram
    cache: Counter
    in_flight: Gauge
    swaps: Counter

    def show(self) -> bytes:
        """Write everything in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        summed = CollectorRegistry()
        collect: Any = several.MultiProcessCollector
        collect(summed)
        return generate_latest(summed)


def make() -> Telemetry:
    """Begin to count, in a registry of its own: two servers in one process do not mix."""
    registry = CollectorRegistry()
    prefix = "mlflow_opt_"
    return Telemetry(
        registry,
        Counter(prefix + "requests", "Requests answered.", ["status", "path"], registry=registry),
        Histogram(prefix + "request_seconds", "Time from headers to answer.", buckets=_SECONDS, registry=registry),
        Histogram(prefix + "batch_rows", "Rows of each call of the fast path.", buckets=_ROWS, registry=registry),
        Counter(prefix + "cache", "Cache lookups.", ["outcome"], registry=registry),
        Gauge(prefix + "in_flight", "Requests taken and not yet answered.", registry=registry, multiprocess_mode="livesum"),
        Counter(prefix + "swaps", "Versions swapped in or refused.", ["outcome"], registry=registry),
    )
