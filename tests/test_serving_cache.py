"""The caches: bounded, right about time, single flight; Redis slow, gone or full of garbage is never wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from mlflow_opt.serving.app import Application
from mlflow_opt.serving.cache import Flights, MemoryCache, RedisCache
from tests.servers import free_port
from tests.serving_models import client, numbers, serving_models, split, with_application

__all__ = ["serving_models"]

JSON = {"content-type": "application/json"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _key(text: str) -> tuple[str, bytes]:
    return ("m:", text.encode())


def test_memory_drops_the_least_recently_used_when_full() -> None:
    cache = MemoryCache(2, 1000, 10)
    cache.put(_key("a"), b"1")
    cache.put(_key("b"), b"2")
    assert cache.get(_key("a")) == b"1"
    cache.put(_key("c"), b"3")
    assert [cache.get(_key(name)) for name in "abc"] == [b"1", None, b"3"]


def test_memory_stays_within_its_bytes_when_answers_are_large() -> None:
    cache = MemoryCache(100, 100, 10)
    for index in range(50):
        cache.put(_key(f"{index:02}"), b"x" * 30)
    assert cache.size_bytes <= 100
    assert len(cache) == 3
    cache.put(_key("huge"), b"x" * 500)
    assert cache.get(_key("huge")) is None
    cache.put(_key("49"), b"y" * 10)
    assert cache.size_bytes == 2 * 32 + 12


def test_memory_forgets_when_the_time_is_up() -> None:
    clock = Clock()
    cache = MemoryCache(10, 1000, 5, clock)
    cache.put(_key("a"), b"1")
    clock.now = 4.9
    assert cache.get(_key("a")) == b"1"
    clock.now = 5.1
    assert cache.get(_key("a")) is None
    assert cache.size_bytes == 0


def test_memory_tells_models_apart_when_the_row_is_the_same() -> None:
    cache = MemoryCache(10, 1000, 5)
    cache.put(("churn/1:", b"row"), b"old")
    assert cache.get(("churn/2:", b"row")) is None


def test_flights_share_one_answer_when_requests_are_equal() -> None:
    async def check() -> None:
        flights = Flights()
        assert flights.begin(_key("a"))
        assert not flights.begin(_key("a"))
        followers = [asyncio.create_task(flights.join(_key("a"))) for _ in range(3)]
        await asyncio.sleep(0)
        # One that gives up takes nobody with it.
        followers[0].cancel()
        await asyncio.sleep(0)
        flights.end(_key("a"), b"1")
        assert await asyncio.gather(*followers[1:]) == [b"1", b"1"]
        assert len(flights) == 0
        assert await flights.join(_key("a")) is None

    asyncio.run(check())


@contextmanager
def _redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs Redis: Debian's package `redis-server`")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        asking = redis.Redis(port=port)
        for _ in range(100):
            try:
                asking.ping()
                break
            except redis.ConnectionError:
                process.poll()
                asyncio.run(asyncio.sleep(0.05))
        asking.close()
        yield process
    finally:
        process.terminate()
        process.wait(10)


def test_redis_gives_back_only_what_was_put_when_the_store_holds_garbage(tmp_path: Path) -> None:
    port = free_port()
    with _redis_server(tmp_path, port):

        async def check() -> None:
            cache = RedisCache(f"redis://127.0.0.1:{port}/0", 60)
            assert await cache.get(_key("a")) is None
            await cache.put(_key("a"), b"answer")
            assert await cache.get(_key("a")) == b"answer"
            with redis.Redis(port=port) as direct:
                (name,) = direct.keys("mlflow-opt:*")
                assert 0 < direct.pttl(name) <= 60_000
                stored = direct.get(name)
                for garbage in (b"", b"x" * 15, b"y" * 40, stored[:-1] + b"!"):
                    direct.set(name, garbage)
                    assert await cache.get(_key("a")) is None, garbage
                # An answer that belongs to another row is no answer for this one.
                await cache.put(_key("b"), b"other")
                (foreign,) = [one for one in direct.keys("mlflow-opt:*") if one != name]
                direct.set(name, direct.get(foreign))
                assert await cache.get(_key("a")) is None
                # A list where a string should be makes Redis refuse.
                direct.delete(name)
                direct.rpush(name, "x")
                assert await cache.get(_key("a")) is None
            await cache.close()

        asyncio.run(check())


def test_redis_is_passed_over_when_it_is_gone() -> None:
    failures: list[int] = []

    async def check() -> None:
        cache = RedisCache(f"redis://127.0.0.1:{free_port()}/0", 60, lambda: failures.append(1))
        for _ in range(50):
            assert await cache.get(_key("a")) is None
            await cache.put(_key("a"), b"1")
        await cache.close()

    asyncio.run(check())
    assert len(failures) == 1


def test_server_computes_once_when_equal_requests_come_together(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        body = split(numbers(1))
        answers = await asyncio.gather(*(_ask(application, body) for _ in range(20)))
        assert len({answer.content for answer in answers}) == 1
        assert (await _ask(application, body)).content == answers[0].content
        assert (await _ask(application, split(numbers(1, seed=5)))).content != answers[0].content

    application = with_application(serving_models["booster"], check, cache="memory")
    outcomes = _outcomes(application)
    assert outcomes["miss"] == 2
    assert outcomes["hit"] + outcomes["joined"] == 20


def test_server_keeps_no_error_when_a_request_is_bad(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        for _ in range(2):
            assert (await _ask(application, b'{"dataframe_split": {"columns": ["a"], "data": [[1]]}}')).status_code == 400

    assert _outcomes(with_application(serving_models["booster"], check, cache="memory"))["miss"] == 2


def test_server_answers_alike_when_redis_comes_and_goes(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    port = free_port()
    rows = [split(numbers(1, seed=seed)) for seed in range(6)]
    given = {"cache": "redis", "redis_url": f"redis://127.0.0.1:{port}/0"}

    async def ask_all(application: Application) -> None:
        answers.append([json.loads((await _ask(application, row)).content)["predictions"] for row in rows])

    answers: list[list[list[float]]] = []
    first = with_application(serving_models["booster"], ask_all, **given)
    with _redis_server(tmp_path, port) as server:
        second = with_application(serving_models["booster"], ask_all, **given)
        third = with_application(serving_models["booster"], ask_all, **given)

        async def lose_redis(application: Application) -> None:
            await ask_all(application)
            server.kill()
            server.wait(10)
            more = [await _ask(application, split(numbers(1, seed=seed))) for seed in range(20, 25)]
            assert [answer.status_code for answer in more] == [200] * 5

        with_application(serving_models["booster"], lose_redis, **given)
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert _outcomes(first)["error"] >= 1
    assert _outcomes(second) | {"error": 0} == {"hit": 0, "shared": 0, "joined": 0, "miss": 6, "error": 0}
    assert _outcomes(third)["shared"] == 6


async def _ask(application: Application, body: bytes) -> httpx.Response:
    return await client(application).post("/invocations", content=body, headers=JSON)


def _outcomes(application: Application) -> dict[str, int]:
    application.telemetry.flush(0)
    samples = [sample for metric in application.telemetry.cache.counter.collect() for sample in metric.samples]
    return dict.fromkeys(("hit", "shared", "joined", "miss", "error"), 0) | {
        sample.labels["outcome"]: int(sample.value) for sample in samples if sample.name.endswith("_total")
    }
