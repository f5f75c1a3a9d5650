"""A short cut on the connection for what most requests are: like the one before, read by the fast path, answered at once.

uvicorn gives every request a scope, a task and a cycle, and its parser calls back for each header; that is most of what a
request costs that a small model answers. A client repeats its headers to the byte. So a head that uvicorn has parsed, and
that asks for nothing special, is remembered, and the next request that begins with it goes to the batcher straight from
here: no task, no future, one write. Whatever is unusual in any way (another head, a body in parts, a full queue, a request
that the fast path does not read, a server that is leaving) is given to uvicorn and the application as it came.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from mlflow_opt.serving.app import Application, too_late
from mlflow_opt.serving.batcher import CallFailed
from mlflow_opt.serving.heads import END
from mlflow_opt.serving.replies import Reply, refusal
from mlflow_opt.serving.served import Served

# Between two looks at a connection that may be silent.
_LOOK_S = 1.0


class Asked:
    """A request that waits for the batcher; the connection holds one at a time."""

    __slots__ = ("_begun", "_data", "_served", "_wire", "gone")

    def __init__(self, wire: Wire, data: bytes, served: Served, begun: float) -> None:
        """Hold the version that will answer, so that a swap does not take it away."""
        self._wire, self._data, self._served, self._begun = wire, data, served, begun
        self.gone = False
        served.users += 1
        wire.application.taken += 1

    def take(self, answer: Any) -> None:
        """Answer; what the fast path refused is given to the application, as if it had just come."""
        self.leave()
        if isinstance(answer, CallFailed):
            self._wire.hand_over(self._data)
        else:
            self._wire.write(Reply(200, answer, "fast"), self._begun)

    def cancel(self) -> bool:
        """End the request because its time is up."""
        self.leave()
        self._wire.write(too_late(), self._begun)
        return False

    def leave(self) -> None:
        """Let go of the version and of the place in the queue."""
        self.gone = True
        self._wire.application.taken -= 1
        self._wire.application.deadlines.leave(self)
        self._served.release()


class Wire(HttpToolsProtocol):
    """uvicorn's connection with the short cut, which it takes where the application is this project's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self.application: Application = self.config.loaded_app
        self._desk = self.application.desk
        self._asked: Asked | None = None
        self._ahead = b""
        # Messages begun and ended in uvicorn's parser, which sees none that took the short cut.
        self._begun = self._ended = 0
        self._leaving = self._answered = False
        # When something came last, and when the message in uvicorn's parser began.
        self._last = self._since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take the short cut, or go uvicorn's way."""
        if self._asked is not None:
            # One at a time: what a client sends ahead waits.
            self._ahead += data
            self.flow.pause_reading()
            return
        self._last = self.loop.time()
        between = self._begun == self._ended and self._quiet
        if between and self._straight(data):
            return
        before = self._ended
        super().data_received(data)
        if between and self._ended == self._begun == before + 1:
            self._learn(data)

    def on_message_begin(self) -> None:
        """Count."""
        self._begun += 1
        self._since = self._last
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Count; after an upgrade the parser is not asked to be anywhere."""
        if not self.parser.should_upgrade():
            self._ended += 1
        super().on_message_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch over the connection."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what nobody waits for."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asked is not None:
            self._asked.leave()
            self._asked = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close once everything is answered."""
        if self._asked is None:
            super().shutdown()
        else:
            self._leaving = True

    def write(self, reply: Reply, begun: float) -> None:
        """Answer the request that took the short cut."""
        self._asked, self._answered = None, True
        telemetry = self.application.telemetry
        telemetry.requests.add(reply.status, reply.path)
        telemetry.seconds.observe(time.perf_counter() - begun)
        self.server_state.total_requests += 1
        self.transport.write(self._desk.page(STATUS_LINE[reply.status], reply, self.server_state.default_headers))
        if self._leaving:
            self.transport.close()
        elif self._ahead:
            self._go_on()

    def hand_over(self, data: bytes) -> None:
        """Give a request to uvicorn after all."""
        self._asked = None
        super().data_received(data)
        if self._leaving:
            super().shutdown()
        elif self._ahead:
            self._go_on()

    def _go_on(self) -> None:
        ahead, self._ahead = self._ahead, b""
        self.flow.resume_reading()
        self.data_received(ahead)

    def _straight(self, data: bytes) -> bool:
        at = data.find(END) + len(END)
        head = self._desk.heads.get(data[:at])
        application = self.application
        if head is None or len(data) - at != head.length or self.flow.write_paused or application.draining:
            return False
        begun, body = time.perf_counter(), data[at:]
        kept = application.answerer.at_once(body, head.content_type)
        if kept is None:
            if application.taken >= application.settings.queue:
                return False
            found = application.answerer.straight(body, head.content_type)
            if found is None:
                return False
            served, chunk = found
            self._asked = Asked(self, data, served, begun)
            application.deadlines.enter(self._asked, head.seconds)
            served.put(chunk, self._asked)
        if self.timeout_keep_alive_task is not None:
            # uvicorn's, from its last answer; from here on `_look` ends a connection that is not used.
            self._unset_keepalive_if_required()
        if kept is not None:
            self.write(kept, begun)
        return True

    @property
    def _quiet(self) -> bool:
        """Tell whether uvicorn owes no answer on this connection."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _learn(self, data: bytes) -> None:
        """Remember the head of a request that was all of what came."""
        at = data.find(END) + len(END)
        plain = self.scope["method"] == "POST" and self.url == b"/invocations" and self.scope["http_version"] == "1.1"
        if plain and self.cycle.keep_alive and data[:at].endswith(END):
            self._desk.learn(data[:at], self.headers)

    def _look(self) -> None:
        """Close a connection that is silent for too long, between requests or within the headers of one."""
        if self.transport.is_closing():
            return
        now, patience = self.loop.time(), self._desk.deadline_ms / 1000
        if self._asked is None and self._quiet:
            if self._begun > self._ended and now - self._since > patience:
                late = refusal(
                    408, "DEADLINE_EXCEEDED", f"a request's headers must arrive within {patience:g} s.", (b"connection", b"close")
                )
                self.write(late, time.perf_counter())
                self.transport.close()
                return
            if self._begun == self._ended and now - self._last > (self.timeout_keep_alive if self._answered else patience):
                self.transport.close()
                return
        self._timer = self.loop.call_later(_LOOK_S, self._look)
