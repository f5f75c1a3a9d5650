"""Join requests that wait into one call of the model, without letting anybody wait who need not.

What arrives while the event loop is busy, or while a call runs in its thread, is answered together by the next call: under
load batches form by themselves, and an idle server adds no wait. Beyond that a window of waiting may be allowed. It grows
by a step while there is a queue, and is halved whenever waiting gained nothing: the additive-increase, multiplicative-
decrease rule that Crankshaw et al. 2017, "Clipper: a low-latency online prediction serving system" (section 4.3), uses for
the batch size, here for the wait, because a batch of any size up to the largest is as good as the measured cost says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from mlflow_opt.serving.answers import Answers, divide
from mlflow_opt.serving.engines import Chunk

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[Chunk]], Answers]
# From the answers of a call and the rows of each request to what each request gets.
Share = Callable[[Answers, Sequence[int]], Sequence[Any]]
_STEPS = 8


class CallFailed(RuntimeError):  # noqa: N818 - it reads as what happened
    """The runtime refused a request that was alone in its call."""


@dataclass(frozen=True)
class Pace:
    """How a model is called.

    Args:
        max_batch: most rows of a call; 1 answers each request by itself.
        window_s: longest wait for more rows.
        call_s: of a call without rows.
        row_s: more for each row.
        joins: whether several requests make one call; else they are called one by one.
        inline_s: longer calls leave the event loop for a thread; at one connection handing over costs half the rate, and below 3 ms
            it was never seen to pay, but a blocked loop delays everybody.

    """

    max_batch: int = 64
    window_s: float = 0.0
    call_s: float = 0.0
    row_s: float = 0.0
    joins: bool = True
    inline_s: float = 2e-3


class Taker(Protocol):
    """Who waits for an answer."""

    @property
    def gone(self) -> bool:
        """Tell whether nobody waits any more."""

    def take(self, answer: Any) -> None:
        """Be given the answer, or `CallFailed`; only asked while not `gone`."""


class _Awaiting:
    """A taker that hands over to a coroutine."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def gone(self) -> bool:
        return self.future.done()

    def take(self, answer: Any) -> None:
        if isinstance(answer, CallFailed):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Window:
    """The wait for more rows that pays at the moment, between 0 and the longest allowed."""

    def __init__(self, longest: float) -> None:
        """Begin without any wait."""
        self.longest, self.current = longest, 0.0

    def learn(self, rows: int, gained: int, waited: bool) -> None:
        """Take a lesson from a call: rows in all, rows that came during the wait, whether there was one."""
        if waited and not gained:
            self.current = self.current / 2 if self.current > self.longest / 4 / _STEPS else 0.0
        elif rows > 1:
            self.current = min(self.longest, self.current + self.longest / _STEPS)
        elif not waited:
            self.current = 0.0


class Batcher:
    """The queue in front of one loaded model."""

    def __init__(self, run: Run, pace: Pace, record: Callable[[int], object] = int, share: Share = divide) -> None:
        """Prepare; nothing runs yet.

        Args:
            run: the model's call.
            pace: how to call it.
            record: told the rows of every call.
            share: makes what each request gets out of a call's answers.

        """
        self._run, self._pace, self._record, self._share = run, pace, record, share
        self._queue: deque[tuple[Chunk, Taker]] = deque()
        self._rows = 0
        self._window = Window(pace.window_s)
        self._looked = 0
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._pool: ThreadPoolExecutor | None = None

    @property
    def waiting(self) -> int:
        """Return how many requests wait for a call."""
        return len(self._queue)

    @property
    def window_s(self) -> float:
        """Return the wait in use."""
        return self._window.current

    def submit(self, chunk: Chunk) -> asyncio.Future[Any]:
        """Queue a request; the future gives its share of the answers, or `CallFailed`."""
        waiting = _Awaiting()
        self.put(chunk, waiting)
        return waiting.future

    def put(self, chunk: Chunk, taker: Taker) -> None:
        """Queue a request of somebody who is called back, which spares the event loop a task and a future."""
        self._queue.append((chunk, taker))
        self._rows += chunk.rows
        if self._timer is not None and self._rows >= self._pace.max_batch:
            self._timer.cancel()
            asyncio.get_running_loop().call_soon(self._waited)
            self._timer = None
        elif not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._look)

    def close(self) -> None:
        """Let the thread end once its call has ended; what waits is still answered."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _look(self) -> None:
        # By now everything that had arrived in this turn of the event loop is queued: that much comes without a wait.
        self._looked = self._rows
        if self._window.current <= 0 or self._rows >= self._pace.max_batch:
            self._flush()
            return
        self._timer = asyncio.get_running_loop().call_later(self._window.current, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._flush(waited=True)

    def _flush(self, *, waited: bool = False) -> None:
        self._window.learn(self._rows, self._rows - self._looked, waited)
        batch = self._take()
        if not batch:
            self._next()
            return
        chunks = [chunk for chunk, _ in batch]
        rows = sum(chunk.rows for chunk in chunks)
        self._record(rows)
        if self._pace.call_s + self._pace.row_s * rows <= self._pace.inline_s:
            self._answer(batch, self._call(chunks))
            self._next()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="model-call")
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._call, chunks)
        running.add_done_callback(lambda done: self._done(batch, done))

    def _done(self, batch: list[tuple[Chunk, Taker]], done: asyncio.Future[list[Any]]) -> None:
        if done.cancelled():
            self._answer(batch, [CallFailed("the server is closing") for _ in batch])
        else:
            self._answer(batch, done.result())
        self._next()

    def _next(self) -> None:
        self._looked = 0
        self._busy = bool(self._queue)
        if self._queue:
            # What came during the call has waited enough.
            asyncio.get_running_loop().call_soon(self._flush)

    def _take(self) -> list[tuple[Chunk, Taker]]:
        batch: list[tuple[Chunk, Taker]] = []
        rows = 0
        while self._queue:
            chunk, taker = self._queue[0]
            if batch and rows + chunk.rows > self._pace.max_batch:
                break
            self._rows -= chunk.rows
            # Whose deadline passed while waiting is gone, and costs nothing any more.
            if not taker.gone:
                batch.append(self._queue[0])
                rows += chunk.rows
            self._queue.popleft()
        return batch

    def _call(self, chunks: list[Chunk]) -> list[Any]:
        """Call the model for all, and if that fails for each alone, so that nobody fails for a neighbour's rows."""
        if not self._pace.joins and len(chunks) > 1:
            return [answer for chunk in chunks for answer in self._call([chunk])]
        try:
            return list(self._share(self._run(chunks), [chunk.rows for chunk in chunks]))
        # Whatever the runtime raises belongs to one of the requests; it is answered there by MLflow's own code.
        except Exception as error:  # noqa: BLE001
            if len(chunks) == 1:
                logger.info("A call of the fast path failed (%s); the request goes to pyfunc.", error)
                return [CallFailed(str(error))]
            return [answer for chunk in chunks for answer in self._call([chunk])]

    def _answer(self, batch: list[tuple[Chunk, Taker]], answers: Sequence[Any]) -> None:
        for (_, taker), answer in zip(batch, answers, strict=True):
            if taker.gone:
                continue
            try:
                taker.take(answer)
            # What goes wrong while one is answered must not keep the others, or the next call, from theirs.
            except Exception:
                logger.exception("An answer could not be handed over.")
