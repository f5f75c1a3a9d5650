"""Pages of the docs as programs: their files are written, their commands are run one after the other, as a reader would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.servers import free_port

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.\w+)\n")
_EXIT = re.compile(r"\s+# exit (\d+)$")
_PORT = re.compile(r"--port (\d+)")
_START_S, _COMMAND_S = 120, 600


@dataclass
class Reader:
    """Somebody who follows a page: a folder, an environment that `export` changes, programs left running, ports of their own."""

    home: Path
    environment: dict[str, str]
    ports: dict[str, int] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def follow(self, page: str) -> None:
        """Write the files of a page and run its commands, in the order of the page."""
        for kind, body in _BLOCK.findall(page):
            named = _FILE.match(body)
            if kind == "python" and named:
                path = self.home / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(body.partition("\n")[2] if path.parent != self.home else body, encoding="utf-8")
            for line in body.splitlines() if kind == "console" else []:
                if line.startswith("$ "):
                    self._run(line[2:])

    def _run(self, command: str) -> None:
        wanted = _EXIT.search(command)
        shown = _EXIT.sub("", self._with_own_ports(command))
        self.ran.append(shown)
        if shown.startswith("export "):
            name, _, value = shown.removeprefix("export ").partition("=")
            self.environment[name] = value
        elif shown.endswith(" &"):
            self._leave_running(shown.removesuffix(" &"))
        else:
            done = subprocess.run(
                ["bash", "-c", shown], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=_COMMAND_S, check=False
            )
            assert done.returncode == int(wanted[1] if wanted else 0), f"$ {shown}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"

    def _leave_running(self, command: str) -> None:
        log = self.home / f"program-{len(self.running)}.log"
        with log.open("wb") as out:
            ours = ["bash", "-c", f"exec {command}"]
            program = subprocess.Popen(ours, cwd=self.home, env=self.environment, stdout=out, stderr=out, start_new_session=True)
        self.running.append(program)
        port = _PORT.search(command)
        until = time.monotonic() + _START_S
        while port and not _answers(f"http://127.0.0.1:{port[1]}/health"):
            assert program.poll() is None, f"$ {command}\n{log.read_text()[-3000:]}"
            assert time.monotonic() < until, f"$ {command} did not answer:\n{log.read_text()[-3000:]}"
            time.sleep(0.3)

    def _with_own_ports(self, command: str) -> str:
        """Use free ports instead of those of the page, which somebody else may have."""
        for port in _PORT.findall(command):
            self.ports.setdefault(port, free_port())
        for port, own in self.ports.items():
            command = re.sub(rf"(?<=[: ]){port}\b", str(own), command)
        return command


@contextmanager
def reader(home: Path, extra: Mapping[str, str]) -> Iterator[Reader]:
    """Follow pages in a folder, and end what they left running."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    someone = Reader(home, {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **extra})
    try:
        yield someone
    finally:
        for program in someone.running:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGTERM)
        for program in someone.running:
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
