from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import infer_signature
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_opt.runs import candidates
from mlflow_opt.signature import COULD_NOT_RUN, execute
from recipes.select_features import names_in, select_features, sizes_of

POLICY = "validation_criteria:\n  - {metric: roc_auc, max_drop: 0.05}\n  - {metric: speedup, min: 0.01}\n"
QUICK: dict[str, Any] = {"methods": "gain,mutual_information", "folds": 2, "bootstraps": 2, "budget_s": 5.0}


def make_table(folder: Path, rows: int = 900, **more: Any) -> Path:
    """Two columns and a text that matter, two of noise, one that is the same everywhere."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"noise{at}": rng.normal(size=rows) for at in range(2)})
    table = table.assign(a=rng.normal(size=rows), b=rng.normal(size=rows), town=rng.choice(["x", "y", "z"], rows), same=1.0)
    score = table["a"] + table["b"] + (table["town"] == "x")
    target = (score + 0.7 * rng.normal(size=rows) > 0.4).astype(int)
    table = table.assign(**{"target": target, **{name: make(table, score) for name, make in more.items()}})
    table.to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def make_model(data: Path, folder: Path) -> Path:
    """A pipeline of a user's own, whose encoder refuses texts that it does not know."""
    rows = pd.read_parquet(data)
    features, labels = rows.drop(columns="target"), rows["target"]
    encode = make_column_transformer((OneHotEncoder(), ["town"]), (StandardScaler(), ["noise0", "noise1", "a", "b"]))
    model = make_pipeline(encode, LogisticRegression()).fit(features, labels)
    kept = {"skops_trusted_types": ["numpy.dtype"], "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.save_model(model, str(folder / "model"), signature=infer_signature(features, model.predict(features)), **kept)
    return folder / "model"


def runs_of(uri: str) -> tuple[Run, dict[str, Run], dict[str, Run]]:
    """Give the newest parent run, its variants and its trials, by name."""
    client = MlflowClient(uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    mine = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    variants = {run.data.tags["mlflow_opt.variant"]: run for run in mine if "mlflow_opt.variant" in run.data.tags}
    return parent, variants, {run.data.tags["mlflow_opt.trial"]: run for run in mine if "mlflow_opt.trial" in run.data.tags}


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Allow much, and time variants in two processes instead of three: no figure is looked at here."""
    monkeypatch.setattr(candidates, "SESSIONS", 2)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return str(tmp_path / "policy.yaml")


@pytest.mark.slow
def test_select_features_registers_fewer_columns_that_take_the_full_table_when_some_are_noise(
    tracking_uri: str, tmp_path: Path, policy: str
) -> None:
    data = make_table(tmp_path)
    model = make_model(data, tmp_path)
    verdict = select_features(model=str(model), data=str(data), policy=policy, register_as="few", **QUICK)
    assert verdict is not None
    assert verdict.passed
    parent, variants, trials = runs_of(tracking_uri)
    chosen = next(run for run in variants.values() if run.data.tags.get("mlflow_opt.standing") == "chosen")
    assert set(chosen.data.params["columns"].split(",")) <= {"a", "b", "town"}
    assert {"baseline", "runtime_only", "all_columns"} < set(variants)
    methods = {run.data.params["method"] for run in trials.values()}
    assert methods == {"gain", "mutual_information"}
    wanted = {"drop_roc_auc", "drop_roc_auc_lo", "drop_roc_auc_hi", "stability", "train_seconds", "train_speedup", "features"}
    assert all(wanted <= set(run.data.metrics) for run in trials.values())
    assert "same" not in ",".join(run.data.params["columns"] for run in trials.values())
    artifacts = {item.path for item in MlflowClient(tracking_uri).list_artifacts(parent.info.run_id)}
    assert {"features_quality.png", "features_stability.png", "features_shap.png", "features.csv", "report.html"} <= artifacts
    served, rows = mlflow.pyfunc.load_model("models:/few@challenger"), pd.read_parquet(data).drop(columns="target")
    np.testing.assert_array_equal(served.predict(rows), served.predict(rows.assign(noise0=0.0, same=7.0)))


@pytest.mark.slow
def test_select_features_takes_a_text_nobody_has_seen_when_its_column_was_dropped(tracking_uri: str, tmp_path: Path, policy: str) -> None:
    data = make_table(tmp_path)
    model = make_model(data, tmp_path)
    select_features(model=str(model), data=str(data), policy=policy, register_as="few", keep="a", sizes="1,2", **QUICK)
    _, variants, _ = runs_of(tracking_uri)
    without = {name: run for name, run in variants.items() if "town" not in run.data.params.get("columns", "town")}
    assert without, "the sets of one and two columns leave the text out"
    assert not any("no drop-in" in run.data.tags.get("mlflow_opt.standing", "") for run in without.values())


@pytest.mark.slow
def test_select_features_names_a_leak_and_does_without_when_told(
    tracking_uri: str, tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_table(tmp_path, late=lambda table, score: np.where(score + table["noise0"] * 0.01 > 0.4, 2.0, 1.0))
    table = pd.read_parquet(data)
    table.assign(late=table["target"] * 3.0).to_parquet(data)
    with caplog.at_level(logging.WARNING):
        select_features(data=str(data), policy=policy, methods="gain", folds=2, bootstraps=0, sizes="1", budget_s=2.0)
    assert "'late' predicts the target almost alone" in caplog.text
    assert "'late' predicts the target almost alone" in runs_of(tracking_uri)[0].data.tags["mlflow.note.content"]
    select_features(data=str(data), policy=policy, methods="gain", folds=2, bootstraps=0, sizes="3", exclude="late", budget_s=2.0)
    _, variants, trials = runs_of(tracking_uri)
    assert variants["baseline"].data.metrics["roc_auc"] < 0.99, "the baseline that is trained here does without it too"
    assert all("late" not in run.data.params["columns"] for run in trials.values())


@pytest.mark.slow
def test_select_features_tries_something_and_says_what_it_left_out_when_there_is_a_second(
    tracking_uri: str, tmp_path: Path, policy: str
) -> None:
    select_features(data=str(make_table(tmp_path)), policy=policy, time_budget_s=0.01, budget_s=2.0)
    parent, variants, trials = runs_of(tracking_uri)
    assert parent.info.status == "FINISHED"
    assert trials
    assert [name for name in variants if name.startswith("features_")]
    assert "raise time_budget_s" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_select_features_works_with_a_regression_when_columns_are_odd(tracking_uri: str, tmp_path: Path, policy: str) -> None:
    data = make_table(
        tmp_path,
        target=lambda table, score: score.to_numpy() + 0.5 * np.random.default_rng(1).normal(size=len(table)),
        endless=lambda table, score: np.where(table["noise1"] > 1, np.inf, table["noise1"]),
        none=lambda table, score: np.nan,
        copy=lambda table, score: table["a"],
        code=lambda table, score: [f"c{at % 400}" for at in range(len(table))],
    )
    select_features(data=str(data), **QUICK)
    parent, _, trials = runs_of(tracking_uri)
    text = parent.data.tags["mlflow.note.content"]
    assert "Without any value, so not used: none." in text
    assert "copy (= a)" in text
    assert "Infinite values in endless" in text
    assert all("rel_drop_rmse_hi" in run.data.metrics for run in trials.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods=magic"], "methods must name some of gain"),
        (["--folds=1"], "folds >= 2"),
        (["--exclude=nobody"], "exclude must name some of"),
        (["--keep=nobody"], "keep must name some of"),
        (["--sizes=99"], "sizes must be whole numbers from 1 to"),
        (["--target=nobody"], "the target must be a column"),
        (["--data=nowhere.parquet"], "data must be a file"),
    ],
    ids=["method", "folds", "exclude", "keep", "sizes", "target", "data"],
)
def test_select_features_says_what_is_wrong_when_a_parameter_is(
    words: list[str], message: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words if "--data" in str(words) else [f"--data={make_table(tmp_path)}", *words]
    assert execute(select_features, given) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def write(folder: Path, table: pd.DataFrame) -> str:
    table.to_csv(folder / "bad.csv", index=False)
    return str(folder / "bad.csv")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.assign(target=1), "at least two different values"),
        (lambda table: table.head(20), "at least 50 rows"),
        (lambda table: table.assign(target=np.where(table["noise0"] > 1, np.nan, table["target"])), "missing values"),
        (lambda table: table[["target", "a"]], "more columns to choose from"),
        (lambda table: pd.concat([table, table[["a"]]], axis=1), "column names must differ"),
    ],
    ids=["one class", "20 rows", "labels missing", "one column", "duplicate names"],
)
def test_select_features_gives_advice_when_the_table_is_bad(
    spoil: Any, message: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path, spoil(pd.read_parquet(make_table(tmp_path))))
    assert execute(select_features, [f"--data={data}", "--methods=gain"]) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_sizes_of_keeps_what_must_stay_when_sizes_are_chosen() -> None:
    assert min(sizes_of("", 40, 5)) == 5
    with pytest.raises(ValueError, match="nothing to select"):
        sizes_of("", 3, 3)


def test_names_in_refuses_when_a_name_is_unknown() -> None:
    with pytest.raises(ValueError, match="keep must name some of age, town, got agee"):
        names_in("agee", "keep", ["age", "town"])
