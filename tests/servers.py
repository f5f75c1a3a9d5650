"""Live servers for tests: `mlflow server` with the gated registry on a free port, and PostgreSQL from the system's package."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from mlflow_opt.verdicts.signing import make_key

START_SECONDS = 90


@dataclass(frozen=True)
class LiveServer:
    """A running server: its address, its database, the policy file it reads (which a test may rewrite), its log, its process."""

    uri: str
    database: str
    policy_file: Path
    log_file: Path
    process: subprocess.Popen[bytes] | None = None

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
    registry: str = "",
) -> Iterator[LiveServer]:
    """Start a gated server; `policy` is the text of its policy file (None: the variable is not set), `registry` a database of its own."""
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
        *("--backend-store-uri", database, "--registry-store-uri", ("gated+" if gated else "") + (registry or database)),
        *("--default-artifact-root", str(folder / "artifacts"), *args),
    ]
    server = LiveServer(f"http://127.0.0.1:{port}", database, policy_file, folder / "server.log")
    with server.log_file.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        _await(server, process)
        yield replace(server, process=process)
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
    """Serve with sqlite and a policy file that tests may rewrite, with a pattern for each kind of trust; the rest has the default."""
    folder = _prepared(tmp_path_factory.mktemp("policy"), empty_store)
    private, public = make_key()
    (folder / "ci.key").write_bytes(private)
    (folder / "ci.pub").write_text(public)
    with serve(folder, policy=POLICIES) as server:
        yield server


POLICIES = """
"signed-*": {trusted_keys: [ci.pub]}
"placed-*": {trusted_experiments: ["0"]}
"rows-*": {data_digest: other-rows}
"waived-*": {waivers: true}
"ann-*": {waivers: [ann]}
"auto-*": {promote: auto}
"off-*": {mode: "off"}
"""


@pytest.fixture(scope="session")
def auth_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[LiveServer]:
    """Serve with MLflow's basic-auth app; `admin` has the password of `ADMIN`, and `ann-w` may waive what `ann-*` misses."""
    folder = _prepared(tmp_path_factory.mktemp("auth"), empty_store)
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1], "MLFLOW_AUTH_CONFIG_PATH": str(config)}
    with serve(folder, policy='"ann-*": {waivers: [ann-w]}\n', args=("--app-name", "basic-auth"), env=env) as server:
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


@pytest.fixture(scope="session")
def mysql_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start MariaDB from the system's package on a free port, with an empty database in the collation that takes most letters for equal."""
    programs = [shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in ("mariadb-install-db", "mariadbd")]
    if not all(programs):
        pytest.skip("needs MariaDB: Debian's package `mariadb-server-core`")
    pymysql = pytest.importorskip("pymysql")
    folder, port = tmp_path_factory.mktemp("mysql"), free_port()
    data = [f"--datadir={folder}/data", f"--user={pwd.getpwuid(os.geteuid()).pw_name}"]
    _run(str(programs[0]), "--no-defaults", *data, "--auth-root-authentication-method=normal", "--skip-test-db")
    options = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
    with (folder / "log").open("w") as log:
        command = [str(programs[1]), "--no-defaults", *data, *options, "--innodb-flush-log-at-trx-commit=0"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _make_database(pymysql, port, process)
        yield f"mysql+pymysql://root@127.0.0.1:{port}/mlflow"
    finally:
        _stop(process)


def _make_database(pymysql: Any, port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection:
                connection.cursor().execute("CREATE DATABASE mlflow CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_520_ci")
            return
        except pymysql.err.OperationalError:
            time.sleep(0.2)
    raise RuntimeError("MariaDB did not start")


@pytest.fixture(scope="session")
def mysql_server(tmp_path_factory: pytest.TempPathFactory, mysql_uri: str) -> Iterator[LiveServer]:
    """Serve from MariaDB with the built-in default policy and two workers."""
    with serve(tmp_path_factory.mktemp("mysql-server"), mysql_uri, args=("--workers", "2")) as server:
        yield server
