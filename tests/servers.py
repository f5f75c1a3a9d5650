"""Live servers for tests: `mlflow server` with the gated registry on a free port, and PostgreSQL from the system's package."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

START_SECONDS = 90


@dataclass(frozen=True)
class LiveServer:
    """A running server: its address, its database, the policy file it reads (which a test may rewrite), its log."""

    uri: str
    database: str
    policy_file: Path
    log_file: Path

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

    def log(self) -> str:
        return self.log_file.read_text()

    def post(self, route: str, body: Mapping[str, Any], auth: tuple[str, str] | None = None, method: str = "POST") -> requests.Response:
        return requests.request(method, f"{self.uri}/api/2.0/mlflow/{route}", json=dict(body), auth=auth, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(
    folder: Path,
    database: str = "",
    *,
    policy: str | None = None,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    gated: bool = True,
) -> Iterator[LiveServer]:
    """Start a gated server; `policy` is the text of its policy file (None: the variable is not set)."""
    folder.mkdir(parents=True, exist_ok=True)
    database = database or f"sqlite:///{folder}/mlflow.db"
    port, policy_file = free_port(), folder / "policy.yaml"
    settings = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(env or {})}
    settings.pop("MLFLOW_OPT_POLICY", None)
    if policy is not None:
        policy_file.write_text(policy)
        settings["MLFLOW_OPT_POLICY"] = str(policy_file)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database, "--registry-store-uri", f"gated+{database}" if gated else database),
        *("--default-artifact-root", str(folder / "artifacts"), *args),
    ]
    server = LiveServer(f"http://127.0.0.1:{port}", database, policy_file, folder / "server.log")
    with server.log_file.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        _await(server, process)
        yield server
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(server: LiveServer, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(f"{server.uri}/health", timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(f"mlflow server did not start:\n{server.log()[-4000:]}")


@pytest.fixture
def gated(tracking_uri: str) -> MlflowClient:
    """Open a gated registry in this process, beside the tracking store that the test was given."""
    return MlflowClient(tracking_uri, f"gated+{tracking_uri}")


@pytest.fixture
def serve_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the policy file of gated registries in this process; the function given writes it."""
    path = tmp_path / "policy.yaml"
    monkeypatch.setenv("MLFLOW_OPT_POLICY", str(path))

    def write(text: str) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _prepared(folder: Path, empty_store: Path) -> Path:
    """Spare a server its migrations, which take longer than its start."""
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def gated_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[LiveServer]:
    """Serve with sqlite and the built-in default policy."""
    with serve(_prepared(tmp_path_factory.mktemp("gated"), empty_store)) as server:
        yield server


@pytest.fixture(scope="session")
def policy_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[LiveServer]:
    """Serve with sqlite and a policy file that tests rewrite; `off-*` is unguarded, the rest has the default policy."""
    with serve(_prepared(tmp_path_factory.mktemp("policy"), empty_store), policy='"off-*": {mode: "off"}\n') as server:
        yield server


@pytest.fixture(scope="session")
def auth_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[LiveServer]:
    """Serve with MLflow's basic-auth app; `admin` has the password of `ADMIN`."""
    folder = _prepared(tmp_path_factory.mktemp("auth"), empty_store)
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1], "MLFLOW_AUTH_CONFIG_PATH": str(config)}
    with serve(folder, args=("--app-name", "basic-auth"), env=env) as server:
        yield server


ADMIN = ("admin", "a-long-test-password")


@pytest.fixture(scope="session")
def postgres_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start PostgreSQL from the system's package on a free port, under a user that is not root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("needs PostgreSQL: Debian's package `postgresql`")
    folder = tmp_path_factory.mktemp("postgres")
    yield from _postgres(programs[-1].parent, folder, free_port())


def _run(*command: str | Path) -> None:
    # pg_ctl's child keeps a pipe open for ever, so nothing is captured.
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


def _postgres(programs: Path, folder: Path, port: int) -> Iterator[str]:
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        # The temporary folders above belong to root and are closed to others.
        folder = Path("/tmp") / f"mlflow-opt-postgres-{os.getpid()}"
        folder.mkdir(mode=0o700)
        shutil.chown(folder, "postgres")
    data = folder / "data"
    _run(*user, programs / "initdb", "-D", data, "-U", "gate", "-A", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    _run(*user, programs / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
    try:
        yield f"postgresql+psycopg2://gate@127.0.0.1:{port}/postgres"
    finally:
        _run(*user, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, postgres_uri: str) -> Iterator[LiveServer]:
    """Serve from PostgreSQL with the built-in default policy and two workers."""
    with serve(tmp_path_factory.mktemp("postgres-server"), postgres_uri, args=("--workers", "2")) as server:
        yield server
