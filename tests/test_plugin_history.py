"""The history table: what is written when, what survives, who may come back, what people see of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from mlflow_opt.plugin.discovery import history_of
from mlflow_opt.plugin.history import TABLE, Entry, create_table, read_history, reigns
from mlflow_opt.plugin.mirror import EXPERIMENT
from tests.evidence_factory import (
    WRONG,
    Evidence,
    candidate,
    champion,
    good,
    logged_model,
    model_id_of,
    pointed,
    refused,
    register,
    registry,
    write_evidence,
)


def past(client: MlflowClient, name: str = "churn") -> list[Entry]:
    return read_history(registry(client).store.engine, name)


def reign(client: MlflowClient, count: int) -> list[str]:
    """Make one champion after the other."""
    versions: list[str] = []
    for _ in range(count):
        versions.append(good(client, "churn", model_id_of(client, "churn", versions[-1]) if versions else ""))
        client.set_registered_model_alias("churn", "champion", versions[-1])
    return versions


def test_history_keeps_everything_that_decided_when_a_version_is_accepted(gated: MlflowClient) -> None:
    (version,) = reign(gated, 1)
    (entry,) = past(gated)
    assert (entry.action, entry.outcome, str(entry.version), entry.alias) == ("accepted", "PASS", version, "champion")
    assert entry.model_id == model_id_of(gated, "churn", version)
    assert gated.get_run(entry.evidence_run).data.tags["mlflow_opt.policy_digest"] == entry.policy_digest
    evidence = json.loads(entry.evidence)
    assert evidence["metrics"]["gate_speedup_lo"] == ["1.7"]
    assert evidence["tags"]["mlflow_opt.fingerprint"]
    assert entry.user == "unauthenticated"
    assert abs(entry.at / 1000 - time.time()) < 60
    assert entry.reasons[0].startswith("PASS: speedup")


def test_history_keeps_a_refusal_when_its_transaction_is_undone(gated: MlflowClient) -> None:
    version = candidate(gated, "churn", Evidence("m-x", quantities=WRONG))
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    (entry,) = past(gated)
    assert (entry.action, entry.outcome) == ("refused", "FAIL")
    assert champion(gated) == ""


def test_history_survives_when_runs_versions_and_models_are_deleted(gated: MlflowClient, tracking_uri: str) -> None:
    (version,) = reign(gated, 1)
    gated.delete_run(past(gated)[0].evidence_run)
    gated.delete_model_version("churn", version)
    gated.delete_registered_model("churn")
    subprocess.run([sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", tracking_uri], check=True, capture_output=True)
    assert [entry.action for entry in past(gated)] == ["accepted", "deleted", "deleted", "deleted"]
    gated.create_registered_model("churn")
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["accepted", "deleted", "deleted", "deleted"]


def test_history_numbers_entries_in_order_when_many_are_written(gated: MlflowClient) -> None:
    reign(gated, 2)
    numbers = [entry.sequence for entry in past(gated)]
    assert numbers == sorted(set(numbers))


def test_history_tag_is_bounded_when_there_are_many_entries(gated: MlflowClient) -> None:
    reign(gated, 2)
    version = register(gated, "churn", logged_model(gated))
    for _ in range(22):
        refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    listed = history_of(gated, "churn")
    assert [entry["action"] for entry in listed] == ["accepted"] * 2 + ["refused"] * 20
    assert "evidence" not in listed[0]


def test_create_table_leaves_it_alone_when_another_worker_was_quicker(gated: MlflowClient) -> None:
    reign(gated, 1)
    create_table(registry(gated).store.engine)
    assert len(past(gated)) == 1


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_rollback_needs_no_evidence_when_the_version_was_champion(gated: MlflowClient) -> None:
    first, second = reign(gated, 2)
    gated.delete_run(past(gated)[0].evidence_run)
    gated.set_registered_model_alias("churn", "champion", first)
    assert champion(gated) == first
    assert past(gated)[-1].action == "rollback"
    gated.set_registered_model_alias("churn", "champion", second)
    assert past(gated)[-1].action == "rollback"


def test_rollback_walks_further_back_when_previous_is_followed_twice(gated: MlflowClient) -> None:
    versions = reign(gated, 3)
    for expected in (versions[1], versions[0]):
        gated.set_registered_model_alias("churn", "champion", pointed(gated, "previous"))
        assert champion(gated) == expected
    assert pointed(gated, "previous") == ""


def test_rollback_is_quick_when_newer_runs_and_models_are_gone(gated: MlflowClient) -> None:
    first, second = reign(gated, 2)
    gated.delete_logged_model(model_id_of(gated, "churn", second))
    gated.delete_run(past(gated)[1].evidence_run)
    started = time.perf_counter()
    gated.set_registered_model_alias("churn", "champion", pointed(gated, "previous"))
    assert time.perf_counter() - started < 2
    assert champion(gated) == first


def test_rollback_is_refused_when_the_number_is_another_model_now(gated: MlflowClient) -> None:
    (version,) = reign(gated, 1)
    gated.delete_registered_model("churn")
    assert register(gated, "churn", logged_model(gated)) == version
    assert "no evidence" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))


def test_rollback_is_refused_when_the_version_was_only_refused_before(gated: MlflowClient) -> None:
    reign(gated, 1)
    bad = candidate(gated, "churn", Evidence("m-x", quantities=WRONG))
    for _ in range(2):
        refused(lambda: gated.set_registered_model_alias("churn", "champion", bad))


def test_champion_from_before_the_gate_may_come_back_when_it_was_replaced(gated: MlflowClient, tracking_uri: str) -> None:
    plain = MlflowClient(tracking_uri, tracking_uri)
    old = register(plain, "churn", logged_model(plain))
    plain.set_registered_model_alias("churn", "champion", old)
    new = good(gated, "churn", model_id_of(gated, "churn", old))
    gated.set_registered_model_alias("churn", "champion", new)
    assert [entry.action for entry in past(gated)] == ["adopted", "accepted"]
    gated.set_registered_model_alias("churn", "champion", pointed(gated, "previous"))
    assert champion(gated) == old


def test_champion_without_a_logged_model_is_a_reference_by_its_place_when_replaced(gated: MlflowClient, tracking_uri: str) -> None:
    plain = MlflowClient(tracking_uri, tracking_uri)
    plain.create_registered_model("churn")
    old = str(registry(plain).create_model_version("churn", "s3://bucket/model").version)
    plain.set_registered_model_alias("churn", "champion", old)
    model_id = logged_model(gated)
    write_evidence(gated, model_id, Evidence(f"models:/churn/{old}"))
    new = register(gated, "churn", model_id)
    gated.set_registered_model_alias("churn", "champion", new)
    assert champion(gated) == new


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ("accepted 1, accepted 2, accepted 3", [1, 2, 3]),
        ("accepted 1, accepted 2, rollback 1", [1]),
        ("accepted 1, accepted 2, accepted 3, rollback 1, accepted 4", [1, 4]),
        ("accepted 1, deleted 1, accepted 2", [1, 2]),
        ("dry_run 1, adopted 1, accepted 2", [1, 2]),
        ("accepted 1, accepted 2, rollback 1, rollback 2", [1, 2]),
        ("", []),
    ],
)
def test_reigns_is_the_stack_of_holders_when_versions_come_and_go(moves: str, expected: list[int]) -> None:
    told = [move.split() for move in moves.split(", ") if move]
    entries = [Entry("churn", action, int(version), f"m-{version}") for action, version in told]
    assert [entry.version for entry in reigns(entries)] == expected


# --- the mirror -------------------------------------------------------------------------------------------------------


def test_mirror_shows_entries_as_runs_when_people_look(gated: MlflowClient) -> None:
    (version,) = reign(gated, 1)
    until = time.monotonic() + 20
    runs: list[str] = []
    while not runs and time.monotonic() < until:
        experiment = gated.get_experiment_by_name(EXPERIMENT)
        runs = [run.info.run_name for run in gated.search_runs([experiment.experiment_id])] if experiment else []
        time.sleep(0.05)
    assert runs == [f"churn v{version} accepted"]


def test_answer_stays_when_the_mirror_fails(gated: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    version = good(gated, "churn")
    experiment = gated.create_experiment(EXPERIMENT)
    gated.delete_experiment(experiment)
    gated.set_registered_model_alias("churn", "champion", version)
    assert champion(gated) == version


# --- faults -----------------------------------------------------------------------------------------------------------


def test_alias_stays_when_the_history_cannot_be_written(gated: MlflowClient) -> None:
    version = good(gated, "churn")
    engine = registry(gated).store.engine
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TRIGGER full BEFORE INSERT ON mlflow_opt_history BEGIN SELECT RAISE(ABORT, 'disk full'); END"))
    with pytest.raises(Exception, match="disk full"):
        gated.set_registered_model_alias("churn", "champion", version)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER full"))
    assert (champion(gated), pointed(gated, "previous")) == ("", "")
    assert past(gated) == []


def test_refusal_stands_when_it_cannot_be_recorded(gated: MlflowClient) -> None:
    version = register(gated, "churn", logged_model(gated))
    engine = registry(gated).store.engine
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TRIGGER full BEFORE INSERT ON mlflow_opt_history BEGIN SELECT RAISE(ABORT, 'disk full'); END"))
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == ""


def test_previous_and_champion_stay_when_moving_fails_half_way(gated: MlflowClient) -> None:
    first, second = reign(gated, 2)
    third = good(gated, "churn", model_id_of(gated, "churn", second))
    engine = registry(gated).store.engine
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TRIGGER half BEFORE UPDATE ON registered_model_aliases WHEN NEW.alias = 'previous' "
                "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        )
    with pytest.raises(Exception, match="disk full"):
        gated.set_registered_model_alias("churn", "champion", third)
    assert (champion(gated), pointed(gated, "previous")) == (second, first)
    assert [entry.action for entry in past(gated)] == ["accepted", "accepted"]


@pytest.mark.parametrize("table", ["metrics", "tags", "runs", "logged_models", "logged_model_tags"])
def test_alias_is_refused_when_evidence_cannot_be_read(gated: MlflowClient, table: str) -> None:
    version = good(gated, "churn")
    with registry(gated).store.engine.begin() as connection:
        connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO gone"))
    assert "could not be read" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == ""


def test_history_table_has_its_columns_when_created(gated: MlflowClient) -> None:
    gated.search_registered_models()
    columns = {column["name"] for column in sa.inspect(registry(gated).store.engine).get_columns(TABLE.name)}
    assert columns == {column.name for column in TABLE.c}
    assert {"sequence", "at", "user", "name", "version", "model_id", "alias", "action", "evidence"} <= columns
