"""What decides about a guarded alias: evidence of every kind that must not pass, and what a refusal says."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_opt.plugin.discovery import active_gate, history_of
from mlflow_opt.records import Quantity
from tests.evidence_factory import (
    GOOD,
    SLOW,
    UNSURE,
    WRONG,
    Evidence,
    candidate,
    champion,
    good,
    logged_model,
    model_id_of,
    refused,
    register,
    write_evidence,
)

NOT_PASSING: dict[str, tuple[dict[str, Any], str]] = {
    "slow": ({"quantities": SLOW}, "FAIL: speedup"),
    "wrong": ({"quantities": WRONG}, "FAIL: drop_roc_auc"),
    "unsure": ({"quantities": UNSURE}, "INCONCLUSIVE: speedup"),
    "metric missing": ({"quantities": {"speedup": GOOD["speedup"]}}, "not measured"),
    "nothing measured": ({"quantities": {}}, "not measured"),
    "nan": ({"quantities": GOOD | {"speedup": Quantity(math.nan, math.nan, math.nan, 900)}}, "not a usable value"),
    "infinite": ({"quantities": GOOD | {"speedup": Quantity(math.inf, math.inf, math.inf, 900)}}, "not a usable value"),
    "no samples": ({"quantities": GOOD | {"speedup": Quantity(2.0, 2.0, 2.0, 0)}}, "not a usable value"),
    "interval upside down": ({"quantities": GOOD | {"speedup": Quantity(2.0, 3.0, 1.5, 900)}}, "not a usable value"),
    "metric logged twice": ({"extra": (("gate_speedup", 9.0),)}, "logged 2 times"),
    "interval logged twice": ({"extra": (("gate_speedup_lo", 9.0),)}, "logged 2 times"),
    "another policy": ({"tags": {"mlflow_opt.policy_digest": "0" * 16}}, "the policy in force is"),
    "stale": ({"age_days": 31.0}, "days old"),
    "from the future": ({"age_days": -1.0}, "from the future"),
    "noisy machine": ({"doubt": "load was 7 on 2 cores"}, "too noisy"),
    "no digest of the files": ({"tags": {"mlflow_opt.model_digest": ""}}, "model_digest is missing"),
    "no task": ({"tags": {"mlflow_opt.task": ""}}, "task is missing"),
    "unknown task": ({"tags": {"mlflow_opt.task": "ranking"}}, "task must be one of"),
    "age is no number": ({"tags": {"mlflow_opt.measured_at": "yesterday"}}, "measured_at"),
    "run still running": ({"status": "RUNNING"}, "must be FINISHED, it is RUNNING"),
    "run failed": ({"status": "FAILED"}, "must be FINISHED, it is FAILED"),
    "run killed": ({"status": "KILLED"}, "must be FINISHED, it is KILLED"),
    "run of another model": ({"tags": {"mlflow_opt.model_id": "m-other"}}, "measured model 'm-other'"),
    "another reference": ({"tags": {"mlflow_opt.reference_model_id": "m-other"}}, "compares with 'm-other'"),
    "no reference": ({"tags": {"mlflow_opt.reference_model_id": ""}}, "compares with nothing"),
}


@pytest.mark.parametrize(("changed", "said"), NOT_PASSING.values(), ids=NOT_PASSING.keys())
def test_alias_is_refused_when_evidence_is(gated: MlflowClient, changed: dict[str, Any], said: str) -> None:
    version = good(gated, "churn", **changed)
    assert said in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == ""
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["refused"]


def test_alias_is_refused_when_the_evidence_run_is_deleted(gated: MlflowClient) -> None:
    model_id = logged_model(gated, source="m-source")
    run_id = write_evidence(gated, model_id, Evidence("m-source"))
    version = register(gated, "churn", model_id)
    gated.delete_run(run_id)
    assert "is deleted" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))


def test_alias_is_refused_when_the_logged_model_is_deleted_or_never_finished(gated: MlflowClient) -> None:
    gone, pending = logged_model(gated, source="m-source"), logged_model(gated, source="m-source", ready=False)
    for model_id, said in ((gone, "is deleted"), (pending, "must be READY")):
        write_evidence(gated, model_id, Evidence("m-source"))
        version = register(gated, "churn", model_id)
        if model_id == gone:
            gated.delete_logged_model(model_id)
        text = refused(lambda version=version: gated.set_registered_model_alias("churn", "champion", version))  # type: ignore[misc]
        assert said in text


def test_alias_is_refused_when_the_reference_is_the_model_itself(gated: MlflowClient) -> None:
    model_id = logged_model(gated)
    gated.set_logged_model_tags(model_id, {"mlflow_opt.source_model_id": model_id})
    write_evidence(gated, model_id, Evidence(model_id))
    version = register(gated, "churn", model_id)
    assert "this model itself" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))


def test_alias_is_refused_when_the_model_says_no_source_and_there_was_no_champion(gated: MlflowClient) -> None:
    model_id = logged_model(gated)
    write_evidence(gated, model_id, Evidence("m-anything"))
    version = register(gated, "churn", model_id)
    assert "source_model_id" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))


def test_reference_stays_the_last_champion_when_the_alias_is_deleted(gated: MlflowClient) -> None:
    source = logged_model(gated)
    first, second = good(gated, "churn", source), good(gated, "churn", source)
    gated.set_registered_model_alias("churn", "champion", first)
    gated.delete_registered_model_alias("churn", "champion")
    text = refused(lambda: gated.set_registered_model_alias("churn", "champion", second))
    assert model_id_of(gated, "churn", first) in text
    gate = active_gate(gated, "churn")
    assert gate
    assert gate.references == {"champion": model_id_of(gated, "churn", first)}


def test_refusal_names_the_best_passing_version_when_an_unoptimised_one_is_asked_for(gated: MlflowClient) -> None:
    source = logged_model(gated)
    baseline = register(gated, "churn", source)
    faster = good(gated, "churn", source, quantities=GOOD | {"speedup": Quantity(3.0, 2.9, 3.1, 900)})
    good(gated, "churn", source)
    candidate(gated, "churn", Evidence(source, quantities=WRONG | {"speedup": Quantity(9.0, 8.0, 10.0, 900)}))
    text = refused(lambda: gated.set_registered_model_alias("churn", "champion", baseline))
    assert f"Version {faster} passes: `mlflow-opt promote --model models:/churn/{faster}`" in text


def test_refusal_names_criterion_interval_bound_and_gap_when_one_binds(gated: MlflowClient) -> None:
    version = good(gated, "churn", quantities=WRONG)
    text = refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert "PASS: speedup must be at least 1.05: 1.8 [1.7, 1.9] from 900 samples" in text
    assert "FAIL: drop_roc_auc must be at most 0.01, got 0.3 [0.28, 0.32] from 4000 samples" in text
    assert "Binding criterion: drop_roc_auc" in text
    assert "misses the bound 0.01 by 0.31" in text


def test_alias_set_once_when_fifty_threads_race(gated: MlflowClient) -> None:
    source = logged_model(gated)
    versions = [good(gated, "churn", source) for _ in range(10)]
    answers: list[str] = []

    def ask(version: str) -> None:
        try:
            gated.set_registered_model_alias("churn", "champion", version)
            answers.append(version)
        except MlflowException as error:
            answers.append(error.error_code)

    threads = [threading.Thread(target=ask, args=(versions[index % 10],)) for index in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = champion(gated)
    assert sorted(answers) == sorted(["PERMISSION_DENIED"] * 45 + [won] * 5)
