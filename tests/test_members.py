from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, StackingClassifier, VotingClassifier, VotingRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlflow_opt import data
from mlflow_opt.ensembles import members, voting
from mlflow_opt.ensembles.members import Pool
from mlflow_opt.export import averaging, exporting
from mlflow_opt.records import Task
from mlflow_opt.tables import held_out
from mlflow_opt.tables.learners import with_threshold
from tests.model_zoo import BINARY, housing, number_columns, one_thread, save, telco

__all__ = ["one_thread"]

TABLE, LABELS = telco()
ROWS, Y = TABLE[number_columns(TABLE)].head(400).fillna(0), LABELS[:400]
LINEAR, TREE = LogisticRegression(max_iter=2000), DecisionTreeClassifier(max_depth=3, random_state=0)


def _pool(folder: Path, native: Any, rows: pd.DataFrame = ROWS, y: np.ndarray = Y) -> Pool:
    return members.pool_of(save(folder, native.fit(rows, y), rows))


def _voting(**kept: Any) -> VotingClassifier:
    return VotingClassifier([("linear", make_pipeline(StandardScaler(), LINEAR)), ("tree", TREE), ("bayes", GaussianNB())], **kept)


SOFT: dict[str, Any] = {
    "voting": _voting(voting="soft", weights=[1, 2, 3]),
    "voting in a pipeline": make_pipeline(StandardScaler(), _voting(voting="soft", weights=[1, 2, 3])),
    "voting with one dropped": _voting(voting="soft", weights=[1, 2, 3]).set_params(bayes="drop"),
    "voting in a search": GridSearchCV(_voting(voting="soft"), {"tree__max_depth": [2]}, cv=2),
    "bagging": BaggingClassifier(TREE, 5, random_state=0),
    "bagging on some columns": BaggingClassifier(TREE, 5, max_features=0.5, random_state=0),
    "bagging in a pipeline": make_pipeline(StandardScaler(), BaggingClassifier(TREE, 5, random_state=0)),
}


@pytest.mark.parametrize("name", SOFT)
def test_pool_of_finds_members_whose_average_is_the_ensemble_when_it_averages(name: str, tmp_path: Path) -> None:
    native = SOFT[name].fit(ROWS, Y)
    pool = _pool(tmp_path / "model", native)
    shares = np.array(pool.weights) / sum(pool.weights)
    answers = np.stack([one.scores(ROWS, BINARY) for one in pool.members])
    np.testing.assert_allclose(np.tensordot(shares, answers, axes=1), native.predict_proba(ROWS), atol=1e-12)


@pytest.mark.parametrize("name", SOFT)
def test_pool_members_export_to_what_they_answer_when_taken_out(name: str, tmp_path: Path) -> None:
    pool = _pool(tmp_path / "model", SOFT[name])
    graph = pool.members[-1].graph(ROWS.head(50), BINARY, tmp_path / "member")
    made = averaging.averaged([graph, graph], [1, 1])
    assert not exporting.compare(made, ROWS, pool.members[-1].scores(ROWS, BINARY))


def test_pool_of_leaves_out_the_last_estimator_when_stacking(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "model", StackingClassifier([("linear", LINEAR), ("tree", TREE)], LogisticRegression(), cv=2))
    assert (pool.kind, pool.names, pool.weights, pool.trainable) == ("stacking", ["linear", "tree"], (), True)


def test_pool_of_takes_the_threshold_off_when_the_ensemble_has_one(tmp_path: Path) -> None:
    fitted = _voting(voting="soft").fit(ROWS, Y)
    assert members.pool_of(save(tmp_path / "model", with_threshold(fitted, 0.3), ROWS)).names == ["linear", "tree", "bayes"]


def test_pool_joined_answers_the_weighted_mean_and_can_be_trained_again_when_members_are_estimators(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "model", _voting(voting="soft"))
    joined = pool.joined([2, 0, 1], BINARY)
    assert joined is not None
    answers = np.stack([one.scores(ROWS, BINARY) for one in pool.members])
    np.testing.assert_allclose(joined.scores(ROWS), np.tensordot([2 / 3, 0, 1 / 3], answers, axes=1))
    assert set(joined.estimator.predict(ROWS)) <= {0, 1}
    from sklearn.base import clone

    clone(joined.estimator).fit(ROWS, Y)


@pytest.mark.parametrize(
    ("native", "says"),
    [
        (RandomForestClassifier(3, random_state=0), "made smaller by `prune`"),
        (LINEAR, "got LogisticRegression"),
        (VotingClassifier([("ridge", RidgeClassifier()), ("tree", TREE)]), "ridge give none"),
        (_voting(voting="soft").set_params(bayes="drop", tree="drop"), "has 1"),
        (make_pipeline(StandardScaler(), BaggingClassifier(TREE, 3, max_features=0.5)), "max_features=1.0"),
    ],
    ids=["forest", "one model", "no probabilities", "one member", "columns of a pipeline"],
)
def test_pool_of_refuses_a_model_when_there_is_nothing_to_choose(native: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        _pool(tmp_path / "model", native)


def test_pool_of_versions_takes_models_of_different_flavours_when_their_columns_agree(tmp_path: Path) -> None:
    import lightgbm

    save(tmp_path / "linear", LINEAR.fit(ROWS, Y), ROWS)
    save(tmp_path / "trees", lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(ROWS, Y), ROWS, flavour="lightgbm")
    pool = members.pool_of_versions([str(tmp_path / "linear"), str(tmp_path / "trees")], 1)
    assert pool.trainable
    assert all(one.scores(ROWS, BINARY).shape == (400, 2) for one in pool.members)
    assert pool.joined([1, 1], BINARY) is None


def test_pool_of_versions_refuses_when_columns_differ_or_one_is_named(tmp_path: Path) -> None:
    save(tmp_path / "linear", LINEAR.fit(ROWS, Y), ROWS)
    save(tmp_path / "fewer", TREE.fit(ROWS.iloc[:, :3], Y), ROWS.iloc[:, :3])
    with pytest.raises(ValueError, match="same columns"):
        members.pool_of_versions([str(tmp_path / "linear"), str(tmp_path / "fewer")], 1)
    with pytest.raises(ValueError, match="at least two"):
        members.pool_of_versions([str(tmp_path / "linear")], 1)


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> data.Split:
    file = tmp_path_factory.mktemp("churn") / "churn.parquet"
    ROWS.assign(target=Y).to_parquet(file)
    return data.split(data.read(str(file)))


def test_held_out_answers_are_of_models_that_have_not_seen_the_row_when_members_are_retrained(churn: data.Split, tmp_path: Path) -> None:
    deep = DecisionTreeClassifier(random_state=0)
    pool = _pool(tmp_path / "model", VotingClassifier([("deep", deep), ("linear", LINEAR)], voting="soft"))
    answers, labels = held_out.held_out(pool, churn, 3)
    assert len(labels) == len(churn.train.labels) + len(churn.calibration.labels)
    right = (answers[0].argmax(axis=1) == labels).mean()
    assert right < 0.85, "a tree without a bound knows every row that it was trained on"


def test_held_out_uses_calibration_rows_when_members_cannot_be_retrained(churn: data.Split, tmp_path: Path) -> None:
    answers, labels = held_out.held_out(_pool(tmp_path / "model", BaggingClassifier(TREE, 3, random_state=0)), churn, 3)
    assert answers.shape == (3, len(churn.calibration.labels), 2)
    assert labels.tolist() == churn.calibration.labels.tolist()


def test_held_out_gives_values_when_the_task_is_a_regression(tmp_path: Path) -> None:
    rows, values = housing()
    rows.head(400).assign(target=values[:400]).to_parquet(tmp_path / "housing.parquet")
    split = data.split(data.read(str(tmp_path / "housing.parquet")))
    native = VotingRegressor([("ridge", Ridge()), ("tree", DecisionTreeRegressor(max_depth=4, random_state=0))])
    answers, target = held_out.held_out(_pool(tmp_path / "model", native, rows.head(400), values[:400]), split, 2)
    assert answers.shape == (2, len(target))


def test_train_voting_refuses_data_when_they_are_arrays_or_infinite(churn: data.Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="works on tables"):
        held_out.as_table({"pixels": np.zeros((2, 2))})
    from dataclasses import replace

    rows = held_out.table(churn.train).assign(monthly_charges=np.inf)
    with pytest.raises(ValueError, match="monthly_charges hold infinite"):
        voting.train_voting(replace(churn, train=replace(churn.train, rows=rows)), tmp_path / "never", 0)


@pytest.mark.parametrize("task", [BINARY, Task("regression")], ids=["classes", "values"])
def test_voting_members_are_seven_of_their_own_kind_when_made(task: Task) -> None:
    made = voting.members(TABLE, task, 0)
    assert len({type(one.steps[-1][1]).__name__ for one in made.values()}) >= (7 if task.classes else 6)


def test_voting_columns_are_sorted_by_kind_when_some_are_dates() -> None:
    table = pd.DataFrame({"when": pd.to_datetime(["2020-01-01"]), "text": ["a"], "flag": [True], "count": [1], "empty": [np.nan]})
    assert voting.kinds(table) == (["text"], ["count", "empty"], ["flag"])
