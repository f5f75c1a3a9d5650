from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt import data
from mlflow_opt.declaration.entries import entries
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Param, Quantity
from mlflow_opt.reports.report_text import as_html
from mlflow_opt.reports.waterfall import Level, charts, save, table
from mlflow_opt.runs import chain_limits, chain_story, chaining, step_runs, tracking
from recipes import pipeline
from tests.tiny import tiny_table

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600


def test_steps_keep_their_order_when_named_in_another() -> None:
    assert pipeline.chosen_steps("serve,compile , tune") == ["compile", "tune", "serve"]
    assert pipeline.chosen_steps("") == list(pipeline.STEPS)
    with pytest.raises(ValueError, match=r"steps must be among .* got tunes"):
        pipeline.chosen_steps("tunes")


@pytest.mark.parametrize("name", ["telco_churn", "fashion_mnist"])
def test_gate_is_halved_without_overlap_when_a_half_is_named(name: str) -> None:
    whole, steps, final = (data.split(data.read(f"{name}{half}")) for half in ("", "#steps", "#final"))
    assert whole.digest == steps.digest == final.digest
    assert len({whole.gate.digest, steps.gate.digest, final.gate.digest}) == 3
    for part in ("train", "calibration", "selection"):
        assert getattr(whole, part).digest == getattr(steps, part).digest == getattr(final, part).digest
    rows = [len(one.gate.labels) for one in (whole, steps, final)]
    assert rows[1] + rows[2] == rows[0]
    assert min(rows[1:]) > 0.45 * rows[0]
    # Both halves are samples of the same gate.
    for label in np.unique(whole.gate.labels):
        shares = [float((one.gate.labels == label).mean()) for one in (steps, final)]
        assert abs(shares[0] - shares[1]) < 0.05


def test_waterfall_shows_each_step_when_drawn(tmp_path: Path) -> None:
    none, gain = Quantity(0.0, 0.0, 0.0, 700), Quantity(0.04, 0.01, 0.07, 700)
    levels = [Level("baseline", 4.0, 0.50), Level("compile", 0.5, 0.50, none, none), Level("tune", 0.25, 0.54, gain, gain)]
    rows = table(levels, "f1").splitlines()
    said = "+0.0400 [+0.0100, +0.0700]"
    assert rows[-1] == f"| tune | 0.25 | 2.00x | 16.00x | 0.5400 | {said} | {said} |"
    save(levels, "f1", tmp_path / "waterfall.png")
    assert (tmp_path / "waterfall.png").stat().st_size > 5000
    latency, quality = charts(levels, "f1")
    assert list(latency.data[0]["y"]) == [4.0, 0.5, 0.25]
    assert quality.data[0]["y"] == pytest.approx([0.5, 0.0, 0.04])


def test_step_is_asked_for_losses_and_not_for_the_whole_gain_when_a_policy_is_given() -> None:
    rules = parse_policy(
        "validation_criteria: [{metric: speedup, min: 5}, {metric: f1, min: 0.9}, "
        "{metric: f1, max_drop: 0.02}, {metric: label_flips, max: 3}]"
    )
    for recipe, least in (("prune", 1.05), ("tune", 0.7)):
        asked = chain_story.step_policy(recipe, rules, "binary")
        assert [(one.quantity, one.side, one.bound) for one in asked.criteria] == [
            ("speedup", "min", least),
            ("drop_f1", "max", 0.02),
            ("label_flips", "max", 3.0),
        ]


def test_step_is_found_again_when_only_the_time_left_differs() -> None:
    asked: dict[str, Param] = {"data": "churn#steps", "digest": "abc", "seed": 0}
    assert chaining.key_of("tune", asked) == chaining.key_of("tune", dict(reversed(asked.items())))
    others = [
        chaining.key_of("prune", asked),
        chaining.key_of("tune", {**asked, "digest": "abd"}),
        chaining.key_of("tune", {**asked, "seed": 1}),
    ]
    assert len({chaining.key_of("tune", asked), *others}) == 4


def test_findings_become_tables_lists_and_words_when_shown_on_a_page() -> None:
    text = "Steps:\n\n| step | why | s |\n|---|---|---|\n| [tune](#/experiments/1/runs/2) | a < b | 12 |\n\n- one `x`\n- two"
    shown = as_html(text)
    assert "<p>Steps:</p>" in shown
    assert '<td class="text">tune</td><td class="text">a &lt; b</td><td>12</td>' in shown
    assert shown.endswith("<ul class='plain'><li>one <code>x</code></li><li>two</li></ul>")


def test_first_model_is_found_again_when_the_chain_that_trained_it_died(tracking_uri: str) -> None:
    parent = tracking.open_parent("pipeline", {}, {})
    child = tracking.open_child(parent, "baseline", {}, {})
    model_id = tracking.create_model(parent, child, "pipeline-baseline", {}, {})
    assert step_runs.first_model("the key") == ("", 0.0)
    step_runs.mark_first(child, "the key", 81.25)
    # Its run never ended.
    assert step_runs.first_model("the key") == (model_id, 81.25)
    assert step_runs.first_model("another") == ("", 0.0)


def test_runs_of_a_step_are_ended_when_its_process_is_gone(tracking_uri: str) -> None:
    step = step_runs.open_step("tune", {})
    done, left = (tracking.open_child(tracking.Parent(step, tracking.experiment(), joined=True), name, {}, {}) for name in ("done", "left"))
    tracking.close(done, "FINISHED")
    step_runs.end_open(step)
    client = MlflowClient(tracking_uri)
    assert [client.get_run(run_id).info.status for run_id in (step, done, left)] == ["KILLED", "FINISHED", "KILLED"]


def test_limits_leave_time_for_the_verdict_when_a_step_trains() -> None:
    for recipe in pipeline.STEPS:
        kept = chain_limits.limits(recipe, 200.0, 5.0, network=True)
        known = next(entry for entry in entries() if entry.name == recipe).signature().names
        assert float(str(kept["time_budget_s"])) <= 0.6 * 200
        assert set(kept) - {"time_budget_s", "epochs", "budget_s"} <= set(known), recipe
    assert "method" not in chain_limits.limits("prune", 200.0, 0.0)
    assert chain_limits.limits("prune", 200.0, 5.0, network=True)["method"] == "structured"
    assert chain_limits.too_short("regularize", 100.0, 8.0)
    assert not chain_limits.too_short("regularize", 100.0, 0.0)
    assert not chain_limits.too_short("tune", 1.0, 8.0)


@pytest.mark.slow
def test_pipeline_keeps_what_passes_and_redoes_nothing_when_run_twice(tmp_path: Path, empty_store: Path) -> None:
    tiny = tiny_table(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "policy.yaml").write_text("validation_criteria: [{metric: speedup, min: 1.1}, {metric: label_flips, max: 3}]")
    client = MlflowClient(uri)
    given = {"model": tiny.model, "data": tiny.data, "policy": "policy.yaml", "steps": "baseline,compile,quantize", "register_as": "churn"}
    parents = []
    for promote in ("false", "true"):
        _run(tmp_path, uri, {**given, "time_budget_s": 1500, "budget_s": 20, "promote": promote})
        parents.append(_parents(client, "pipeline")[0])
    first, second = parents
    assert first.info.status == second.info.status == "FINISHED"
    assert first.data.metrics["gate_passed"] == 1.0
    # One run of the step, kept by both.
    (step,) = _parents(client, "compile")
    assert step.data.tags[step_runs.PIPELINE] == first.info.run_id
    for parent in parents:
        children = {run.info.run_name: run for run in _children(client, parent)}
        assert children["compile"].data.params["step_run"] == step.info.run_id
        assert children["step_baseline"].data.params["reason"] == "a model was given"
        assert children["step_quantize"].data.params["reason"] == "it is for networks, the data are a table"
        assert {"waterfall.png", "report.html"} <= {one.path for one in client.list_artifacts(parent.info.run_id)}
        assert f"/runs/{step.info.run_id})" in parent.data.tags["mlflow.note.content"]
    # The end is judged on rows that the step was not judged on.
    judged = [run.data.tags["mlflow_opt.data_digest"] for run in (_child(client, first, "compile"), _winner(client, step))]
    assert judged[0] != judged[1]
    assert len(client.search_model_versions("name = 'churn'")) == 3
    # What the registry compares with is the model at the beginning, not the step before the last.
    made, beginning = (_logged(_child(client, first, name)) for name in ("compile", "baseline"))
    assert client.get_logged_model(made).tags["mlflow_opt.source_model_id"] == beginning
    aliases = client.get_registered_model("churn").aliases
    assert {name: int(version) for name, version in aliases.items()} == {"challenger": 3, "champion": 3}
    assert "Version 3 of churn is champion now, and nothing stops others" in second.data.tags["mlflow.note.content"]
    assert "is champion now" not in first.data.tags["mlflow.note.content"]


def _run(folder: Path, uri: str, given: dict[str, object]) -> None:
    words = [f"--{name}={value}" for name, value in given.items()]
    environment = {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "recipes.pipeline", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _parents(client: MlflowClient, recipe: str) -> list[Run]:
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`mlflow_opt.recipe` = '{recipe}'", order_by=["attributes.start_time DESC"])
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags]


def _children(client: MlflowClient, parent: Run) -> list[Run]:
    return list(client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"))


def _child(client: MlflowClient, parent: Run, name: str) -> Run:
    return next(run for run in _children(client, parent) if run.info.run_name == name)


def _logged(run: Run) -> str:
    (made,) = run.outputs.model_outputs if run.outputs else []
    return str(made.model_id)


def _winner(client: MlflowClient, parent: Run) -> Run:
    return client.get_run(parent.data.tags[tracking.CHOSEN_RUN])
