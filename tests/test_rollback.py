from __future__ import annotations

import json
import time
from collections.abc import Iterator

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.history import history
from mlflow_opt.commands.rollback import previous_version, rollback
from tests.evidence_factory import champion, good, model_id_of

NAME = "churn"


@pytest.fixture
def gated(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"gated+{tracking_uri}")
    mlflow.set_registry_uri(f"gated+{tracking_uri}")
    yield MlflowClient()
    mlflow.set_registry_uri("")


@pytest.fixture
def two_champions(gated: MlflowClient) -> tuple[MlflowClient, str, str]:
    first = good(gated, NAME)
    gated.set_registered_model_alias(NAME, "champion", first)
    second = good(gated, NAME, reference=model_id_of(gated, NAME, first))
    gated.set_registered_model_alias(NAME, "champion", second)
    return gated, first, second


def test_rollback_returns_to_the_version_before_when_called(two_champions: tuple[MlflowClient, str, str]) -> None:
    client, first, second = two_champions
    assert champion(client) == second
    started = time.monotonic()
    rollback(name=NAME)
    assert champion(client) == first
    assert time.monotonic() - started < 10


def test_rollback_needs_no_run_when_all_evidence_is_deleted(two_champions: tuple[MlflowClient, str, str]) -> None:
    client, first, _ = two_champions
    for experiment in client.search_experiments():
        for run in client.search_runs([str(experiment.experiment_id)]):
            client.delete_run(run.info.run_id)
    rollback(name=NAME)
    assert champion(client) == first


def test_rollback_finds_nobody_when_there_was_one_champion_only(gated: MlflowClient) -> None:
    first = good(gated, NAME)
    gated.set_registered_model_alias(NAME, "champion", first)
    with pytest.raises(ValueError, match="no former version"):
        previous_version(NAME, "champion")


def test_history_lists_what_was_asked_when_versions_came_and_went(
    two_champions: tuple[MlflowClient, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rollback(name=NAME)
    history(name=NAME)
    told = capsys.readouterr().out
    assert told.count("accepted") == 2
    assert told.count("rollback") == 1
    history(name=NAME, json=True)
    told = json.loads(capsys.readouterr().out)
    assert [entry["action"] for entry in told["entries"]] == ["accepted", "accepted", "rollback"]


def test_rollback_passes_over_a_version_when_it_was_deleted(two_champions: tuple[MlflowClient, str, str]) -> None:
    client, first, second = two_champions
    third = good(client, NAME, reference=model_id_of(client, NAME, second))
    client.set_registered_model_alias(NAME, "champion", third)
    client.delete_model_version(NAME, second)
    rollback(name=NAME)
    assert champion(client) == first


def test_rollback_tells_a_machine_where_the_alias_is_when_asked_for_json(
    two_champions: tuple[MlflowClient, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, second = two_champions
    rollback(name=NAME, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "command": "rollback",
        "exit_code": 0,
        "name": NAME,
        "alias": "champion",
        "version": first,
        "version_before": second,
    }
