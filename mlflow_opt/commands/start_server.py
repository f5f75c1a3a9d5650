"""Start the server of a registered model. The recipe `serve` finds the settings; this command uses them.

Two names, because they are two things: a recipe is a run with child runs that ends, a server is a process that does not.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from mlflow_opt.serving import dockerfile, process
from mlflow_opt.serving import settings as options
from mlflow_opt.signature import run

# `mlflow run` would open a run that lasts as long as the server.
CLI_ONLY = True

_logger = logging.getLogger(__name__)


def start_server(
    *,
    model: str = "",
    host: str = "127.0.0.1",
    port: int = 5001,
    batching: Literal["stored", "exact", "always", "off"] = "stored",
    max_batch: int = 0,
    window_ms: float = -1.0,
    threads: int = 0,
    workers: int = 0,
    cache: Literal["stored", "off", "memory", "redis"] = "stored",
    cache_ttl_s: float = 300.0,
    redis_url: str = "redis://127.0.0.1:6379/0",
    queue: int = 1000,
    concurrency: int = 4,
    deadline_ms: float = 30_000.0,
    max_body_mb: float = 8.0,
    drain_s: float = 0.5,
    watch_s: float = 5.0,
    require_verdict: bool = False,
    features: str = "",
    print_dockerfile: bool = False,
) -> None:
    """Serve a model version over MLflow's REST protocol: batched, cached, following its alias, ready for SIGTERM.

    Helps drop-in variants and LightGBM on tables most, which answer without pandas. Every other model is served through
    pyfunc, and does not get faster than `mlflow models serve` but for the cache.

    Example:
        mlflow-opt start_server --model models:/churn@champion --port 5001 --require_verdict true

    Args:
        model: `models:/churn@champion` (followed when it moves), `models:/churn/3`, `runs:/.../model` or a local model folder.
        host: address to listen on; there is no authentication, so put a gateway in front before it is more than this machine.
        port: to listen on.
        batching: join waiting requests: `exact` only where the answers stay the same bits, `always`, `off`; `stored` as `serve` found.
        max_batch: most rows of one call; 0 as `serve` found, else 64.
        window_ms: longest wait for more rows, 0 when idle; -1 as `serve` found, else 0.
        threads: of one call of the model's runtime; 0 as `serve` found, else 1.
        workers: processes; 0 as `serve` found, else 1.
        cache: of whole answers: `off`, `memory`, `redis`; `stored` as `serve` found, else off.
        cache_ttl_s: how long an answer is kept, in seconds.
        redis_url: of the shared cache.
        queue: requests taken and not yet answered; one more is answered 429.
        concurrency: pyfunc calls at a time, where there is no fast path.
        deadline_ms: for one request, in milliseconds; a client's `x-deadline-ms` can only shorten it.
        max_body_mb: larger bodies are answered 413.
        drain_s: on SIGTERM, how long to go on answering while `/ready` says 503, in seconds.
        watch_s: between two looks at the alias, in seconds; 0 never looks.
        require_verdict: refuse a version whose evidence is not a PASS.
        features: `path.py:function`, an async function that completes a request's JSON; empty for none.
        print_dockerfile: write a Dockerfile for this command to stdout instead of serving.

    Raises:
        ValueError: the model cannot be served, or a setting is out of range.

    References:
        MLflow documentation, "Deploy MLflow Model as a Local Inference Server" (the protocol).
    """
    given = locals()
    if not model:
        raise ValueError("start_server must be told which model to serve, got none; give --model models:/NAME@champion.")
    wanted = chosen(given)
    settings = options.changed(options.Settings(), wanted)
    if print_dockerfile:
        print(dockerfile.text(model, wanted), end="")
        return
    process.serve(model, settings, frozenset(wanted), host, port)


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Pick the settings that were given; the tuned ones that were not may come from the model's own tag.

    Example:
        >>> chosen({"max_batch": 0, "window_ms": 0.0, "cache": "stored", "queue": 10, "host": "127.0.0.1"})
        {'window_ms': 0.0, 'queue': 10}
    """
    absent = {"batching": "stored", "cache": "stored", "max_batch": 0, "threads": 0, "workers": 0, "window_ms": -1.0}
    known = options.names()
    return {name: value for name, value in given.items() if name in known and value != absent.get(name)}


if __name__ == "__main__":
    run(start_server)
