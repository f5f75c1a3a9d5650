from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt import models, session
from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Quantity, Task
from mlflow_opt.runs.outcome import Row
from mlflow_opt.search import searching, studies
from mlflow_opt.search.searching import Budget, Tried
from mlflow_opt.signature import execute
from mlflow_opt.tables import learners
from mlflow_opt.workbench.trial_runs import TrialRuns, default_journal, written
from recipes.tune import advise, check, lift, tune
from tests.search_jobs import plan
from tests.tiny import TELCO, Tiny

ROOT = Path(__file__).resolve().parent.parent
# Nothing can meet it, so that no verdict is measured.
IMPOSSIBLE = "validation_criteria:\n  - {metric: speedup, min: 1000000}\n"


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Give numbers of some customers and thirty trees: quick to train again, and quick to time."""
    import mlflow.lightgbm
    from lightgbm import LGBMClassifier
    from mlflow.models import infer_signature

    folder = tmp_path_factory.mktemp("churn")
    table = pd.read_parquet(TELCO).head(600).select_dtypes("number").fillna(0).astype(float)
    table["target"] = table["target"].astype(int)
    table.to_parquet(folder / "churn.parquet")
    rows = table.drop(columns="target")
    model = LGBMClassifier(n_estimators=30, num_leaves=7, random_state=0, n_jobs=1, deterministic=True, verbose=-1).fit(
        rows, table["target"]
    )
    signature = infer_signature(rows, model.predict(rows))
    mlflow.lightgbm.save_model(model, str(folder / "model"), signature=signature, pip_requirements=["lightgbm"])
    return Tiny(folder / "churn.parquet", "target", folder / "model")


def runs_of(uri: str) -> tuple[list[Run], list[Run], list[Run]]:
    """Give parents, variants and trials, in the order they were begun."""
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=5000, order_by=["start_time"])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    variants = [run for run in runs if "mlflow_opt.variant" in run.data.tags]
    return parents, variants, [run for run in runs if "mlflow_opt.trial" in run.data.tags]


def test_lift_is_positive_when_the_candidate_is_better() -> None:
    labels = np.arange(400) % 2
    rng = np.random.default_rng(0)
    probabilities = [np.clip(labels * strength + rng.random(400) * 0.6, 0, 1) for strength in (0.5, 0.1)]
    better, worse = (score(Task("binary", (0, 1)), labels, np.column_stack([1 - p, p])) for p in probabilities)
    found = lift(better, worse, "roc_auc", 0.95, 0)
    assert found.lo > 0
    assert found.lo < found.value < found.hi
    assert lift(worse, better, "roc_auc", 0.95, 0).hi < 0


@pytest.mark.parametrize(
    ("ends", "word"),
    [((0.01, 0.005, 0.02), "a gain"), ((0.001, -0.01, 0.01), "not resolved"), ((-0.02, -0.03, -0.01), "a loss")],
    ids=["gain", "unresolved", "loss"],
)
def test_advise_says_whether_the_lift_is_sure_when_it_has_an_interval(ends: tuple[float, float, float], word: str) -> None:
    rows = [Row("baseline", {}), Row("runtime_only", {"speedup": 20.0}), Row("own_parameters", {"latency_p50_ms": 0.1})]
    said = " ".join(advise([*rows, Row("tuned_1", {"latency_p50_ms": 0.2})], Quantity(*ends, 500), "tuned_1", "roc_auc"))
    assert word in said
    assert "20.0x" in said
    assert "2.00x the time" in said


def test_check_refuses_a_password_when_it_would_be_logged(tracking_uri: str) -> None:
    with pytest.raises(ValueError, match="must hold no password"):
        check(Budget(10), 5, 3, "postgresql://me:secret@host/db", "")
    assert execute(tune, ["--storage=postgresql://me:secret@host/db"]) == 3
    assert runs_of(tracking_uri)[0] == []


def test_check_refuses_a_study_that_is_no_name_when_given(tracking_uri: str) -> None:
    with pytest.raises(ValueError, match="must be a name of letters"):
        check(Budget(10), 5, 3, "", "it's mine")


def _bad(kind: str, folder: Path) -> tuple[list[str], str]:
    table = pd.read_parquet(TELCO).head(600).drop(columns="split")
    path = folder / f"{kind}.parquet"
    if kind == "twenty_rows":
        table = table.head(20)
    if kind == "one_class":
        table["target"] = 1
    if kind == "missing_labels":
        table["target"] = table["target"].astype(float).where(table.index != 3)
    table.to_parquet(path)
    np.savez(folder / "arrays.npz", images=np.random.default_rng(0).random((400, 4, 4), np.float32), target=np.arange(400) % 2)
    (folder / "spaces.py").write_text("def wrong(trial):\n    return {'leafs': trial.suggest_int('leafs', 2, 9)}\n")
    given = [f"--data={folder / 'arrays.npz'}" if kind == "arrays" else f"--data={path}"]
    given += {"strange_parameter": [f"--space={folder / 'spaces.py'}:wrong"], "one_fold": ["--folds=1"], "ray": ["--executor=ray"]}.get(
        kind, []
    )
    said = {
        "twenty_rows": "at least 250 distinct rows",
        "one_class": "at least two different values",
        "missing_labels": "must not have missing values",
        "arrays": "tune trains models of tables",
        "strange_parameter": "must give parameters of LGBMClassifier, got leafs",
        "one_fold": "folds must be at least 2",
        "ray": "comes later",
    }
    return given, said[kind]


@pytest.mark.parametrize("kind", ["twenty_rows", "one_class", "missing_labels", "arrays", "strange_parameter", "one_fold", "ray"])
def test_tune_says_what_to_do_when_input_is_bad(
    kind: str, churn: Tiny, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, said = _bad(kind, tmp_path)
    needs_model = kind == "strange_parameter"
    assert execute(tune, [*given, *([f"--model={churn.model}"] if needs_model else [])]) == 3
    shown = capsys.readouterr().err.splitlines()[-1]
    assert said in shown
    assert "Traceback" not in shown


def test_trial_runs_write_each_trial_once_when_asked_twice(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    what = plan(tmp_path)
    tried = [Tried(number, "complete", (number / 100,), {"x": 0.5, "depth": None}, {"roc_auc": 0.5}, 1.0) for number in range(40)]
    given = {"data": str(churn.data), "target": churn.target, "model": str(churn.model), "seed": 0, "policy": ""}
    with session.start("tune", given, aim="quality") as work:
        runs = TrialRuns(work, what, ("roc_auc",), 40)
        for one in [*tried, *tried]:
            runs.write(one)
        assert written(what.name) == set(range(40))
        again = TrialRuns(work, what, ("roc_auc",), 40)
        again.write(tried[3])
        again.write(Tried(40, "failed", (), {}, why="too deep"))
    trials = runs_of(tracking_uri)[2]
    assert len(trials) == 41
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert trials[0].data.params["depth"] == "none"
    assert trials[7].data.metrics["roc_auc"] == pytest.approx(0.07)
    assert trials[40].data.params["why"] == "too deep"


def test_default_journal_lies_beside_the_runs_when_they_are_in_sqlite(tracking_uri: str) -> None:
    assert default_journal().parent == Path(tracking_uri.removeprefix("sqlite:///")).parent


@pytest.mark.slow
def test_tune_proves_its_lift_and_registers_when_the_policy_is_met(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria:\n  - {metric: roc_auc, max_drop: 0.3}\n")
    verdict = tune(
        model=str(churn.model),
        data=str(churn.data),
        policy=str(policy),
        register_as="churn",
        trials=9,
        finalists=2,
        budget_s=3.0,
        pruner="none",
    )
    assert verdict is not None
    (parent,), variants, trials = runs_of(tracking_uri)
    assert {"baseline", "runtime_only", "own_parameters", "tuned_1", "tuned_2"} == {run.info.run_name for run in variants}
    assert len(trials) == 9
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert trials[0].data.params["num_leaves"] == "7", "the model's own parameters come first"
    lifted = {name: parent.data.metrics[f"lift_roc_auc{name}"] for name in ("", "_lo", "_hi", "_n")}
    assert lifted["_lo"] <= lifted[""] <= lifted["_hi"]
    assert lifted["_n"] == pytest.approx(120, abs=15), "a fifth of the rows"
    client = MlflowClient(tracking_uri)
    artifacts = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert {"search.html", "search_history.png", "search_importance.png", "search_parallel.png"} <= artifacts
    version = client.get_model_version_by_alias("churn", "challenger")
    # What was tuned can be tuned again.
    assert learners.learner_of(models.load(f"models:/churn/{version.version}")).kind == "LGBMClassifier"


@pytest.mark.slow
def test_tune_loses_and_repeats_no_trial_when_it_was_killed(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    given = {"model": churn.model, "data": churn.data, "policy": _impossible(tmp_path), "trials": 30, "finalists": 1}
    process = _start(given)
    _await_trials(tracking_uri, 4, process)
    process.kill()
    process.wait()
    before = {int(run.data.params["trial"]) for run in runs_of(tracking_uri)[2]}
    assert _start(given).wait(300) == 0
    trials = runs_of(tracking_uri)[2]
    numbers = [int(run.data.params["trial"]) for run in trials]
    assert before <= set(numbers)
    assert len(numbers) == len(set(numbers)) == 30
    assert len({run.data.tags["mlflow.parentRunId"] for run in trials}) == 2


@pytest.mark.slow
def test_tune_keeps_the_best_so_far_when_it_is_interrupted(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    given = {"model": churn.model, "data": churn.data, "policy": _impossible(tmp_path), "trials": 2000, "finalists": 1}
    process = _start(given)
    _await_trials(tracking_uri, 3, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0
    (parent,), variants, trials = runs_of(tracking_uri)
    assert parent.info.status == "FINISHED"
    assert "tuned_1" in {run.info.run_name for run in variants}
    assert 3 <= len(trials) < 2000
    assert "ended before its 2000 trials" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_tune_searches_quality_and_latency_when_two_workers_train(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    given = {"model": churn.model, "data": churn.data, "policy": _impossible(tmp_path), "trials": 4, "finalists": 2, "workers": 2}
    assert execute(tune, [f"--{name}={value}" for name, value in {**given, "goal": "quality_and_latency", "folds": 2}.items()]) == 0
    (parent,), _, trials = runs_of(tracking_uri)
    assert len(trials) == 4
    assert all(run.data.metrics["relative_latency"] > 0 for run in trials if run.data.params["state"] == "complete")
    assert "search_pareto.png" in {one.path for one in MlflowClient(tracking_uri).list_artifacts(parent.info.run_id)}
    study = optuna.load_study(study_name=trials[0].data.params["study"], storage=studies.storage_at(str(default_journal())))
    assert [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {one.number for one in searching.finished(study)} == {int(run.data.params["trial"]) for run in trials}


def _impossible(folder: Path) -> str:
    (folder / "impossible.yaml").write_text(IMPOSSIBLE)
    return str(folder / "impossible.yaml")


def _start(given: dict[str, object]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recipes.tune", *(f"--{name}={value}" for name, value in given.items())]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)


def _await_trials(uri: str, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if len(runs_of(uri)[2]) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{count} trials were to be written, the process ended with {process.poll()}")
