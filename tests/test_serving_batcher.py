"""Joining requests: order, neighbours, no wait when idle, and a window that adapts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlflow_opt.serving.answers import plain
from mlflow_opt.serving.batcher import Batcher, CallFailed, Pace, Window
from mlflow_opt.serving.engines import Chunk


class Doubling:
    """A model that doubles numbers, refuses negative ones, and remembers the sizes of its calls and where they ran."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self._seconds = seconds

    def run(self, chunks: Sequence[Chunk]) -> np.ndarray:
        values = np.concatenate([np.asarray(chunk.data, dtype=float) for chunk in chunks])
        self.sizes.append(len(values))
        self.threads.add(threading.current_thread().name)
        if self._seconds:
            time.sleep(self._seconds)
        if (values < 0).any():
            raise ValueError("negative")
        return values * 2


def _chunk(*values: float) -> Chunk:
    return Chunk(len(values), values)


async def _ask(batcher: Batcher, chunks: Sequence[Chunk]) -> list[Any]:
    return list(await asyncio.gather(*(batcher.submit(chunk) for chunk in chunks), return_exceptions=True))


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["on_the_loop", "in_a_thread"])
def test_batcher_answers_each_its_own_rows_when_joined(seconds: float) -> None:
    model = Doubling()
    # A call that is said to take a second leaves the event loop.
    batcher = Batcher(model.run, Pace(call_s=seconds))
    answers = asyncio.run(_ask(batcher, [_chunk(1), _chunk(2, 3), _chunk(4), _chunk(5, 6, 7)]))
    batcher.close()
    assert [answer.tolist() for answer in answers] == [[2], [4, 6], [8], [10, 12, 14]]
    assert model.sizes == [7]
    assert all(name.startswith("model-call") == bool(seconds) for name in model.threads)


def test_batcher_fails_no_neighbour_when_one_row_is_bad() -> None:
    model = Doubling()
    answers = asyncio.run(_ask(Batcher(model.run, Pace()), [_chunk(value) for value in (1, -1, 2, -2, 3)]))
    assert [isinstance(answer, CallFailed) for answer in answers] == [False, True, False, True, False]
    assert [answers[index].tolist() for index in (0, 2, 4)] == [[2], [4], [6]]


def test_batcher_answers_later_requests_when_a_call_has_failed() -> None:
    batcher = Batcher(Doubling().run, Pace(call_s=1.0))

    async def check() -> None:
        failed = await _ask(batcher, [_chunk(-1)])
        assert isinstance(failed[0], CallFailed)
        assert plain(await batcher.submit(_chunk(4))) == [8]

    asyncio.run(check())
    batcher.close()


def test_batcher_keeps_within_the_largest_batch_when_many_wait() -> None:
    model = Doubling()
    answers = asyncio.run(_ask(Batcher(model.run, Pace(max_batch=4)), [_chunk(value) for value in range(10)]))
    assert [answer.tolist() for answer in answers] == [[2.0 * value] for value in range(10)]
    assert model.sizes == [4, 4, 2]


def test_batcher_answers_in_one_call_when_a_request_is_larger_than_a_batch() -> None:
    model = Doubling()
    answers = asyncio.run(_ask(Batcher(model.run, Pace(max_batch=2)), [_chunk(1, 2, 3, 4, 5), _chunk(6)]))
    assert [len(answer) for answer in answers] == [5, 1]
    assert model.sizes == [5, 1]


def test_batcher_joins_what_came_during_a_call_when_it_runs_in_a_thread() -> None:
    model = Doubling(seconds=0.03)
    batcher = Batcher(model.run, Pace(call_s=1.0))

    async def check() -> None:
        first = batcher.submit(_chunk(0))
        await asyncio.sleep(0.01)
        later = [batcher.submit(_chunk(value)) for value in (1, 2, 3)]
        await asyncio.gather(first, *later)

    asyncio.run(check())
    batcher.close()
    assert model.sizes == [1, 3]


def test_batcher_computes_nothing_when_the_request_was_given_up() -> None:
    model = Doubling()
    batcher = Batcher(model.run, Pace())

    async def check() -> None:
        gone, stays = batcher.submit(_chunk(1)), batcher.submit(_chunk(2))
        gone.cancel()
        assert plain(await stays) == [4]

    asyncio.run(check())
    assert model.sizes == [1]


def test_batcher_adds_no_wait_when_idle() -> None:
    model = Doubling()
    batcher = Batcher(model.run, Pace(window_s=0.5))

    async def check() -> float:
        begun = time.perf_counter()
        for value in range(5):
            await batcher.submit(_chunk(value))
        return time.perf_counter() - begun

    assert asyncio.run(check()) < 0.25
    assert batcher.window_s == 0


def test_batcher_waits_for_more_when_waiting_has_paid() -> None:
    model = Doubling()
    batcher = Batcher(model.run, Pace(window_s=0.08, max_batch=8))

    async def check() -> None:
        # A queue teaches it that there is load, and a wait that gained something that waiting pays.
        await _ask(batcher, [_chunk(1), _chunk(2)])
        learnt = batcher.window_s
        await asyncio.gather(batcher.submit(_chunk(1)), _later(batcher, learnt / 2))
        assert batcher.window_s > learnt > 0
        model.sizes.clear()
        waiting = [asyncio.create_task(_later(batcher, 0.004 * index)) for index in range(8)]
        await asyncio.gather(*waiting)

    asyncio.run(check())
    assert model.sizes[0] > 1


async def _later(batcher: Batcher, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await batcher.submit(_chunk(1))


def test_batcher_answers_at_once_when_the_batch_is_full_before_the_window_ends() -> None:
    batcher = Batcher(Doubling().run, Pace(window_s=30.0, max_batch=4))

    async def check() -> float:
        await _ask(batcher, [_chunk(1), _chunk(2)])
        assert batcher.window_s > 1
        begun = time.perf_counter()
        first = batcher.submit(_chunk(1))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, *(batcher.submit(_chunk(value)) for value in (2, 3, 4)))
        return time.perf_counter() - begun

    assert asyncio.run(check()) < 1


def test_window_shrinks_to_nothing_when_waiting_gains_nothing() -> None:
    window = Window(0.008)
    for _ in range(20):
        window.learn(rows=4, gained=0, waited=False)
    assert window.current == pytest.approx(0.008)
    for _ in range(8):
        window.learn(rows=4, gained=0, waited=True)
    assert window.current == 0


def test_batcher_refuses_an_answer_when_it_has_other_rows_than_asked() -> None:
    batcher = Batcher(lambda chunks: np.zeros(3), Pace())
    answers = asyncio.run(_ask(batcher, [_chunk(1), _chunk(2)]))
    assert all(isinstance(answer, CallFailed) for answer in answers)
