"""The short cut on the connection: the same bytes as the long way, one answer a request, and nothing that it must not take."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
import uvicorn

from mlflow_opt.serving.app import Application, Receive, Scope
from mlflow_opt.serving.heads import Desk
from mlflow_opt.serving.load import request_bytes
from mlflow_opt.serving.replies import Reply, Send
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.wire import Wire
from tests.serving_models import NUMBERS, numbers, serving_models, split
from tests.serving_process import Running, server_command, start

__all__ = ["serving_models"]


@pytest.fixture(scope="module")
def server(serving_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with start(tmp_path_factory.mktemp("wire"), server_command(serving_models["booster"], "--deadline_ms", "1500")) as running:
        yield running


def _connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _read_reply(connection: socket.socket, seen: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """Read one reply: its head, its body, and what came behind it."""
    while b"\r\n\r\n" not in seen:
        seen += _more(connection)
    head, _, rest = seen.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
    while len(rest) < length:
        rest += _more(connection)
    return head, rest[:length], rest[length:]


def _more(connection: socket.socket) -> bytes:
    got = connection.recv(65536)
    if not got:
        raise ConnectionError("the server closed the connection")
    return got


def _answer(connection: socket.socket, request: bytes) -> tuple[bytes, bytes]:
    connection.sendall(request)
    head, body, rest = _read_reply(connection)
    assert rest == b""
    return head, body


def _plain(head: bytes) -> list[bytes]:
    """Leave out the time of day."""
    return sorted(line for line in head.splitlines() if not line.startswith(b"date:"))


def test_short_cut_answers_as_the_long_way_when_a_request_is_repeated(server: Running) -> None:
    bodies = [split(numbers(1, seed=seed)) for seed in range(30)]
    with _connect(server) as first, _connect(server) as second:
        long = [_answer(first, request_bytes(body, "/invocations?long=1")) for body in bodies]
        # The first of each length teaches the head, the others take the short cut; twice, so that all of them do.
        short = [_answer(second, request_bytes(body)) for body in bodies * 2]
    assert [body for _, body in short] == [body for _, body in long] * 2
    assert {tuple(_plain(head)) for head, _ in short} == {tuple(_plain(head)) for head, _ in long}
    counted = requests.get(f"{server.uri}/metrics", timeout=5).text
    assert 'mlflow_opt_requests_total{path="fast",status="200"} 90.0' in counted


class Counting(Application):
    """An application that counts what came to it the long way."""

    calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += scope["type"] == "http"
        await super().__call__(scope, receive, send)


def test_short_cut_is_taken_when_a_head_is_known(serving_models: Mapping[str, Path]) -> None:
    request = request_bytes(split(numbers(1)))
    csv = request_bytes(numbers(1).to_csv(index=False).encode()).replace(b"application/json", b"text/csv")

    async def ask(port: int, wanted: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for one in wanted:
            writer.write(one)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.startswith(b"content-length"))
            await reader.readexactly(length)
        writer.close()

    async def check() -> tuple[int, int, int]:
        application = Counting(str(serving_models["booster"]), Settings())
        config = uvicorn.Config(application, http=Wire, port=0, log_level="warning", access_log=False, proxy_headers=False)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        # uvicorn has nothing to wait for but this.
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        await ask(port, [request] * 10)
        first = application.calls
        # Another connection knows the head as well; csv has no fast path, whatever is known of its head.
        await ask(port, [request] * 5 + [csv] * 3)
        taken = application.taken
        server.should_exit = True
        await running
        return first, application.calls, taken

    assert asyncio.run(check()) == (1, 4, 0)


def test_short_cut_keeps_the_order_when_requests_are_sent_ahead(server: Running) -> None:
    asked = [request_bytes(split(numbers(1, seed=seed))) for seed in range(12)]
    with _connect(server) as alone:
        wanted = [_answer(alone, request)[1] for request in asked]
    with _connect(server) as ahead:
        # One by one and then all at once: each of the first is under way when the next ones come.
        ahead.sendall(asked[0])
        ahead.sendall(b"".join(asked[1:7]))
        ahead.sendall(b"".join(asked[7:]))
        answers, rest = [], b""
        for _ in asked:
            _, body, rest = _read_reply(ahead, rest)
            answers.append(body)
    assert answers == wanted
    assert len(set(wanted)) == len(wanted)


def test_short_cut_refuses_in_the_same_words_when_a_known_head_brings_a_bad_body(server: Running) -> None:
    good = split(numbers(1))
    with _connect(server) as connection:
        for _ in range(3):
            assert _answer(connection, request_bytes(good))[0].startswith(b"HTTP/1.1 200")
        for bad in (good.replace(b'"data"', b'"dada"'), b"{" + b" " * (len(good) - 1), good.replace(b'"a"', b'"e"')):
            assert len(bad) == len(good)
            head, body = _answer(connection, request_bytes(bad))
            assert head.startswith(b"HTTP/1.1 400")
            assert json.loads(body)["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")
        assert _answer(connection, request_bytes(good))[0].startswith(b"HTTP/1.1 200")


def test_short_cut_waits_for_the_rest_when_a_body_comes_in_parts(server: Running) -> None:
    request = request_bytes(split(numbers(1)))
    with _connect(server) as connection:
        whole = [_answer(connection, request) for _ in range(2)]
        for cut in (20, len(request) - 5):
            connection.sendall(request[:cut])
            time.sleep(0.05)
            connection.sendall(request[cut:])
            assert _read_reply(connection)[1] == whole[0][1]
        assert _answer(connection, request)[1] == whole[0][1]


def test_short_cut_closes_when_the_client_says_so(server: Running) -> None:
    request = request_bytes(split(numbers(1))).replace(b"host: 127.0.0.1\r\n", b"host: 127.0.0.1\r\nconnection: close\r\n")
    for _ in range(3):
        with _connect(server) as connection:
            head, _ = _answer(connection, request)
            assert b"connection: close" in head.lower()
            assert connection.recv(10) == b""


def test_connection_is_answered_408_when_its_headers_never_end(server: Running) -> None:
    with _connect(server) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\n")
        head, body, _ = _read_reply(connection)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"headers must arrive within 1.5 s" in body
        assert connection.recv(10) == b""


def test_connection_is_closed_when_it_says_nothing(server: Running) -> None:
    with _connect(server) as connection:
        assert connection.recv(10) == b""


def test_desk_learns_no_head_when_it_asks_for_something_special() -> None:
    plain = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"7")]
    desk = Desk(1000)
    for headers in (
        [*plain, (b"transfer-encoding", b"chunked")],
        [*plain, (b"expect", b"100-continue")],
        [*plain, (b"upgrade", b"h2c")],
        [*plain, (b"content-length", b"8")],
        plain[:2],
        [plain[0], plain[2]],
    ):
        desk.learn(b"head", headers)
    desk.learn(b"x" * 5000, plain)
    assert desk.heads == {}
    desk.learn(b"head", [*plain, (b"x-deadline-ms", b"500")])
    assert (desk.heads[b"head"].length, desk.heads[b"head"].seconds) == (7, 0.5)


def test_desk_stays_bounded_when_clients_send_ever_other_heads() -> None:
    desk = Desk(1000)
    for number in range(10_000):
        desk.learn(b"%d" % number, [(b"content-type", b"text/csv"), (b"content-length", b"1")])
    assert 0 < len(desk.heads) <= 4096


def test_desk_writes_the_server_headers_anew_when_they_change() -> None:
    desk, reply = Desk(1000), Reply(200, b"{}", "fast", headers=((b"retry-after", b"1"),))
    pages = [desk.page(b"HTTP/1.1 200 OK\r\n", reply, [(b"date", day)]) for day in (b"Monday", b"Tuesday")]
    for page, day in zip(pages, (b"Monday", b"Tuesday"), strict=True):
        said = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"
        assert page == said % day


def test_requests_are_told_apart_when_their_openings_are_alike(server: Running) -> None:
    # Texts that look like the beginning of the rows, and parts behind them.
    row = [0.5, -1.25, 2.0, 3.0]
    tables = [
        {"columns": NUMBERS, "data": [row]},
        {"columns": ['"data":', *NUMBERS], "data": [[9, *row]]},
        {"columns": NUMBERS, "data": [row], "index": [4]},
        {"index": [4], "columns": NUMBERS, "data": [row]},
        {"data": [row], "columns": NUMBERS},
    ]
    asked = [json.dumps({"dataframe_split": table}).encode() for table in tables]
    with _connect(server) as connection:
        answers = [_answer(connection, request_bytes(body)) for body in asked * 3]
        assert {body for _, body in answers} == {answers[0][1]}
        assert answers[0][0].startswith(b"HTTP/1.1 200")
        two = json.dumps({"dataframe_split": {"index": [4], "columns": NUMBERS, "data": [row, row]}}).encode()
        assert _answer(connection, request_bytes(two))[0].startswith(b"HTTP/1.1 400")
