"""A server as a process of its own under load: start it, find the rate that it sustains within an objective, stop it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_opt.serving.load import Load, closed_loop, open_loop, poisson_times
from mlflow_opt.serving.settings import Settings

logger = logging.getLogger(__name__)

_START_S = 120
_BUSY = 32
# The search begins below what a closed loop reaches: at that rate an open queue grows without end.
_FIRST = 0.7
# A slow server is given longer stretches, so that the percentiles are of some requests and not of two or none.
_FEWEST, _LONGEST_S = 40, 6.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Objective:
    """What is asked of a server, and how it is found out.

    Args:
        p95_ms: 95 of 100 requests are to be answered within so many milliseconds of the moment they were meant to be sent.
        seconds: length of each stretch of load; longer where fewer than forty requests would come.
        connections: of the clients.
        steps: stretches of load to narrow the rate down.
        seed: of the arrivals.

    """

    p95_ms: float
    seconds: float = 1.5
    connections: int = 64
    steps: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a server sustains.

    Args:
        best: the stretch with the highest rate that met the objective; the lightest one tried if none did.
        met: whether it did.
        capacity: good answers per second of a closed loop of 32 connections.
        cpu_us: processor time a request, in microseconds, in the best stretch.
        curve: every stretch, by rate.

    """

    best: Load
    met: bool
    capacity: float
    cpu_us: float
    curve: tuple[Load, ...] = field(default_factory=tuple)

    @property
    def sustained(self) -> float:
        """Return the requests per second within the objective, 0 if none were."""
        return self.best.achieved if self.met else 0.0


def our_command(model: str, settings: Settings, port: int) -> list[str]:
    """Write the command that serves a model with these settings and nothing stored with it."""
    words = [sys.executable, "-m", "mlflow_opt.commands.start_server", "--model", model, "--port", str(port), "--watch_s", "0"]
    for name in ("batching", "max_batch", "window_ms", "threads", "workers", "cache"):
        words += [f"--{name}", str(getattr(settings, name))]
    return words


def mlflow_command(model: str, port: int) -> list[str]:
    """Write the command of MLflow's own server, in this environment."""
    return [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "-p", str(port), "-h", "127.0.0.1", "--env-manager", "local"]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, log_file: Path, path: str = "/ping") -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends.

    Args:
        command: that starts it.
        port: where it will listen.
        log_file: for what it says.
        path: answered with 200 once it is up.

    Raises:
        RuntimeError: it does not come up; the message has the end of its log.

    """
    # MLflow starts uvicorn by name: the one beside this Python, whether or not its environment is active.
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log_file.open("wb") as log:
        # The words are ours, one argument each, and go through no shell; a session of its own so that all of it can be ended.
        process = subprocess.Popen(  # noqa: S603
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PATH": beside}
        )
    try:
        _await(process, f"http://127.0.0.1:{port}{path}", log_file)
        yield process
    finally:
        _end(process)


def find_rate(process: subprocess.Popen[bytes], port: int, requests: Sequence[bytes], objective: Objective) -> Found:
    """Find by bisection the highest rate at which a server meets an objective.

    Args:
        process: the server, for its processor time.
        port: where it listens.
        requests: in the order in which keys recur.
        objective: what is asked.

    """
    closed_loop(port, requests, min(8, _BUSY), objective.seconds / 3)
    capacity = closed_loop(port, requests, _BUSY, max(0.5, objective.seconds / 2)).achieved
    low, high, rate = 0.0, capacity * 1.1, capacity * _FIRST
    seen: list[tuple[Load, float]] = []
    for step in range(objective.steps):
        rate = max(rate, 2.0)
        seconds = max(objective.seconds, min(_LONGEST_S, _FEWEST / rate))
        times = poisson_times(rate, seconds, objective.seed + step)
        before = cpu_seconds(process.pid)
        load = open_loop(port, requests, times, objective.connections)
        answered = sum(load.statuses.values())
        seen.append((load, (cpu_seconds(process.pid) - before) / max(1, answered) * 1e6))
        low, high = (rate, high) if _meets(load, objective) else (low, rate)
        rate = (low + high) / 2
    good = [pair for pair in seen if _meets(pair[0], objective)]
    best, cpu_us = max(good, key=lambda pair: pair[0].offered) if good else min(seen, key=lambda pair: pair[0].offered)
    return Found(best, bool(good), capacity, cpu_us, tuple(sorted((load for load, _ in seen), key=lambda load: load.offered)))


def cpu_seconds(pid: int) -> float:
    """Sum the processor time of a process and of its living descendants."""
    total, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += (int(words[11]) + int(words[12])) / _TICKS_PER_S
        waiting += [int(child) for child in children]
    return total


def _meets(load: Load, objective: Objective) -> bool:
    return load.failed == 0 and load.p95_ms <= objective.p95_ms


def _await(process: subprocess.Popen[bytes], address: str, log_file: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310 - an address of this machine
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the server must come up within {_START_S} s, it did not:\n{log_file.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            # `mlflow models serve` starts its server through a shell, which does not pass the signal on.
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
            if sign is signal.SIGTERM:
                time.sleep(0.2)
        except subprocess.TimeoutExpired:
            continue
