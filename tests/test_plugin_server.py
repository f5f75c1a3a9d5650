"""Live servers: sqlite, PostgreSQL, basic-auth, broken policies and a broken plugin; what they answer and what they log."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from mlflow import MlflowClient

from mlflow_opt.plugin.discovery import active_gate, history_of
from mlflow_opt.plugin.history import read_history
from tests.evidence_factory import WRONG, Evidence, candidate, champion, good, logged_model, model_id_of, pointed, refused, register
from tests.servers import ADMIN, LiveServer, serve

BREAKING = """
import sys
class Breaker:
    def find_spec(self, name, path=None, target=None):
        if name == {broken!r}:
            raise ImportError("broken on purpose")
sys.meta_path.insert(0, Breaker())
"""


def promote_and_refuse(server: LiveServer, name: str) -> None:
    """Let one version in, keep two out, and go back, by the client and by plain REST."""
    client = server.client()
    first = good(client, name)
    client.set_registered_model_alias(name, "champion", first)
    second = good(client, name, model_id_of(client, name, first))
    wrong = candidate(client, name, Evidence(model_id_of(client, name, first), quantities=WRONG))
    bare = register(client, name, logged_model(client))
    for version, said in ((wrong, "FAIL: drop_roc_auc"), (bare, "has no evidence")):
        text = refused(lambda version=version: client.set_registered_model_alias(name, "champion", version))  # type: ignore[misc]
        assert said in text
        assert f"Version {second} passes" in text
        answer = server.post("registered-models/alias", {"name": name, "alias": "champion", "version": version})
        assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert server.post("registered-models/alias", {"name": name, "alias": "champion", "version": second}).ok
    assert (champion(client, name), pointed(client, "previous", name)) == (second, first)
    client.set_registered_model_alias(name, "champion", pointed(client, "previous", name))
    assert champion(client, name) == first
    actions = [entry["action"] for entry in history_of(client, name)]
    assert actions == ["accepted", *["refused"] * 4, "accepted", "rollback"]


def test_server_promotes_refuses_and_rolls_back_when_on_sqlite(gated_server: LiveServer) -> None:
    promote_and_refuse(gated_server, "churn")
    assert "gate is ACTIVE on this registry: MLFLOW_OPT_POLICY is not set" in gated_server.log()


def test_server_promotes_refuses_and_rolls_back_when_on_postgres_with_two_workers(postgres_server: LiveServer) -> None:
    promote_and_refuse(postgres_server, "churn")
    entries = read_history(sa.create_engine(postgres_server.database, poolclass=sa.NullPool), "churn")
    assert [entry.action for entry in entries] == ["accepted", *["refused"] * 4, "accepted", "rollback"]
    assert [entry.sequence for entry in entries] == sorted({entry.sequence for entry in entries})


def test_fifty_clients_get_one_champion_when_they_race_on_postgres(postgres_server: LiveServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client = postgres_server.client()
    source = logged_model(client)
    versions = [good(client, "race", source) for _ in range(5)]

    def ask(index: int) -> int:
        body = {"name": "race", "alias": "champion", "version": versions[index % 5]}
        return postgres_server.post("registered-models/alias", body).status_code

    with ThreadPoolExecutor(50) as pool:
        assert sorted(pool.map(ask, range(50))) == [200] * 10 + [403] * 40
    engine = sa.create_engine(postgres_server.database, poolclass=sa.NullPool)
    assert [entry.action for entry in read_history(engine, "race")].count("accepted") == 1


def test_history_names_the_user_when_basic_auth_knows_one(auth_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = auth_server.post("users/create", {"username": "ann", "password": "a-long-password-of-ann"}, auth=ADMIN)
    assert made.ok, made.text
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password-of-ann")
    client = auth_server.client()
    bare, version = register(client, "churn", logged_model(client)), good(client, "churn")
    refused(lambda: client.set_registered_model_alias("churn", "champion", bare))
    client.set_registered_model_alias("churn", "champion", version)
    assert [(entry["action"], entry["user"]) for entry in history_of(client, "churn")] == [("refused", "ann"), ("accepted", "ann")]
    body = {"name": "churn", "alias": "champion", "version": bare}
    assert auth_server.post("registered-models/alias", body, auth=("ann", "wrong")).status_code == 401
    assert auth_server.post("registered-models/alias", body, auth=ADMIN).status_code == 403
    assert history_of(client, "churn")[-1]["user"] == "admin"


def test_server_denies_but_answers_reads_when_its_policy_file_breaks_and_recovers_when_repaired(policy_server: LiveServer) -> None:
    client, text = policy_server.client(), policy_server.policy_file.read_text()
    version = good(client, "churn")
    try:
        policy_server.policy_file.write_text("churn: {validation_criteria: [}")
        assert "not valid YAML" in refused(lambda: client.set_registered_model_alias("churn", "champion", version))
        gate = active_gate(client, "churn")
        assert gate
        assert gate.mode == "deny"
        assert client.get_model_version("churn", version).version == version
    finally:
        policy_server.policy_file.write_text(text)
    client.set_registered_model_alias("churn", "champion", version)


def test_server_is_off_only_where_its_file_says_so_when_it_has_one(policy_server: LiveServer) -> None:
    client = policy_server.client()
    client.set_registered_model_alias("off-limits", "champion", register(client, "off-limits", logged_model(client)))
    bare = register(client, "limits", logged_model(client))
    refused(lambda: client.set_registered_model_alias("limits", "champion", bare))
    assert "mode off let 'champion' of 'off-limits'" in policy_server.log()
    assert "off-* (off); any other model: the built-in default (enforce)" in policy_server.log()


def test_server_says_so_loudly_and_denies_when_started_with_an_unreadable_policy(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with serve(tmp_path, policy="churn: [") as server:
        client = server.client()
        version = good(client, "churn")
        assert "EVERY GUARDED OPERATION IS DENIED" in server.log()
        assert "not valid YAML" in refused(lambda: client.set_registered_model_alias("churn", "champion", version))
    with serve(tmp_path) as server:
        # The same database, history table included, served again with the default policy.
        client = server.client()
        client.set_registered_model_alias("churn", "champion", version)
        assert [entry["action"] for entry in history_of(client, "churn")] == ["refused", "accepted"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["mlflow_opt.plugin.entry", "mlflow_opt.plugin.decision"], ids=["entry point", "store"])
def test_server_never_serves_the_registry_ungated_when_the_plugin_cannot_be_imported(tmp_path: Path, broken: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAKING.format(broken=broken))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    if broken.endswith("decision"):
        # The scheme is known, the store behind it cannot be made: the whole server refuses to start.
        with pytest.raises(RuntimeError, match="broken on purpose"), serve(tmp_path / "server", env={"PYTHONPATH": path}):
            pass
        return
    with serve(tmp_path / "server", env={"PYTHONPATH": path}) as server:
        assert "broken on purpose" in server.log()
        for route, body in (("create", {"name": "churn"}), ("alias", {"name": "churn", "alias": "champion", "version": "1"})):
            answer = server.post(f"registered-models/{route}", body)
            assert answer.status_code == 400
            assert "unsupported URI 'gated+sqlite" in answer.text
        assert requests.get(f"{server.uri}/api/2.0/mlflow/registered-models/search", timeout=30).status_code == 400


@pytest.mark.slow
def test_server_does_not_start_when_workspaces_are_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="workspace"),
        serve(tmp_path, env={"MLFLOW_ENABLE_WORKSPACES": "true"}),
    ):
        pass


def test_entry_points_lead_to_the_gate_when_read_from_metadata() -> None:
    found = {entry.name: entry.value for entry in metadata.entry_points(group="mlflow.model_registry_store")}
    ours = {name: value for name, value in found.items() if name.startswith("gated+")}
    assert {"gated+sqlite", "gated+postgresql", "gated+postgresql+psycopg2", "gated+mysql", "gated+mysql+pymysql"} <= set(ours)
    assert set(ours.values()) == {"mlflow_opt.plugin.entry:open_store"}


def test_plugin_costs_clients_nothing_when_they_import_mlflow() -> None:
    code = (
        "import sys, time; import mlflow; began = time.perf_counter(); from mlflow.tracking._model_registry.utils import _get_store; "
        "import mlflow_opt.plugin.entry; print(time.perf_counter() - began, 'mlflow_opt.plugin.store' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(shown[0]) < 0.3
    assert shown[1:] == ["False"]


def test_plugin_adds_little_when_a_server_loads_it() -> None:
    code = (
        "import time; import mlflow.server.handlers; began = time.perf_counter(); import mlflow_opt.plugin.store; "
        "print(time.perf_counter() - began)"
    )
    shown = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert min(map(float, shown)) < 0.3


def test_alias_stays_when_the_process_is_killed_half_way(gated: MlflowClient, tracking_uri: str) -> None:
    version = good(gated, "churn")
    code = f"""
import os
import shutil
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow_opt.plugin.store import GatedStore
store = GatedStore("gated+{tracking_uri}")
store._settle = lambda *_: os._exit(9)
store.set_registered_model_alias("churn", "champion", "{version}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert champion(gated) == ""
    assert history_of(gated, "churn") == []
    gated.set_registered_model_alias("churn", "champion", version)


def test_alias_is_refused_when_the_tracking_database_is_another_one_and_broken(
    gated: MlflowClient, tracking_uri: str, tmp_path: Path
) -> None:
    apart = MlflowClient(tracking_uri, f"gated+sqlite:///{tmp_path}/registry.db")
    first, second = good(apart, "churn"), good(apart, "churn")
    apart.set_registered_model_alias("churn", "champion", first)
    Path(tracking_uri.removeprefix("sqlite:///")).write_bytes(b"this is no database" * 500)
    text = refused(lambda: apart.set_registered_model_alias("churn", "champion", second))
    assert "could not be read or judged" in text
    assert champion(apart) == first


@pytest.mark.slow
def test_alias_stays_and_the_client_may_retry_when_the_database_is_locked(gated: MlflowClient, tracking_uri: str) -> None:
    version = good(gated, "churn")
    lock = sa.create_engine(tracking_uri, poolclass=sa.NullPool).connect()
    lock.exec_driver_sql("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(Exception, match="locked"):
        gated.set_registered_model_alias("churn", "champion", version)
    assert time.monotonic() - began > 5
    lock.rollback()
    lock.close()
    assert champion(gated) == ""
    gated.set_registered_model_alias("churn", "champion", version)
