"""From a request's body to its reply: features, cache, single flight, model."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from mlflow_opt.serving.cache import Flights, MemoryCache, RedisCache
from mlflow_opt.serving.engines import Chunk
from mlflow_opt.serving.live import Live
from mlflow_opt.serving.replies import Reply, refusal
from mlflow_opt.serving.served import Served
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

Fetch = Callable[[Any], Awaitable[Any]]


class Answerer:
    """Answers bodies with replies; what it keeps between requests is the cache."""

    def __init__(self, live: Live, settings: Settings, telemetry: Telemetry) -> None:
        """Prepare the cache and the feature hook."""
        self._live = live
        self._memory: MemoryCache | None = None
        self._redis: RedisCache | None = None
        self._flights = Flights()
        self._lookups = telemetry.cache
        self._settings = settings
        self._fetch = load_hook(settings.features) if settings.features else None

    def at_once(self, body: bytes, content_type: str) -> Reply | None:
        """Answer a request that this process has answered before; None if it must be computed."""
        if self._memory is None or self._fetch is not None:
            return None
        found = self._memory.get((self._live.served.identity + content_type, body))
        if found is None:
            return None
        self._lookups.add("hit")
        return Reply(200, found, "cache")

    def straight(self, body: bytes, content_type: str) -> tuple[Served, Chunk] | None:
        """Read a request that needs nothing but the fast path's next call, None if it is another."""
        served = self._live.served
        if self._fetch is not None or served.facts.settings.cache != "off":
            return None
        chunk = served.read(body, content_type)
        return (served, chunk) if chunk is not None else None

    async def answer(self, body: bytes, content_type: str) -> Reply:
        """Answer a request."""
        if not content_type:
            return refusal(415, "BAD_REQUEST", "a request must name its content type; send the header content-type: application/json.")
        if self._fetch is not None:
            fetched = await self._complete(self._fetch, body, content_type)
            if isinstance(fetched, Reply):
                return fetched
            body = fetched
        served = self._live.served
        served.users += 1
        try:
            if served.facts.settings.cache == "off":
                return await served.answer(body, content_type)
            return await self._cached(served, body, content_type)
        finally:
            served.release()

    async def close(self) -> None:
        """Give connections back."""
        if self._redis is not None:
            await self._redis.close()

    async def _cached(self, served: Served, body: bytes, content_type: str) -> Reply:
        memory, redis = self._caches(served.facts.settings)
        key = (served.identity + content_type, body)
        found = memory.get(key)
        if found is not None:
            # Only with a feature hook: every other hit was found before it came here.
            self._lookups.add("hit")
            return Reply(200, found, "cache")
        found = await self._flights.join(key)
        if found is not None:
            self._lookups.add("joined")
            return Reply(200, found, "cache")
        leads = self._flights.begin(key)
        shared: bytes | None = None
        try:
            found = await redis.get(key) if redis else None
            if found is not None:
                shared = found
                self._lookups.add("shared")
                memory.put(key, found)
                return Reply(200, found, "cache")
            self._lookups.add("miss")
            reply = await served.answer(body, content_type)
            if reply.status == 200:
                shared = reply.body
                memory.put(key, reply.body)
        finally:
            if leads:
                self._flights.end(key, shared)
        if redis and shared is not None:
            await redis.put(key, shared)
        return reply

    def _caches(self, chosen: Settings) -> tuple[MemoryCache, RedisCache | None]:
        if self._memory is None:
            self._memory = MemoryCache(self._settings.cache_entries, int(self._settings.cache_mb * 1e6), self._settings.cache_ttl_s)
        if chosen.cache == "redis" and self._redis is None:
            self._redis = RedisCache(self._settings.redis_url, self._settings.cache_ttl_s, lambda: self._lookups.add("error"))
        return self._memory, self._redis if chosen.cache == "redis" else None

    async def _complete(self, fetch: Fetch, body: bytes, content_type: str) -> bytes | Reply:
        if content_type.partition(";")[0].strip() != "application/json":
            return body
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            return body
        try:
            return orjson.dumps(await fetch(payload))
        # The hook is the user's own code: its failure is that request's answer, and the log has the traceback.
        except Exception as error:
            logger.exception("The feature hook failed.")
            return refusal(502, "FEATURES_UNAVAILABLE", f"the features of the request could not be fetched: {error}")


def load_hook(named: str) -> Fetch:
    """Load the function that completes requests: an async one that takes a request's JSON and returns it with more columns.

    Args:
        named: `path.py:function`.

    Raises:
        ValueError: no such file or function, or one that is not async.

    """
    path, _, name = named.rpartition(":")
    spec = importlib.util.spec_from_file_location("mlflow_opt_features", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"features must be path.py:function, got '{named}', and there is no file '{path}'.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = getattr(module, name, None)
    if hook is None or not inspect.iscoroutinefunction(hook):
        raise ValueError(f"features must name an async function, got '{named}'; define `async def {name or 'fetch'}(request)` in it.")
    return hook  # type: ignore[no-any-return]
