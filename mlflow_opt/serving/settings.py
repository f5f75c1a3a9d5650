"""How a version is served: batching, caching, limits. One frozen value, carried as JSON in a tag and in the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from mlflow_opt.verdicts.evidence import PREFIX

# On the LoggedModel, not on the model version: the registry hook reserves our prefix on registry tags.
SETTINGS_TAG = PREFIX + "serving"
# What the `serve` recipe searches and a stored tag may therefore set; the rest belongs to whoever runs the server.
TUNED = ("batching", "max_batch", "window_ms", "threads", "workers", "cache")


@dataclass(frozen=True)
class Settings:
    """Everything that decides how requests are answered.

    Args:
        batching: `exact` joins waiting requests where the model was seen to answer bit for bit alike in a batch and alone;
            `always` joins them even if the last bits differ; `off` answers each request by itself.
        max_batch: most rows of one call.
        window_ms: longest wait for more rows; the wait in use adapts to the load and is 0 when idle.
        threads: of one call of the model's runtime.
        workers: processes.
        cache: of whole answers: `off`, `memory` (this process), `redis` (memory first, then Redis).
        cache_entries: most answers kept in memory.
        cache_mb: most memory for them.
        cache_ttl_s: how long an answer is kept.
        redis_url: of the shared cache.
        queue: requests taken and not yet answered; one more is answered 429.
        concurrency: pyfunc calls at a time, for models and requests that have no fast path.
        deadline_ms: from a request's headers to its answer; a client's `x-deadline-ms` header can only shorten it.
        max_body_mb: larger bodies are answered 413.
        drain_s: on SIGTERM, how long the server goes on answering while it says that it is not ready.
        watch_s: between two looks at the alias; 0 never looks.
        require_verdict: serve only what has a PASS.
        features: `path.py:function`, an async function that completes a request's JSON before it is read; `""` for none.
    """

    batching: Literal["exact", "always", "off"] = "exact"
    max_batch: int = 64
    window_ms: float = 0.0
    threads: int = 1
    workers: int = 1
    cache: Literal["off", "memory", "redis"] = "off"
    cache_entries: int = 10_000
    cache_mb: float = 64.0
    cache_ttl_s: float = 300.0
    redis_url: str = "redis://127.0.0.1:6379/0"
    queue: int = 1000
    concurrency: int = 4
    deadline_ms: float = 30_000.0
    max_body_mb: float = 8.0
    drain_s: float = 0.5
    watch_s: float = 5.0
    require_verdict: bool = False
    features: str = ""

    def __post_init__(self) -> None:
        for name in ("max_batch", "threads", "workers", "cache_entries", "cache_mb", "cache_ttl_s", "queue", "concurrency"):
            _require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for name in ("deadline_ms", "max_body_mb"):
            _require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for name in ("window_ms", "drain_s", "watch_s"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _require(self.batching in ("exact", "always", "off"), "batching", "exact, always or off", self.batching)
        _require(self.cache in ("off", "memory", "redis"), "cache", "off, memory or redis", self.cache)


def names() -> frozenset[str]:
    """Name every setting."""
    return frozenset(field.name for field in fields(Settings))


def to_json(settings: Settings) -> str:
    """Write settings for another process."""
    return json.dumps(asdict(settings))


def from_json(text: str) -> Settings:
    """Read settings that `to_json` wrote.

    Raises:
        ValueError: not JSON, an unknown name, or a value out of range.

    """
    return changed(Settings(), json.loads(text))


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Replace some settings by values, which may be text.

    Example:
        >>> changed(Settings(), {"max_batch": "16", "require_verdict": "true"}).max_batch
        16

    Raises:
        ValueError: an unknown name, or a value that is none of its type.

    """
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    unknown = [name for name in values if name not in kinds]
    if unknown:
        raise ValueError(f"a serving setting must be one of {', '.join(kinds)}, got {', '.join(unknown)}; leave it out.")
    return replace(settings, **{name: _typed(name, value, kinds[name]) for name, value in values.items()})


def tuned(settings: Settings) -> str:
    """Write what a tag on the logged model says: the settings that a search found, and no others."""
    return json.dumps({name: getattr(settings, name) for name in TUNED})


def with_tag(settings: Settings, tags: Mapping[str, str]) -> Settings:
    """Use the settings stored with a model, if there are any.

    Raises:
        ValueError: the tag holds something else than `tuned` writes.

    """
    text = tags.get(SETTINGS_TAG, "")
    if not text:
        return settings
    stored = json.loads(text)
    if not isinstance(stored, dict) or not set(stored) <= set(TUNED):
        raise ValueError(f"the tag {SETTINGS_TAG} must hold a JSON object of {', '.join(TUNED)}, got '{text}'; run `serve` again.")
    return changed(settings, stored)


def _typed(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if kind is float and isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        truth = {"true": True, "false": False}
        if kind is bool and value.lower() in truth:
            return truth[value.lower()]
        if kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}.")


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value!r}.")
