from __future__ import annotations

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.doctor import doctor


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
