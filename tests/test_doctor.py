from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.doctor import doctor
from mlflow_opt.commands.keygen import keygen


def test_doctor_says_that_the_gate_is_not_active_when_the_registry_is_plain(tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    MlflowClient(tracking_uri).create_registered_model("churn")
    doctor()
    told = capsys.readouterr().out
    assert "NOT ACTIVE" in told
    assert "int8: this CPU" in told


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
