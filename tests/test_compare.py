from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.metrics import QUALITY
from mlflow_opt.policy import parse_policy
from mlflow_opt.reports.literature import CLAIMS
from mlflow_opt.runs import stored_runs
from mlflow_opt.runs.stored_runs import Result
from mlflow_opt.signature import COULD_NOT_RUN, execute
from recipes.compare import compare, grouped, one_each, pareto_front, recommend
from tests.stored import POLICY, evidence_of, judged, quality, result, standing, store

ROOT = Path(__file__).resolve().parent.parent


def test_grouped_keeps_tasks_and_rows_apart_when_they_differ() -> None:
    members = [result("a", 1), result("b", 2, rows="churn.selection 2"), result("baseline", 10), result("baseline", 10, parent_id="q")]
    groups = grouped([*members, result("baseline", 3, rows="nobody")])
    assert {name: [one.name for one in group] for name, group in groups.items()} == {
        "binary on churn.selection 1": ["a", "baseline"],
        "binary on churn.selection 2": ["b"],
    }


def test_one_each_takes_the_chosen_variant_when_there_is_one() -> None:
    chosen = [result("fast", 1), result("slow", 3, standing="chosen"), result("baseline", 9, standing="baseline")]
    other = [result("misses", 1, parent_id="q", standing="misses: x"), result("passes", 2, parent_id="q", standing="passes")]
    assert [one.name for one in one_each([*chosen, *other])] == ["baseline", "slow", "passes"]


def test_pareto_front_follows_the_direction_when_smaller_is_better() -> None:
    def regression(name: str, ms: float, r2: float) -> Result:
        return result(name, ms, task="regression", values={"latency_p50_ms": ms, "r2": r2})

    assert pareto_front([regression("a", 1, 0.5), regression("b", 2, 0.4), regression("c", 3, 0.9)]) == {"a", "c"}


def test_recommend_takes_the_proven_one_when_another_only_promises_more() -> None:
    members = [result("proven", 2, judged=evidence_of(5, 0.0)), result("promising", 1), result("baseline", 10)]
    found = recommend(members, POLICY, "latency")
    assert (found.name, found.proven) == ("proven", True)
    assert "promising, 2.00x as fast again (it was never judged on the gate rows)" in found.binding


def test_recommend_names_the_binding_constraint_when_a_faster_one_loses_too_much() -> None:
    members = [result("good", 2, judged=evidence_of(5, 0.0)), result("rash", 1, auc=0.7, judged=evidence_of(10, 0.1))]
    found = recommend(members, POLICY, "latency")
    assert found.name == "good"
    assert "rash, 2.00x as fast again (drop_roc_auc must be at most 0.01, got 0.1" in found.binding


def test_recommend_says_that_nothing_binds_when_the_fastest_is_taken() -> None:
    found = recommend([result("a", 1, judged=evidence_of(5, 0.0)), result("b", 2)], POLICY, "latency")
    assert found.binding == "No constraint binds: nothing that was tried is faster than a."


def test_recommend_takes_nothing_when_nothing_meets_the_policy() -> None:
    found = recommend([result("a", 9), result("b", 8)], parse_policy("validation_criteria: [{metric: speedup, min: 2}]"), "latency")
    assert (found.run_id, found.proven) == ("", False)
    assert found.text == "Nothing meets the policy. Nearest: b (speedup 1.25 < 2)."


def test_recommend_never_takes_a_variant_when_its_evidence_fails() -> None:
    # Its figures on the selection rows look well.
    found = recommend([result("flattered", 1, judged=evidence_of(5, 0.2)), result("plain", 2)], POLICY, "latency")
    assert (found.name, found.proven) == ("plain", False)


def test_recommend_takes_the_best_when_quality_is_the_aim() -> None:
    members = [result("fast", 1, 0.8), result("better", 5, 0.85)]
    assert [recommend(members, POLICY, aim).name for aim in ("latency", "quality")] == ["fast", "better"]


def _two_recipes() -> tuple[str, str]:
    values, tags = judged(8.0, 0.001)
    first = store(
        "compile",
        {
            "baseline": ({**quality(0.83, 8.0)}, standing("baseline")),
            "ort_all": ({**quality(0.83, 1.0, 8.0), **values}, {**tags, **standing("chosen")}),
            "ort_basic": (quality(0.83, 1.2, 6.7), standing("passes")),
        },
    )
    second = store(
        "prune_ensemble",
        {
            "baseline": (quality(0.83, 8.0), standing("baseline")),
            "three": (quality(0.84, 4.0, 2.0, -0.01), standing("passes")),
            "one": (quality(0.75, 0.5, 16.0, 0.08), standing("misses: drop_roc_auc 0.08 > 0.01")),
        },
    )
    return first, second


def test_compare_leaves_table_page_and_tags_when_runs_are_named(tracking_uri: str) -> None:
    first, second = _two_recipes()
    elsewhere = store("quantize", {"u8s8": (quality(0.7, 2.0, 3.0), standing("chosen"))}, rows="adult")
    compare(runs=f"{first}, {second},{elsewhere}", each="variant")
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs([client.get_run(first).info.experiment_id], "tags.`mlflow_opt.recipe` = 'compare'")
    note = run.data.tags["mlflow.note.content"]
    assert run.info.status == "FINISHED"
    # Two groups have no figures in common.
    assert run.data.metrics == {}
    assert "### churn (binary)" in note
    assert "### adult (binary)" in note
    assert "8.00x [7.60x, 8.40x]" in note
    assert "Take ort_all (its evidence passes this policy)." in note
    assert "Boehm 2021" in note
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"comparison.csv", "comparison.html"}
    table = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/comparison.csv")
    lines = {line["variant"]: line for line in csv.DictReader(io.StringIO(table)) if line["variant"] != "baseline"}
    assert lines["ort_all"]["recommended"] == "True"
    assert (lines["ort_all"]["speedup_lo"], lines["ort_all"]["verdict"]) == ("7.6", "PASS")
    children = client.search_runs([run.info.experiment_id], "tags.`mlflow_opt.variant` != ''")
    tagged = {child.info.run_name: child.data.tags.get("pareto") for child in children}
    assert {name: tag for name, tag in tagged.items() if name != "baseline"} == {
        "ort_all": "true",
        "ort_basic": "false",
        "three": "true",
        "one": "true",
        "u8s8": "true",
    }


def test_compare_takes_the_experiment_when_nothing_is_named(tracking_uri: str) -> None:
    _two_recipes()
    store("tune", {"best": (quality(0.9, 1.0), {})}, status="FAILED")
    compare(tag=False)
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs([str(one.experiment_id) for one in client.search_experiments()], "tags.`mlflow_opt.recipe` = 'compare'")
    note = run.data.tags["mlflow.note.content"]
    assert run.data.metrics == {"roc_auc": 0.83, "drop_roc_auc": 0.0, "speedup": 8.0, "latency_p50_ms": 1.0, "size_mb": 1.0}
    # One line a recipe: what it chose, or the fastest that passed.
    assert "compile: ort_all" in note
    assert "prune_ensemble: three" in note
    assert "ort_basic" not in note
    assert "it ended FAILED, so that its variants may be incomplete." in note
    tags = [one.data.tags for one in client.search_runs([run.info.experiment_id], "tags.`mlflow_opt.variant` = 'three'")]
    assert "pareto" not in tags[0]


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ("0" * 32, "which it does not have"),
        ("no such experiment", "this store has 'Default', 'test'."),
        ("", "needs variants of a finished"),
    ],
    ids=["run", "experiment", "empty"],
)
def test_compare_says_what_is_wrong_when_there_is_nothing_to_compare(
    runs: str, told: str, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(compare, ["--runs", runs]) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_find_takes_a_child_alone_when_it_is_named(tracking_uri: str) -> None:
    first, _ = _two_recipes()
    client = MlflowClient(tracking_uri)
    (child,) = client.search_runs([client.get_run(first).info.experiment_id], "tags.`mlflow_opt.variant` = 'ort_basic'")
    assert [one.name for one in stored_runs.find(child.info.run_id).results] == ["ort_basic"]


def test_claims_name_recipes_that_exist_when_listed() -> None:
    from mlflow_opt.declaration.entries import entries

    recipes = {entry.name for entry in entries() if entry.kind == "recipe"} | {"nas", "prune"}
    assert len(CLAIMS) >= 5
    assert {claim.recipe for claim in CLAIMS} <= recipes
    assert all(claim.url.startswith("https://") and claim.source and claim.where for claim in CLAIMS)


def test_task_is_told_by_metrics_when_a_run_was_not_judged() -> None:
    for task, names in QUALITY.items():
        assert stored_runs._task(dict.fromkeys(names, 0.5)) == task
    assert json.dumps(stored_runs._task({"requests_per_s": 1.0})) == '""'
