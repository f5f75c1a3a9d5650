"""Keep whole answers: in this process, bounded in number, size and age, and in Redis for several processes and machines.

A key is the identity of the loaded version and the request as it came, so a moved alias or a changed file is another key.
The cache pays for models and features that cost more than the lookup: a hit in this process saves the model's call and the
reading of the request; Redis costs a round trip, which a model of a few hundred trees never costs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)

Key = tuple[str, bytes]
_MARK_BYTES = 16
# A cache that does not answer is passed over for so long before it is asked again.
_PAUSE_S = 1.0
_TIMEOUT_S = 0.05


class MemoryCache:
    """The newest answers of this process: least recently used ones go first, none outlives its time."""

    def __init__(self, entries: int, most_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin empty.

        Args:
            entries: most answers.
            most_bytes: most memory of keys and answers together.
            ttl_s: how long an answer is good.
            clock: seconds that never go back.

        """
        self._entries, self._most, self._ttl, self._clock = entries, most_bytes, ttl_s, clock
        self._kept: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Return the memory of keys and answers."""
        return self._bytes

    def get(self, key: Key) -> bytes | None:
        """Look an answer up."""
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] < self._clock():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: Key, answer: bytes) -> None:
        """Keep an answer, and let the oldest ones go where there is no room."""
        if key in self._kept:
            self._drop(key)
        size = len(key[1]) + len(answer)
        if size > self._most:
            return
        self._kept[key] = (self._clock() + self._ttl, answer)
        self._bytes += size
        while len(self._kept) > self._entries or self._bytes > self._most:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._bytes = 0

    def _drop(self, key: Key) -> None:
        _, answer = self._kept.pop(key)
        self._bytes -= len(key[1]) + len(answer)


class RedisCache:
    """Answers shared through Redis. It may be slow, gone or hold garbage: then it is as if it had no answer."""

    def __init__(self, url: str, ttl_s: float, failed: Callable[[], None] = lambda: None) -> None:
        """Prepare a client; nothing connects yet.

        Args:
            url: `redis://host:port/db`.
            ttl_s: how long an answer is good.
            failed: told each time that Redis did not answer.

        """
        import redis.asyncio

        self._client = redis.asyncio.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._ttl_ms, self._failed = max(1, int(ttl_s * 1000)), failed
        self._again = 0.0

    async def get(self, key: Key) -> bytes | None:
        """Look an answer up; what is not exactly as `put` wrote it counts as missing."""
        name = _digest(key)
        stored = await self._ask(lambda: self._client.get(_named(name)))
        if not isinstance(stored, bytes) or len(stored) <= _MARK_BYTES:
            return None
        mark, answer = stored[:_MARK_BYTES], stored[_MARK_BYTES:]
        return answer if mark == _mark(name, answer) else None

    async def put(self, key: Key, answer: bytes) -> None:
        """Keep an answer."""
        name = _digest(key)
        await self._ask(lambda: self._client.set(_named(name), _mark(name, answer) + answer, px=self._ttl_ms))

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def _ask(self, action: Callable[[], Awaitable[Any]]) -> Any:
        from redis.exceptions import RedisError

        if time.monotonic() < self._again:
            return None
        try:
            return await action()
        except (TimeoutError, RedisError, OSError) as error:
            self._again = time.monotonic() + _PAUSE_S
            self._failed()
            logger.warning(
                "Redis does not answer (%s: %s): serving without it, asking again in %g s.", type(error).__name__, error, _PAUSE_S
            )
            return None


class Flights:
    """Single flight: of equal requests that come while the first is being answered, only the first is computed."""

    def __init__(self) -> None:
        """Begin with none under way."""
        self._under_way: dict[Key, asyncio.Future[bytes | None]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    async def join(self, key: Key) -> bytes | None:
        """Wait for the answer of an equal request; None if there is none under way, or if it got no answer to share."""
        flight = self._under_way.get(key)
        # Shielded: a follower that gives up must not take the flight down for the others.
        return await asyncio.shield(flight) if flight is not None else None

    def begin(self, key: Key) -> bool:
        """Announce a computation; False if an equal one is under way."""
        if key in self._under_way:
            return False
        self._under_way[key] = asyncio.get_running_loop().create_future()
        return True

    def end(self, key: Key, answer: bytes | None) -> None:
        """Share the answer with those who wait; None sends them to compute it themselves."""
        self._under_way.pop(key).set_result(answer)


def _digest(key: Key) -> bytes:
    named = hashlib.blake2b(key[0].encode() + b"\0", digest_size=32)
    named.update(key[1])
    return named.digest()


def _named(name: bytes) -> bytes:
    return b"mlflow-opt:" + name.hex().encode()


def _mark(name: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(name + answer, digest_size=_MARK_BYTES).digest()
