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
from sklearn.metrics import roc_auc_score

from mlflow_opt import data, models
from mlflow_opt.records import Task
from mlflow_opt.runs import candidates
from mlflow_opt.signature import COULD_NOT_RUN, execute
from mlflow_opt.tables import first_fits, learners, table_audit
from mlflow_opt.tables.learners import Fitted
from recipes.baseline import audited, baseline, linear_trainer
from tests.tiny import TELCO


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time variants in two processes instead of three: no figure is looked at here."""
    monkeypatch.setattr(candidates, "SESSIONS", 2)


def churn(folder: Path, rows: int = 1500) -> Path:
    pd.read_parquet(TELCO).head(rows).drop(columns="split", errors="ignore").to_parquet(folder / "churn.parquet")
    return folder / "churn.parquet"


def table(rows: int = 700) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "town": rng.choice(["x", "y", "z"], rows)})
    made.loc[rng.random(rows) < 0.1, "a"] = np.nan
    made.loc[rng.random(rows) < 0.1, "town"] = None
    return made


def write(folder: Path, made: pd.DataFrame, name: str = "table.parquet") -> str:
    made.to_parquet(folder / name)
    return str(folder / name)


def runs_of(uri: str) -> tuple[Run, dict[str, Run]]:
    client = MlflowClient(uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    mine = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {str(run.info.run_name): run for run in mine}


@pytest.mark.slow
def test_baseline_registers_the_better_model_as_version_one_when_given_a_name(tracking_uri: str, tmp_path: Path, quick: None) -> None:
    table = churn(tmp_path)
    baseline(data=str(table), register_as="churn")
    parent, runs = runs_of(tracking_uri)
    assert {"baseline", "lightgbm", "constant"} == set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    better = max(("baseline", "lightgbm"), key=lambda name: runs[name].data.metrics["roc_auc"])
    version = MlflowClient(tracking_uri).get_model_version("churn", "1")
    assert version.run_id == runs[better].info.run_id
    assert runs["constant"].data.metrics["roc_auc"] == pytest.approx(0.5)
    text = parent.data.tags["mlflow.note.content"]
    assert "The classes are unequal" in text
    assert "Trees over the linear model" in text
    assert "The threshold's own gain, same trees" in text
    # What comes next takes it: the model can be trained again, and serves the table as it is.
    assert learners.learner_of(models.load("models:/churn/1")).columns
    rows = pd.read_parquet(table).drop(columns="target").head(20)
    assert set(mlflow.pyfunc.load_model("models:/churn/1").predict(rows)) <= {0, 1}


@pytest.mark.slow
def test_baseline_answers_from_a_threshold_when_f1_decides(tracking_uri: str, tmp_path: Path, quick: None) -> None:
    made = table(1200)
    rare = made["a"].fillna(0) + made["b"] + (made["town"] == "x") + np.random.default_rng(1).normal(size=1200) > 2.3
    baseline(data=write(tmp_path, made.assign(target=rare.astype(int))), register_as="rare", choose_by="f1")
    parent, runs = runs_of(tracking_uri)
    assert {"baseline", "lightgbm", "linear_threshold", "lightgbm_threshold", "constant"} == set(runs)
    f1 = {name: run.data.metrics["f1"] for name, run in runs.items() if name != "constant"}
    best = max(f1, key=lambda name: f1[name])
    assert best.endswith("_threshold")
    assert runs["lightgbm"].data.metrics["roc_auc"] == runs["lightgbm_threshold"].data.metrics["roc_auc"]
    assert "The threshold's own gain, same trees" in parent.data.tags["mlflow.note.content"]
    version = MlflowClient(tracking_uri).get_model_version("rare", "1")
    assert version.run_id == runs[best].info.run_id
    loaded = models.load("models:/rare/1")
    assert loaded.threshold == pytest.approx(float(runs[best].data.params["threshold"]), abs=1e-5)
    rows = made.head(300)
    served = mlflow.pyfunc.load_model("models:/rare/1").predict(rows)
    np.testing.assert_array_equal(served, (loaded.predict(rows)[:, 1] >= loaded.threshold).astype(int))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_baseline_trains_both_models_when_the_target_is_not_binary(kind: str, tracking_uri: str, tmp_path: Path, quick: None) -> None:
    made = table()
    score = made["a"].fillna(0) * 2 + made["b"] + (made["town"] == "x")
    target = pd.cut(score, [-np.inf, -1, 1, np.inf], labels=["low", "mid", "high"]).astype(str) if kind == "multiclass" else score
    baseline(data=write(tmp_path, made.assign(target=target)), register_as="first")
    _, runs = runs_of(tracking_uri)
    metric = "accuracy" if kind == "multiclass" else "r2"
    for name in ("baseline", "lightgbm"):
        assert runs[name].data.metrics[metric] > runs["constant"].data.metrics[metric] + 0.2
    assert len(mlflow.pyfunc.load_model("models:/first/1").predict(made.head(5))) == 5


@pytest.mark.slow
def test_baseline_trains_and_names_them_when_columns_are_odd(tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = table(900)
    target = (made["b"] + (made["town"] == "x") + np.random.default_rng(1).normal(size=900) > 0.3).astype(int)
    made = made.assign(
        same=1,
        none=np.nan,
        nothing=pd.Series([None] * 900, dtype=object),
        copy=made["b"],
        endless=np.where(made["b"] > 1, np.inf, made["b"] * 2),
        code=[f"c{at}" for at in np.random.default_rng(2).integers(0, 1000, 900)],
        when=pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(900), unit="h"),
        late=np.where(target == 1, "gone", "here"),
        **{"odd [name], {really}": made["a"]},
    )
    with caplog.at_level(logging.WARNING):
        baseline(data=write(tmp_path, made.assign(target=target)), register_as="odd")
    parent, runs = runs_of(tracking_uri)
    text = parent.data.tags["mlflow.note.content"]
    assert "'late' predicts the target almost alone" in text
    assert "'late' predicts the target almost alone" in caplog.text
    assert "not used: none, nothing." in text
    assert "The same value in every row, so not used: same." in text
    assert "copy (= b)" in text
    assert "Infinite values in endless" in text
    assert "selection rows have a value of 'code' that training has not seen" in text
    assert not any("no drop-in" in run.data.tags.get("mlflow_opt.standing", "") for run in runs.values())
    fresh = made.head(6).assign(code="never seen", town="nowhere")
    assert len(mlflow.pyfunc.load_model("models:/odd/1").predict(fresh)) == 6


def test_audited_leaves_a_column_out_when_it_is_excluded(tmp_path: Path) -> None:
    made = table()
    target = (made["b"] + np.random.default_rng(1).normal(size=700) > 0).astype(int)
    split = data.split(data.read(write(tmp_path, made.assign(late=target * 2.0, target=target))))
    assert audited(split, "")[1].leaks
    rows, audit = audited(split, "late, a")
    assert list(rows) == ["b", "town"]
    assert not audit.leaks
    assert learners.learner_of(models.load(str(linear_trainer("late,a", 0.0)(split, tmp_path / "model", 0)))).columns == ("b", "town")


@pytest.fixture(scope="module")
def split() -> data.Split:
    return data.split(data.read("telco_churn"))


def trees(split: data.Split, time_budget_s: float) -> first_fits.First:
    rows = pd.DataFrame(split.train.rows)
    learner = first_fits.tree_learner(rows, split.task, table_audit.audit(rows, split.train.labels, split.task), 0)
    return first_fits.fit_trees(learner, split.train, split.calibration, split.task, 0, time_budget_s)


def test_fit_trees_holds_every_train_row_out_once_when_calibration_rows_are_few(split: data.Split) -> None:
    first = trees(split, 0.0)
    assert first.held is not None
    assert len(first.held.labels) == len(split.train.labels)
    assert sorted(first.held.labels.tolist()) == sorted(split.train.labels.tolist())
    assert 10 < first.fitted.last.get_params()["n_estimators"] < first_fits.MOST_ROUNDS
    held_out = roc_auc_score(first.held.labels, first.held.scores[:, 1])
    assert 0.8 < held_out < roc_auc_score(split.train.labels, first.fitted.scores(pd.DataFrame(split.train.rows))[:, 1])


def test_fit_trees_stops_on_calibration_rows_when_there_is_hardly_time(split: data.Split) -> None:
    first = trees(split, 0.01)
    assert first.held is not None
    assert "calibration rows" in first.held.how
    assert first.fitted.last.n_estimators_ <= 100


def test_thresholded_answers_more_positives_when_they_are_rarer(split: data.Split) -> None:
    first = trees(split, 0.01)
    made = first_fits.thresholded(first, split.task, 0)
    assert made.threshold < 0.5
    rows = pd.DataFrame(split.selection.rows)
    np.testing.assert_array_equal(made.estimator.predict(rows), (made.scores(rows)[:, 1] >= made.threshold).astype(int))


def test_linear_pipeline_answers_when_a_row_is_odd(split: data.Split) -> None:
    rows = pd.DataFrame(split.train.rows)
    learner = first_fits.linear_learner(rows, split.task, table_audit.audit(rows, split.train.labels, split.task))
    first = first_fits.fit_linear(learner, split.train, split.task, 0, held=False, time_budget_s=1.0)
    odd = rows.head(2).assign(contract="no such contract", total_charges=np.nan)
    assert np.isfinite(first.fitted.scores(odd)).all()


@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_constant_scores_are_the_mean_or_the_shares_when_asked(kind: str) -> None:
    if kind == "regression":
        assert first_fits.constant_scores(np.array([1.0, 3.0]), Task("regression"), 2).tolist() == [2.0, 2.0]
    else:
        assert first_fits.constant_scores(np.array([0, 1, 2, 2]), Task("multiclass", (0, 1, 2)), 1).tolist() == [[0.25, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (lambda made: made.assign(target=1), [], "at least two different values"),
        (lambda made: made.head(20), [], "at least 50 rows"),
        (lambda made: made.assign(target=np.where(made["b"] > 1, np.nan, made["target"])), [], "missing values"),
        (lambda made: made[["target"]].assign(same=1, when=pd.date_range("2024", periods=700)), [], "a column that varies"),
        (lambda made: made, ["--exclude=nobody"], "exclude must name columns of the data, got nobody"),
        (lambda made: made, ["--exclude=a,b,town"], "exclude must leave a column"),
        (lambda made: made.assign(target=made["b"]), ["--choose_by=f1"], "needs a target of classes"),
        (lambda made: made, ["--target=nobody"], "the target must be a column"),
        (lambda made: made, ["--data=fashion_mnist", "--target=target"], "trains models of tables"),
    ],
    ids=["one class", "20 rows", "labels missing", "dates only", "exclude", "exclude all", "f1 of numbers", "target", "pictures"],
)
def test_baseline_gives_advice_when_what_it_gets_is_bad(
    spoil: Any, words: list[str], message: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = table()
    bad = write(tmp_path, spoil(made.assign(target=(made["b"] > 0).astype(int))))
    assert execute(baseline, words if "--data" in str(words) else [f"--data={bad}", *words]) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_baseline_refuses_when_names_are_duplicate(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = table().assign(target=np.arange(700) % 2)
    pd.concat([made, made[["a"]]], axis=1).to_csv(tmp_path / "twice.csv", index=False)
    assert execute(baseline, [f"--data={tmp_path / 'twice.csv'}"]) == COULD_NOT_RUN
    assert "column names must differ" in capsys.readouterr().err


@pytest.mark.parametrize(("budget", "least", "most"), [(0.0, 1000, 1000), (1e-6, 20, 20), (1e6, 1000, 1000)], ids=["none", "tiny", "ample"])
def test_affordable_rounds_fit_the_time_when_there_is_a_budget(budget: float, least: int, most: int) -> None:
    assert least <= first_fits.affordable(lambda rounds: Fitted(None, (), {}, 0.001 * rounds), budget) <= most


def test_unseen_counts_rows_by_column_when_values_are_new() -> None:
    train = pd.DataFrame({"town": ["a", "b", None], "n": [1.0, 2.0, 3.0]})
    other = pd.DataFrame({"town": ["a", "c", "d", None], "n": [9.0, 9.0, 9.0, 9.0]})
    assert dict(first_fits.unseen(train, other)) == {"town": 2}
