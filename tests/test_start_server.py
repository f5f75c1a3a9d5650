"""The server as a process: SIGTERM, workers, many connections, bad clients, and the ways to start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests

from mlflow_opt.commands.start_server import chosen
from mlflow_opt.serving.load import closed_loop, open_loop, poisson_times, request_bytes
from tests.servers import free_port
from tests.serving_models import mixed, numbers, serving_models, split
from tests.serving_process import ROOT, Running, server_command, start

__all__ = ["serving_models"]

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(serving_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    command = server_command(serving_models["booster"], "--max_body_mb", "1", "--deadline_ms", "2000", "--queue", "200")
    with start(tmp_path_factory.mktemp("server"), command) as running:
        yield running


def _requests(count: int) -> list[bytes]:
    return [request_bytes(split(numbers(1, seed=seed))) for seed in range(count)]


def test_server_answers_every_request_when_load_is_open(server: Running) -> None:
    seen = open_loop(server.port, _requests(50), poisson_times(200, 1.0, seed=1), connections=16)
    assert seen.failed == 0
    assert seen.achieved > 100
    assert 0 < seen.p50_ms <= seen.p95_ms <= seen.p99_ms


def test_server_lives_when_clients_misbehave(server: Running) -> None:
    body = split(numbers(1))
    rude = [
        b"GARBAGE\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nshort",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ]
    for words in rude:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(words)
            time.sleep(0.05)
    assert requests.post(f"{server.uri}/invocations", data=b"x" * 10_000_000, headers=JSON, timeout=10).status_code == 413
    assert requests.post(f"{server.uri}/invocations", data=body, headers=JSON, timeout=10).status_code == 200
    assert requests.get(f"{server.uri}/nothing", timeout=10).status_code == 404


def test_server_answers_others_when_a_client_is_slow(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        assert closed_loop(server.port, _requests(20), 4, 0.3).failed == 0
        assert b" 408 " in slow.recv(1000)


def test_server_answers_or_refuses_each_when_thousands_connect_at_once(server: Running) -> None:
    # More at once than the queue takes: some are answered 429, none is left without an answer.
    seen = open_loop(server.port, _requests(20), np.full(2000, 0.01), connections=1000)
    assert set(seen.statuses) <= {200, 429, 0}
    assert seen.statuses.get(0, 0) == 0
    assert requests.get(f"{server.uri}/ping", timeout=10).status_code == 200


def test_server_loses_no_request_when_it_gets_sigterm(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    with start(tmp_path, server_command(serving_models["pipeline"])) as running:
        body = split(mixed(1))
        answers: list[int] = []

        def ask() -> None:
            answers.append(requests.post(f"{running.uri}/invocations", data=body, headers=JSON, timeout=20).status_code)

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for thread in threads:
            thread.start()
        # Through pyfunc each takes milliseconds: the others are waiting when the signal comes.
        while not answers:
            time.sleep(0.001)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        running.process.wait(20)
    assert answers == [200] * 32


def test_server_says_it_leaves_before_it_leaves_when_it_gets_sigterm(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    with start(tmp_path, server_command(serving_models["booster"], "--drain_s", "1.5")) as running:
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        assert requests.get(f"{running.uri}/ready", timeout=5).status_code == 503
        late = requests.post(f"{running.uri}/invocations", data=split(numbers(1)), headers=JSON, timeout=5)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert running.process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_server_goes_on_when_a_worker_dies(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    with start(tmp_path, server_command(serving_models["booster"], "--workers", "2")) as running:
        assert closed_loop(running.port, _requests(20), 8, 0.5).failed == 0
        counted = requests.get(f"{running.uri}/metrics", timeout=5).text
        workers = _workers(running)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        time.sleep(1)
        # New connections: those of the dead worker are gone, with what was in flight on them.
        assert closed_loop(running.port, _requests(20), 8, 0.5).failed == 0
        for _ in range(100):
            alive = [pid for pid in _workers(running) if pid != workers[0]]
            if len(alive) == 2:
                break
            time.sleep(0.1)
        assert len(alive) == 2
    assert 'mlflow_opt_requests_total{path="fast",status="200"}' in counted


@pytest.mark.slow
def test_server_loses_no_request_when_its_workers_are_replaced(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    with start(tmp_path, server_command(serving_models["booster"], "--workers", "2")) as running:
        before = set(_workers(running))
        answers: list[int] = []
        done = threading.Event()

        def keep_asking() -> None:
            with requests.Session() as session:
                while not done.is_set():
                    answers.append(session.post(f"{running.uri}/invocations", data=split(numbers(1)), headers=JSON, timeout=20).status_code)
                    # Well within the time for which a worker that leaves goes on answering.
                    time.sleep(0.005)

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Twice: those that came instead must leave as gently as those that were there first.
        for _ in range(2):
            running.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 120
            while before & set(_workers(running)) or len(_workers(running)) != 2:
                assert time.monotonic() < until
                time.sleep(0.2)
            before = set(_workers(running))
        done.set()
        for thread in threads:
            thread.join(30)
    assert set(answers) == {200}
    assert len(answers) > 100


def _workers(running: Running) -> list[int]:
    children = [int(pid) for pid in Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()]
    return [pid for pid in children if "spawn_main" in _command_of(pid)]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""


@pytest.mark.slow
def test_deployment_target_serves_and_predicts_when_mlflow_asks(
    serving_models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "mlflow-opt", "--name", "churn"]
    command += ["-m", str(serving_models["booster"]), "-C", "port={port}", "-C", "max_batch=8"]
    with start(tmp_path, command) as running:
        assert requests.get(f"{running.uri}/version", timeout=5).json()["settings"]["max_batch"] == 8
        from mlflow.deployments import get_deploy_client

        # MLflow publishes no types of it.
        connect: Any = get_deploy_client
        client = connect(f"mlflow-opt:{running.uri}")
        rows = numbers(5)
        wanted = mlflow.pyfunc.load_model(str(serving_models["booster"])).predict(rows)
        answered = client.predict("churn", rows)
        assert answered == {"predictions": wanted.tolist()}
        assert answered.get_predictions("ndarray").tolist() == wanted.tolist()
        rows.to_json(tmp_path / "rows.json", orient="records", double_precision=15)
        words = ["deployments", "predict", "-t", f"mlflow-opt:{running.uri}", "--name", "churn", "-I", str(tmp_path / "rows.json")]
        said = subprocess.run([sys.executable, "-m", "mlflow", *words], capture_output=True, text=True, check=True).stdout
        np.testing.assert_allclose(json.loads(said)["predictions"], wanted, rtol=1e-12)
    assert running.process.returncode == 0


def test_command_refuses_when_it_cannot_serve(tmp_path: Path) -> None:
    command = [word.replace("{port}", str(free_port())) for word in server_command(tmp_path / "nothing")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 3
    assert "no such model folder" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_command_writes_a_dockerfile_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow_opt.commands.start_server import start_server

    start_server(model="models:/churn@champion", print_dockerfile=True, max_batch=16, require_verdict=True)
    text = capsys.readouterr().out
    command = json.loads(text.splitlines()[-1].removeprefix("CMD "))
    assert command[:4] == ["mlflow-opt", "start_server", "--model", "models:/churn@champion"]
    assert command[-4:] == ["--max_batch", "16", "--require_verdict", "true"]
    assert "mlflow-opt[serve]==" in text


def test_command_takes_stored_settings_when_none_are_given() -> None:
    absent = {"batching": "stored", "cache": "stored", "max_batch": 0, "threads": 0, "workers": 0, "window_ms": -1.0}
    assert chosen(absent) == {}
    assert chosen({**absent, "window_ms": 0.0, "workers": 1}) == {"window_ms": 0.0, "workers": 1}
