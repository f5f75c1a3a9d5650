"""The ASGI application: MLflow's REST contract, with limits, a cache and a fast path in front of the model.

`/invocations` is answered here, without a framework, because a route of a framework costs as much as the model of a few
hundred trees; everything else goes to FastAPI (`routes.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any, cast

from mlflow_opt.serving import telemetry as counting
from mlflow_opt.serving.answering import Answerer
from mlflow_opt.serving.deadlines import Deadlines
from mlflow_opt.serving.heads import Desk, read_headers
from mlflow_opt.serving.live import Live
from mlflow_opt.serving.replies import Reply, Send, deliver, refusal
from mlflow_opt.serving.settings import Settings

logger = logging.getLogger(__name__)

# Bodies of the largest size that may be on their way at a time: what a crowd of slow senders can make the server hold.
_BODIES_AT_A_TIME = 32
_FLUSH_S = 1.0

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]


class Application:
    """The server's application; one in each worker process."""

    def __init__(self, model: str, settings: Settings, fixed: frozenset[str] = frozenset()) -> None:
        """Prepare; the model is loaded at start-up.

        Args:
            model: its URI.
            settings: how it is served.
            fixed: names of settings that the model's own tag must not change.

        """
        from mlflow_opt.serving.routes import make_routes

        self.settings = settings
        self.telemetry = counting.make()
        self.live = Live(model, settings, fixed, self.telemetry)
        self.draining = False
        self.taken = 0
        self.deadlines = Deadlines()
        self.desk = Desk(settings.deadline_ms)
        self.answerer = Answerer(self.live, settings, self.telemetry)
        self._most = int(settings.max_body_mb * 1e6)
        self._routes = make_routes(self)
        self._arriving = 0
        self._flushing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be an ASGI application."""
        if scope["type"] == "http" and scope["path"] == "/invocations" and scope["method"] == "POST":
            await self._invoke(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    async def start(self) -> None:
        """Load the model and begin to watch its alias."""
        await self.live.start()
        if counting.shared_by_workers():
            self._flushing = asyncio.create_task(self._flush(), name="flush-counts")

    async def stop(self) -> None:
        """Let go of the model and of the cache."""
        if self._flushing is not None:
            self._flushing.cancel()
        await self.live.stop()
        await self.answerer.close()

    async def _flush(self) -> None:
        """Hand the counts over, for whichever worker is asked for them."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            self.telemetry.flush(self.taken)

    async def _invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        content_type, length, deadline_ms = read_headers(scope["headers"], self.settings.deadline_ms)
        if length > self._most:
            reply = _too_large(self.settings.max_body_mb)
        else:
            reply = await self._answer_in_time(content_type, receive, deadline_ms / 1000)
        self.telemetry.requests.add(reply.status, reply.path)
        self.telemetry.seconds.observe(time.perf_counter() - begun)
        # A body that was not read keeps its connection from carrying another request.
        await deliver(reply, send, last=reply.path == "unread" or self.draining)

    async def _answer_in_time(self, content_type: str, receive: Receive, seconds: float) -> Reply:
        # A request is answered in a task of its own; there is always one.
        task = cast("asyncio.Task[None]", asyncio.current_task())
        body: bytes | Reply | None = None
        self.deadlines.enter(task, seconds)
        try:
            body = await self._read_body(receive)
            if isinstance(body, Reply):
                return body
            return self.answerer.at_once(body, content_type) or await self._answer(body, content_type)
        except asyncio.CancelledError:
            if not self.deadlines.ended(task):
                raise
            if body is not None:
                return too_late()
            return _unread(408, "DEADLINE_EXCEEDED", f"a request must arrive within {seconds:g} s; send its body faster.")
        # A fault of ours or of the model's own code ends this request, with a status that monitoring sees, and no other.
        except Exception:
            logger.exception("A request could not be answered.")
            return refusal(500, "INTERNAL_ERROR", "the server failed to answer; its log says why.")
        finally:
            self.deadlines.leave(task)

    async def _answer(self, body: bytes, content_type: str) -> Reply:
        """Answer a request that has arrived, if the queue has room: who sends slowly takes nobody's place in it."""
        if self.taken >= self.settings.queue:
            return _busy(self.settings.queue)
        self.taken += 1
        try:
            return await self.answerer.answer(body, content_type)
        finally:
            self.taken -= 1

    async def _read_body(self, receive: Receive) -> bytes | Reply:
        """Read a body, or say why it is not read to its end."""
        message = await receive()
        if not message.get("more_body", False):
            return message.get("body", b"")  # type: ignore[no-any-return]
        parts = [message.get("body", b"")]
        size = len(parts[0])
        self._arriving += size
        try:
            while message.get("more_body", False):
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._arriving += len(parts[-1])
                if size > self._most:
                    return _too_large(self.settings.max_body_mb)
                if self._arriving > self._most * _BODIES_AT_A_TIME:
                    return _unread(429, "REQUEST_LIMIT_EXCEEDED", "too much is being sent at a time; try again.", (b"retry-after", b"1"))
        finally:
            self._arriving -= size
        if message["type"] == "http.disconnect":
            # Nobody reads this; the status is the one that web servers write into their logs for it.
            return _unread(499, "CANCELLED", "the client went away before its request had arrived.")
        return b"".join(parts)


def too_late() -> Reply:
    """Answer a request whose time is up by the status and the words of MLflow's scoring server."""
    return refusal(504, "DEADLINE_EXCEEDED", "Request processing time exceeded limit")


def _busy(queue: int) -> Reply:
    return refusal(429, "REQUEST_LIMIT_EXCEEDED", f"at most {queue} requests wait at a time; try again.", (b"retry-after", b"1"))


def _too_large(most_mb: float) -> Reply:
    return _unread(413, "REQUEST_TOO_LARGE", f"a request's body must have at most {most_mb:g} MB; send fewer rows at a time.")


def _unread(status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> Reply:
    return replace(refusal(status, code, message, *headers), path="unread")
