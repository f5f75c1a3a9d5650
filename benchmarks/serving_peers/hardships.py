"""What happens to the server under hardship: bad rows beside good ones, SIGTERM in flight, alias swaps, a long soak."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from mlflow_opt.serving.contender import free_port, our_command, running
from mlflow_opt.serving.load import closed_loop, open_loop, poisson_times, request_bytes
from mlflow_opt.serving.settings import Settings

SWAPS, SWAPS_WITHIN_S, SWAPS_RATE = 100, 580.0, 200.0
IDLE_CONNECTIONS = 10_000


def measure(folder: Path, booster: Path, bodies: list[bytes], soak_s: float) -> dict[str, str]:
    """Try each hardship but the swaps, and say in a sentence what came of it."""
    requests = [request_bytes(body) for body in bodies]
    port = free_port()
    with running(our_command(str(booster), Settings(), port), port, folder / "hard.log") as process:
        said = {"bad_rows": _bad_rows(port, bodies), "connections": _connections(port, requests)}
        said["soak"] = _soak(process.pid, port, requests, soak_s)
        said["sigterm"] = _sigterm(process.pid, port, bodies)
    return said


def _bad_rows(port: int, bodies: list[bytes]) -> str:
    """Send 155 good and 5 bad requests at one moment, several times."""
    broken = json.loads(bodies[0])
    broken["dataframe_split"]["data"][0][0] = "no number"
    bad = request_bytes(json.dumps(broken).encode())
    good = [request_bytes(body) for body in bodies[:155]]
    mixed = [one for index, one in enumerate(good) for one in ([one, bad] if index % 31 == 0 else [one])]
    lost, times = 0, 10
    for _ in range(times):
        seen = open_loop(port, mixed, poisson_times(1e5, len(mixed) / 1e5, 0)[: len(mixed)], 160)
        answered = sum(seen.statuses.values())
        lost += answered - seen.statuses.get(200, 0) - seen.statuses.get(400, 0)
    return f"Bad rows: of 155 good requests beside 5 bad ones, {times} times, {lost} good ones failed (bound 0)."


def _connections(port: int, requests: list[bytes]) -> str:
    """Hold thousands of connections open while others are served."""
    held: list[socket.socket] = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            one.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n")
            held.append(one)
        seen = closed_loop(port, requests, 8, 1.0)
        counted = f"{seen.failed} of {sum(seen.statuses.values())} others failed or were refused"
    except OSError as error:
        counted = f"this machine gave no more than {len(held)} ({error.strerror})"
    finally:
        for one in held:
            one.close()
    time.sleep(1)
    after = closed_loop(port, requests, 8, 0.5)
    return f"With {len(held)} connections whose bodies never came, {counted} (the queue holds 1,000); afterwards {after.failed} failed."


def _soak(pid: int, port: int, requests: list[bytes], seconds: float) -> str:
    """Load for long, and compare memory after a tenth of the time with the end."""
    first = closed_loop(port, requests, 32, seconds * 0.1)
    early = _resident_mb(pid)
    rest = closed_loop(port, requests, 32, seconds * 0.9)
    late = _resident_mb(pid)
    answered = sum(first.statuses.values()) + sum(rest.statuses.values())
    return (
        f"Soak of {seconds:.0f} s: {answered:,} requests, {first.failed + rest.failed} failed, "
        f"memory {early:.0f} to {late:.0f} MB ({late / early - 1:+.1%}; bound +5% in 600 s)."
    )


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _sigterm(pid: int, port: int, bodies: list[bytes]) -> str:
    """Send SIGTERM while 32 connections wait for answers; csv has no fast path, so that they do wait."""
    rows = json.loads(bodies[0])["dataframe_split"]
    text = (",".join(rows["columns"]) + "\n" + ",".join(map(str, rows["data"][0])) + "\n").encode()
    head = f"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: {len(text)}\r\n\r\n".encode()
    asked = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(32)]
    for one in asked:
        one.sendall(head + text)
    os.kill(pid, signal.SIGTERM)
    answered = sum(one.recv(4096).startswith(b"HTTP/1.1 200") for one in asked)
    for one in asked:
        one.close()
    return f"SIGTERM with 32 requests in flight: {32 - answered} lost (bound 0)."


def swaps(folder: Path, booster: Path, bodies: list[bytes]) -> str:
    """Move an alias back and forth under load."""
    import mlflow
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    requests = [request_bytes(body) for body in bodies]
    client = MlflowClient(uri)
    experiment = client.create_experiment("swaps", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model("trees")
    for _ in range(2):
        made = client.create_logged_model(experiment, name="trees")
        client.log_model_artifacts(made.model_id, str(booster))
        client.finalize_logged_model(made.model_id, "READY")
        client.create_model_version("trees", f"models:/{made.model_id}", model_id=made.model_id)
    client.set_registered_model_alias("trees", "champion", "1")
    port = free_port()
    command = [sys.executable, "-m", "mlflow_opt.commands.start_server", "--model", "models:/trees@champion", "--watch_s", "0.05"]
    with running([*command, "--port", str(port)], port, folder / "swaps.log"):
        moved, failed, asked = _swap_under_load(client, port, requests)
    return f"Alias swaps under load: {moved} swaps, {failed} of {asked:,} requests failed (bound 100 swaps, 0 failed)."


def _swap_under_load(client: object, port: int, requests: list[bytes]) -> tuple[int, int, int]:
    stop = threading.Event()
    results: list[tuple[int, int]] = []

    def keep_loading() -> None:
        while not stop.is_set():
            # Open, so that the load leaves the loading of versions its share of the processor.
            seen = open_loop(port, requests, poisson_times(SWAPS_RATE, 1.0, len(results)), 8)
            results.append((seen.failed, sum(seen.statuses.values())))

    loading = threading.Thread(target=keep_loading)
    loading.start()
    try:
        moved = _move(client, port)
    finally:
        stop.set()
        loading.join()
    return moved, sum(failed for failed, _ in results), sum(asked for _, asked in results)


def _move(client: object, port: int) -> int:
    import requests as http
    from mlflow import MlflowClient

    assert isinstance(client, MlflowClient)
    until, moved = time.monotonic() + SWAPS_WITHIN_S, 0
    while moved < SWAPS and time.monotonic() < until:
        wanted = str(2 - moved % 2)
        client.set_registered_model_alias("trees", "champion", wanted)
        while http.get(f"http://127.0.0.1:{port}/version", timeout=10).json()["version"] != wanted and time.monotonic() < until:
            time.sleep(0.05)
        moved += 1
    return moved
