"""Faults under a live server: a full disk, a locked database, a tracking store that is gone, a server killed at work."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from mlflow import MlflowClient

from mlflow_opt.plugin.discovery import history_of
from mlflow_opt.plugin.history import HELD, read_history, reigns
from tests.attack_scene import stage
from tests.evidence_factory import champion, good, logged_model, model_id_of
from tests.servers import LiveServer, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("faults")
    shutil.copy(empty_store, folder / "mlflow.db")
    with serve(folder) as started:
        yield started


def family(server: LiveServer) -> list[int]:
    assert server.process
    listed = subprocess.run(["ps", "-o", "pid=", "-g", str(server.process.pid)], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in listed.split()]


@contextmanager
def full_disk(server: LiveServer) -> Iterator[None]:
    """Let no file of the server grow or change beyond its first 64 kB, as a disk without room does not."""
    for pid in family(server):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for pid in family(server):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_nothing_moves_and_nothing_is_lost_when_the_disk_of_a_live_server_is_full(server: LiveServer) -> None:
    scene = stage(server, "full")
    version = scene.against_champion()
    with full_disk(server):
        answers = [scene.set_alias(each).status_code for each in (version, "2")]
    assert all(answer >= 400 for answer in answers), answers
    assert scene.unmoved()
    assert [entry["action"] for entry in history_of(scene.client, scene.name)] == ["accepted"]
    assert scene.set_alias(version).ok
    assert scene.aliases() == {"champion": version, "previous": "1"}


def test_request_waits_and_is_then_decided_when_the_database_of_a_live_server_is_locked(server: LiveServer) -> None:
    scene = stage(server, "locked")
    version = scene.against_champion()
    lock = sqlite3.connect(server.database.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(1.5, lock.rollback).start()
    began = time.monotonic()
    assert scene.set_alias("2").status_code == 403
    assert scene.set_alias(version).ok
    assert time.monotonic() - began > 1
    lock.close()


def test_alias_is_refused_when_the_tracking_store_of_a_live_server_is_gone(tmp_path: Path, empty_store: Path) -> None:
    for name in ("mlflow.db", "registry.db"):
        shutil.copy(empty_store, tmp_path / name)
    with serve(tmp_path, registry=f"sqlite:///{tmp_path}/registry.db") as server:
        scene = stage(server, "churn")
        version = scene.against_champion()
        (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 500)
        answer = scene.set_alias(version)
        assert answer.status_code == 403
        assert "could not be read or judged" in answer.json()["message"]
        assert scene.unmoved()


@pytest.mark.slow
def test_alias_and_history_agree_when_a_live_server_is_killed_at_work(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for round_ in range(3):
        with serve(tmp_path) as server:
            agree(server, chain(server.client(), f"churn-{round_}"))
            kill_at_work(server, f"churn-{round_}", after_s=0.4 + 0.3 * round_)
        with serve(tmp_path) as again:
            agree(again, f"churn-{round_}")


def chain(client: MlflowClient, name: str) -> str:
    source = logged_model(client)
    for _ in range(12):
        source = model_id_of(client, name, good(client, name, source))
    return name


def kill_at_work(server: LiveServer, name: str, after_s: float) -> None:
    """Promote one version after the other, and kill the server meanwhile."""

    def ask() -> None:
        for number in range(1, 13):
            try:
                server.post("registered-models/alias", {"name": name, "alias": "champion", "version": str(number)})
            except requests.RequestException:
                return

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(after_s)
    assert server.process
    os.killpg(server.process.pid, signal.SIGKILL)
    asking.join()


def agree(server: LiveServer, name: str) -> None:
    client = server.client()
    past = read_history(sa.create_engine(server.database, poolclass=sa.NullPool), name)
    held = reigns([entry for entry in past if entry.alias == "champion" and entry.action in HELD])
    aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    expected = {alias: str(held[-back].version) for back, alias in ((1, "champion"), (2, "previous")) if len(held) >= back}
    assert aliases == expected
    assert champion(client, name) == expected.get("champion", "")
