"""What goes back to a client: a status, a body, and for everything that is no answer one JSON shape, MLflow's own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

from mlflow_opt.serving.answers import Answers, finite, plain

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to one request; `path` says who made it: `fast`, `pyfunc`, `cache`, `limit`, or `unread` before its body was there."""

    status: int
    body: bytes
    path: str
    media_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def predictions(answers: Answers) -> Reply:
    """Write predictions as MLflow does: an object with the key `predictions`.

    Numbers are first turned into Python's: a single-precision score is then written with the digits of the double it is,
    as MLflow writes it, and a reader gets the same bits.
    """
    values = plain(answers)
    if not finite(answers):
        # JSON has no NaN; MLflow writes it nevertheless, and its clients read it.
        return Reply(200, json.dumps({"predictions": values}).encode(), "fast")
    return Reply(200, orjson.dumps({"predictions": values}), "fast")


def refusal(status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> Reply:
    """Write why a request is not answered."""
    return Reply(status, orjson.dumps({"error_code": code, "message": message}), "limit", _JSON, headers)


async def deliver(reply: Reply, send: Send, *, last: bool) -> None:
    """Send a reply; `last` tells the client to come back on another connection."""
    headers = [(b"content-type", reply.media_type), (b"content-length", b"%d" % len(reply.body)), *reply.headers]
    if last:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
