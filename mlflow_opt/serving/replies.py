"""What goes back to a client: a status, a body, and for everything that is no answer one JSON shape, MLflow's own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from mlflow_opt.serving.answers import Answers, divide, finite, plain

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


def written(answers: Answers, sizes: Sequence[int]) -> list[bytes]:
    """Write each request's predictions as MLflow does: an object with the key `predictions`.

    Numbers are first turned into Python's: a single-precision score is then written with the digits of the double it is,
    as MLflow writes it, and a reader gets the same bits.

    Example:
        >>> written(np.array([0.5, 1.0, 2.0]), [1, 2])
        [b'{"predictions":[0.5]}', b'{"predictions":[1.0,2.0]}']

    Args:
        answers: of one call of the model.
        sizes: rows of each request, in order.

    Raises:
        ValueError: there are not as many rows as were asked for.
    """
    if isinstance(answers, np.ndarray) and answers.ndim and sum(sizes) == len(sizes) == len(answers) and finite(answers):
        # The usual case under load, in one pass: a row for each request.
        return [orjson.dumps({"predictions": [value]}) for value in answers.tolist()]
    return [_written(part) for part in divide(answers, sizes)]


def _written(part: Answers) -> bytes:
    said = {"predictions": plain(part)}
    # JSON has no NaN; MLflow writes it nevertheless, and its clients read it.
    return orjson.dumps(said) if finite(part) else json.dumps(said).encode()


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
