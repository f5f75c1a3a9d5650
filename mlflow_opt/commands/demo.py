"""Show the main job end to end: a real optimisation, its promotion through the registry hook, and two refusals."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from mlflow_opt.signature import run

# Not a technique, and it starts a server of its own: a command for the terminal, not an MLflow Project entry point.
CLI_ONLY = True

_logger = logging.getLogger(__name__)
_NAME = "fashion"
_START_S = 90
# As fast as the champion is enough here, so that the broken version is refused for its predictions alone.
_POLICY = f"""{_NAME}:
  validation_criteria:
    - {{metric: speedup, min: 0.9}}
    - {{metric: accuracy, max_drop: 0.01}}
"""


@contextmanager
def gated_server(home: Path) -> Iterator[str]:
    """Run a live `mlflow server` whose registry is gated, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = home / "mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--registry-store-uri", f"gated+sqlite:///{database}"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    uri, policy = f"http://127.0.0.1:{port}", home / "policy.yaml"
    policy.write_text(_POLICY, encoding="utf-8")
    environment = os.environ | {"MLFLOW_OPT_POLICY": str(policy)}
    with (home / "server.log").open("w", encoding="utf-8") as log:
        # The command is made above, of paths and a port.
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=home, env=environment)  # noqa: S603
        try:
            _wait(uri, server, home / "server.log")
            yield uri
        finally:
            server.terminate()
            server.wait(timeout=30)


def refused(uri: str, version: str) -> None:
    """Ask a live server over plain REST to move `champion`, insist on a 403, and show its reasons.

    Raises:
        RuntimeError: the server did not refuse.

    """
    body = {"name": _NAME, "alias": "champion", "version": version}
    answer = requests.post(f"{uri}/api/2.0/mlflow/registered-models/alias", json=body, timeout=60)
    if answer.status_code != 403:
        raise RuntimeError(f"version {version} must be refused with 403, got {answer.status_code}: {answer.text[:500]}")
    _logger.info("403 from the registry for version %s:\n%s", version, answer.json()["message"])


def demo(*, folder: str = "demo", data: str = "fashion_mnist", keep: bool = False) -> None:
    """Optimise the bundled image model, promote the winner through a live gated server, and see two versions refused.

    Use it to see the whole on your machine in a few minutes. It is no benchmark: the machine is busy with the server too.

    Example:
        mlflow-opt demo

    Args:
        folder: where the demo's database, artifacts and server log go.
        data: bundled images or your own npz.
        keep: leave the server running until Ctrl-C, to look around in the MLflow UI.

    Raises:
        RuntimeError: a step did not end as it must: the promotion was refused, or a refusal was not one.

    References:
        The README's section on the gate.
    """
    home = Path(folder).resolve()
    home.mkdir(parents=True, exist_ok=True)
    with gated_server(home) as uri:
        _logger.info("A gated MLflow server answers at %s (its log: %s).", uri, home / "server.log")
        _step("1. Optimise: train a small ResNet on the bundled images, quantise it, judge the winner, register it.")
        _run(uri, "quantize", f"data={data}", f"register_as={_NAME}")
        _step("2. Promote: the hook judges the evidence and moves the alias.")
        _expect("promote", _run(uri, "promote", f"model=models:/{_NAME}@challenger", check=False), 0)
        _step("3. Refuse: a variant that is as fast, but whose predictions are broken, with genuine evidence of that.")
        broken = _broken(uri)
        _expect("gate", _run(uri, "gate", f"model=models:/{_NAME}/{broken}", f"data={data}", check=False), 1)
        refused(uri, broken)
        _step("4. Refuse: a version without evidence.")
        refused(uri, _unproven(uri))
        _step("5. What the registry remembers:")
        _call(uri, "mlflow_opt.cli", "history", "--name", _NAME)
        _logger.info("\nLook at it in the MLflow UI: mlflow server --backend-store-uri sqlite:///%s", home / "mlflow.db")
        if keep:
            _logger.info("The server goes on at %s until Ctrl-C.", uri)
            while True:
                time.sleep(3600)


def _broken(uri: str) -> str:
    """Register a copy of the champion whose class scores are shifted by one: as fast as before, and wrong."""
    return _register(uri, "broken")


def _unproven(uri: str) -> str:
    """Register the champion's files again as a new logged model that nobody has measured."""
    return _register(uri, "unproven")


def _register(uri: str, kind: str) -> str:
    # A process of its own: this one must not take over the demo server's address for good.
    told = _call(uri, "mlflow_opt.commands._demo_models", _NAME, kind, quiet=True).stdout
    version = str(told).strip().splitlines()[-1]
    _logger.info("Registered version %s (%s).", version, kind)
    return version


def _run(uri: str, entry: str, *params: str, check: bool = True) -> int:
    given = [text for param in params for text in ("-P", param)]
    _logger.info("$ mlflow run . -e %s %s", entry, " ".join(given))
    return _call(
        uri, "mlflow", "run", ".", "-e", entry, "--env-manager", "local", "--experiment-name", "mlflow-opt", *given, check=check
    ).returncode


def _call(uri: str, module: str, *args: str, check: bool = True, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    out = subprocess.PIPE if quiet else None
    # Nothing of the command line comes from outside: modules of this project and MLflow's own.
    return subprocess.run([sys.executable, "-m", module, *args], env=_environment(uri), check=check, stdout=out, text=True)  # noqa: S603


def _environment(uri: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"MLFLOW_TRACKING_URI": uri, "PATH": path, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "PYTHONWARNINGS": "ignore"}


def _wait(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{uri}/health", timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"the server must answer within {_START_S} s and did not; see {log}.")


def _expect(step: str, code: int, wanted: int) -> None:
    # `mlflow run` turns every other exit code of a command into 1.
    if code != wanted:
        raise RuntimeError(f"{step} must end with exit code {wanted}, got {code}; the reasons are above.")


def _step(text: str) -> None:
    _logger.info("\n== %s", text)


if __name__ == "__main__":
    run(demo)
