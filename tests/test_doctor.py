from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.doctor import doctor
from mlflow_opt.commands.keygen import keygen
from tests.servers import serve


def test_doctor_says_that_the_gate_is_not_active_when_the_registry_is_plain(tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    MlflowClient(tracking_uri).create_registered_model("churn")
    doctor()
    told = capsys.readouterr().out
    assert "NOT ACTIVE" in told
    assert "int8: this CPU" in told
    assert "a prediction is timed with one thread" in told
    assert "Packages: all that recipes and server need is installed." in told
    assert "Store: a database that is opened directly" in told


def test_doctor_names_the_extra_when_a_package_is_missing(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["numpy>=2", "no-such-package>=1; extra == 'serve'", "numpy; extra == 'serve'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    doctor()
    said = "Packages: `start_server` and `serve` may need no-such-package, which is not installed; pip install 'mlflow-opt[serve]'."
    assert said in capsys.readouterr().out


def test_doctor_says_that_training_waits_for_itself_when_threads_are_more_than_cores(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5000")
    doctor()
    assert "Threads: OMP_NUM_THREADS=5000 is more than the" in capsys.readouterr().out


def test_doctor_compares_versions_when_the_store_is_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tmp_path / "server") as server:
        mlflow.set_tracking_uri(server.uri)
        try:
            doctor(name="churn")
        finally:
            mlflow.set_tracking_uri("")
    told = capsys.readouterr().out
    assert f"Store: the server runs MLflow {mlflow.__version__}, as this client does." in told
    assert "Gate: active for churn" in told


def test_doctor_names_the_policy_when_the_registry_is_gated(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"gated+{tracking_uri}")
    mlflow.set_registry_uri(f"gated+{tracking_uri}")
    try:
        MlflowClient().create_registered_model("churn")
        doctor(name="churn")
    finally:
        mlflow.set_registry_uri("")
    assert "Gate: active for churn, mode enforce, guards champion" in capsys.readouterr().out


def test_doctor_tells_a_machine_what_guards_a_name_when_it_does_not_exist_yet(
    tracking_uri: str,
    serve_policy: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keygen(path=str(tmp_path / "ci.key"), json=True)
    made = json.loads(capsys.readouterr().out)
    serve_policy("churn: {trusted_keys: [ci.key.pub], mode: enforce}\n")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"gated+{tracking_uri}")
    mlflow.set_registry_uri(f"gated+{tracking_uri}")
    try:
        doctor(name="churn", json=True)
        told = json.loads(capsys.readouterr().out)
        monkeypatch.setenv("MLFLOW_OPT_SIGNING_KEY", str(tmp_path / "ci.key"))
        doctor(name="churn")
    finally:
        mlflow.set_registry_uri("")
    assert (told["command"], told["exit_code"], told["gate"]["mode"]) == ("doctor", 0, "enforce")
    assert "is not signed by it" in told["advice"][-1]
    assert f"signed with key {made['key_id']}, which the server trusts" in capsys.readouterr().out
