"""Put a server under load and say what its clients saw: requests arrive when they arrive, whether or not the server keeps up.

A client that waits for an answer before it sends the next request slows down with the server, and its percentiles leave
out the very requests that would have waited: coordinated omission (Tene 2013, "How NOT to measure latency"). Here arrivals
are a Poisson process fixed in advance, and a request's time counts from the moment at which it was meant to be sent, also
where every connection was taken. `closed_loop` keeps so many connections busy instead; it measures what a server can do,
and its percentiles are no latency objective.

Keys repeat by Zipf's law, as they do in caches: the share of the k-th most frequent is proportional to k^-s (Breslau et al.
1999, "Web caching and Zipf-like distributions: evidence and implications", found s between 0.6 and 0.8).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

_SPIN_S = 2e-3
_CONNECT_S = 30.0


@dataclass(frozen=True)
class Load:
    """What the clients of one stretch of load saw.

    Args:
        offered: requests per second meant to be sent; 0 for a closed loop.
        achieved: good answers per second.
        p50_ms: median time of good answers, from the moment they were meant to be sent.
        p95_ms: of good answers.
        p99_ms: of good answers.
        statuses: HTTP status -> count; 0 is a connection that broke.

    """

    offered: float
    achieved: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    statuses: Mapping[int, int]

    @property
    def failed(self) -> int:
        """Count what was not answered with 200."""
        return sum(count for status, count in self.statuses.items() if status != 200)


def zipf_order(keys: int, count: int, exponent: float, seed: int) -> np.ndarray:
    """Draw which key each request asks for.

    Example:
        >>> order = zipf_order(100, 1000, 1.0, seed=0)
        >>> bool((order == 0).sum() > (order == 50).sum())
        True

    Args:
        keys: how many different ones there are.
        count: how many requests.
        exponent: 0 makes every key alike frequent.
        seed: of the draw.

    """
    shares = np.arange(1, keys + 1, dtype=float) ** -exponent
    return np.random.default_rng(seed).choice(keys, size=count, p=shares / shares.sum())


def poisson_times(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Draw the moments at which requests arrive, in seconds from the start."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds * 1.5) + 20)
    times = np.cumsum(gaps)
    return times[times < seconds]


def request_bytes(body: bytes, path: str = "/invocations") -> bytes:
    """Write a POST request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def open_loop(port: int, requests: Sequence[bytes], times: np.ndarray, connections: int) -> Load:
    """Send each request at its time, whatever the server does.

    Args:
        port: of the server on this machine.
        requests: as bytes, one for each time (they are repeated if there are fewer).
        times: seconds from the start, ascending.
        connections: kept open; a request that finds none free waits, and its wait counts.

    """
    return asyncio.run(_open_loop(port, requests, times, connections))


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Keep so many connections busy for a while."""
    return asyncio.run(_closed_loop(port, requests, connections, seconds))


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection: one request at a time, the answer's status and body handed to a callback."""

    def __init__(self, answered: Callable[[_Connection, int], None]) -> None:
        self._answered = answered
        self._buffer = b""
        self.transport: asyncio.Transport
        self.due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, due: float) -> None:
        self.due, self.busy = due, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        length = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) >= length:
            self._buffer = body[length:]
            self.busy = False
            self._answered(self, int(head[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._answered(self, 0)


class _Clients:
    """The connections and what they have seen."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.connections: list[_Connection] = []
        self.answered, self.wanted = 0, -1
        self.finished = asyncio.Event()

    async def connect(self, port: int, count: int, answered: Callable[[_Connection, int], None]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            wait = loop.create_connection(lambda: _Connection(answered), "127.0.0.1", port)
            _, connection = await asyncio.wait_for(wait, _CONNECT_S)
            self.connections.append(connection)

    def saw(self, connection: _Connection, status: int) -> None:
        self.statuses[status] += 1
        self.answered += 1
        if self.answered == self.wanted:
            self.finished.set()
        if status == 200:
            self.taken.append(time.perf_counter() - connection.due)

    def result(self, offered: float, seconds: float) -> Load:
        for connection in self.connections:
            connection.transport.close()
        shown = np.percentile(np.array(self.taken) * 1000, (50, 95, 99)) if self.taken else np.full(3, np.inf)
        p50, p95, p99 = (float(value) for value in shown)
        return Load(offered, len(self.taken) / seconds, p50, p95, p99, dict(self.statuses))


async def _open_loop(port: int, requests: Sequence[bytes], times: np.ndarray, connections: int) -> Load:
    clients = _Clients()
    free: deque[_Connection] = deque()
    late: deque[tuple[bytes, float]] = deque()

    def answered(connection: _Connection, status: int) -> None:
        clients.saw(connection, status)
        if status == 0:
            return
        if late:
            connection.ask(*late.popleft())
        else:
            free.append(connection)

    await clients.connect(port, connections, answered)
    free.extend(clients.connections)
    begun = time.perf_counter()
    for index, moment in enumerate(times):
        due = begun + float(moment)
        await _until(due)
        request = requests[index % len(requests)]
        if free:
            free.popleft().ask(request, due)
        else:
            late.append((request, due))
    span = float(times[-1]) if len(times) else 1.0
    # Those still under way count; a server that never answers them does not hold the measurement up for ever.
    clients.wanted = len(times)
    if clients.answered < clients.wanted:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(clients.finished.wait(), max(1.0, span))
    clients.statuses[0] += len(times) - clients.answered
    return clients.result(len(times) / span, max(span, time.perf_counter() - begun))


async def _until(due: float) -> None:
    """Wait for a moment exactly: timers are a millisecond coarse, so the last of it is spent turning the event loop."""
    ahead = due - time.perf_counter()
    if ahead > _SPIN_S:
        await asyncio.sleep(ahead - _SPIN_S)
    # An event would be set by a timer, which is what is too coarse.
    while time.perf_counter() < due:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def _closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    clients = _Clients()
    following = _cycle(requests)
    stop = 0.0

    def answered(connection: _Connection, status: int) -> None:
        clients.saw(connection, status)
        now = time.perf_counter()
        if now < stop and status:
            connection.ask(next(following), now)
        elif not any(one.busy for one in clients.connections):
            clients.finished.set()

    await clients.connect(port, connections, answered)
    begun = time.perf_counter()
    stop = begun + seconds
    for connection in clients.connections:
        connection.ask(next(following), time.perf_counter())
    await asyncio.wait_for(clients.finished.wait(), seconds + _CONNECT_S * 2)
    return clients.result(0.0, time.perf_counter() - begun)


def _cycle(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests
