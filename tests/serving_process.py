"""A live server process for tests, on a free port of this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90


@dataclass(frozen=True)
class Running:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self.log_file.read_text()

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.uri}/ready", timeout=2).ok
        except requests.ConnectionError:
            return False


@contextmanager
def start(folder: Path, command: list[str], port: int = 0) -> Iterator[Running]:
    """Start a command, with `{port}` in it replaced, and wait until it is ready; it is ended by SIGTERM."""
    port = port or free_port()
    log_file = folder / f"server-{port}.log"
    words = [word.replace("{port}", str(port)) for word in command]
    with log_file.open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT)
    running = Running(process, port, log_file)
    try:
        until = time.monotonic() + START_SECONDS
        while not running.ready():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{running.log()[-4000:]}")
            time.sleep(0.1)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def server_command(model: object, *more: str) -> list[str]:
    return [sys.executable, "-m", "mlflow_opt.commands.start_server", "--model", str(model), "--port", "{port}", *more]
