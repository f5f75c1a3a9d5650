from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from mlflow_opt.records import Task
from mlflow_opt.search import search_spaces
from mlflow_opt.search.search_spaces import choice, dimensions_for, distributions_of, fixed_for, own_values, real, whole, within
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.model_families import other_learners
from mlflow_opt.tables.table_space import Family, Space, families_of
from tests.tiny import TELCO

BINARY = Task("binary", (0, 1))


def boosted(**params: Any) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(**{"verbose": -1, "n_jobs": 1, **params})


def learner(estimator: Any) -> Learner:
    return Learner(estimator, ("a", "b"))


def table(rows: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows)})
    return made, (made["a"] + rng.normal(size=rows) > 0).to_numpy().astype(int)


@pytest.mark.parametrize(
    ("kind", "params", "names"),
    [
        ("LGBMClassifier", boosted().get_params(), {"learning_rate", "num_leaves", "min_child_samples", "reg_lambda", "subsample"}),
        ("RandomForestRegressor", {"n_estimators": 10, "max_features": 1.0, "min_samples_leaf": 1, "max_depth": None}, {"max_features"}),
        ("LogisticRegression", {"C": 1.0}, {"C"}),
        ("ElasticNet", {"alpha": 1.0, "l1_ratio": 0.5}, {"alpha", "l1_ratio"}),
    ],
    ids=["boosting", "forest", "linear", "elastic"],
)
def test_dimensions_are_known_when_the_estimator_is(kind: str, params: dict[str, Any], names: set[str]) -> None:
    assert names <= {one.name for one in dimensions_for(kind, params, 1000)} <= set(params)


def test_dimensions_hold_the_models_own_values_when_they_are_unusual() -> None:
    params = boosted(num_leaves=600, learning_rate=0.9, reg_lambda=0.0).get_params()
    found = {one.name: one for one in dimensions_for("LGBMClassifier", params, 1000)}
    assert found["num_leaves"].high == 600
    assert found["learning_rate"].high == 0.9
    assert found["reg_lambda"].low > 0, "a logarithmic range has no zero"


def test_dimensions_hold_fewer_leaves_when_rows_are_few() -> None:
    params = boosted(num_leaves=8, min_child_samples=2).get_params()
    few, many = ({one.name: one.high for one in dimensions_for("LGBMClassifier", params, rows)} for rows in (300, 50_000))
    assert few["num_leaves"] < many["num_leaves"]
    assert few["min_child_samples"] < many["min_child_samples"]


def test_trees_are_counted_when_latency_counts_and_stopped_early_when_not() -> None:
    params = boosted().get_params()
    plain, timed = ({one.name for one in dimensions_for("LGBMClassifier", params, 1000, timed=timed)} for timed in (False, True))
    assert timed - plain == {"n_estimators"}
    assert fixed_for("LGBMClassifier", params, plain)["n_estimators"] == search_spaces.MOST_ROUNDS
    assert "n_estimators" not in fixed_for("LGBMClassifier", params, timed)


def test_bagging_counts_when_a_trial_sets_it_and_is_off_where_the_model_had_it_off() -> None:
    params = boosted(subsample=0.5, subsample_freq=0).get_params()
    assert own_values("LGBMClassifier", params)["subsample"] == 1.0
    assert fixed_for("LGBMClassifier", params, {"subsample"})["subsample_freq"] == 1
    assert own_values("LGBMClassifier", {**params, "subsample_freq": 3})["subsample"] == 0.5


def test_dimensions_are_refused_with_advice_when_the_estimator_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"not of GaussianNB; .* space=path.py:function"):
        dimensions_for("GaussianNB", {}, 100)


def test_within_moves_numbers_in_and_drops_unknown_choices_when_ranges_differ() -> None:
    distributions = distributions_of(
        lambda trial: {
            one.name: one.suggest(trial) for one in (real("rate", 0.01, 0.3), whole("leaves", 4, 64), choice("depth", None, 6, 10))
        }
    )
    given = {"rate": 0.9, "leaves": 2, "depth": 7, "other": 1}
    assert within(given, distributions) == {"rate": 0.3, "leaves": 4}
    assert within({"depth": None, "leaves": True}, distributions) == {"depth": None}


@pytest.mark.parametrize("value", [[], {}, None], ids=["list", "nothing_asked", "none"])
def test_space_is_refused_when_it_gives_no_parameters(value: Any) -> None:
    with pytest.raises(ValueError, match="must ask the trial for values"):
        distributions_of(lambda trial: value)


def test_space_of_a_user_proposes_parameters_when_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "spaces.py"
    file.write_text("def small(trial):\n    return {'num_leaves': trial.suggest_int('leaves', 4, 8), 'n_estimators': 20}\n")
    own = search_spaces.read_space(f"{file}:small")
    space = Space((Family("own", learner(boosted()), ()),), own, threads=1)
    proposal = space.propose(optuna.trial.FixedTrial({"leaves": 5}))
    assert proposal.params == {"n_jobs": 1, "num_leaves": 5, "n_estimators": 20}
    assert set(space.distributions()) == {"leaves"}


@pytest.mark.parametrize(
    ("reference", "rule"),
    [("spaces.py", "must be path.py:function"), ("none.py:f", "does not exist"), ("{file}:two", "takes \\(trial\\)")],
    ids=["form", "file", "arguments"],
)
def test_space_of_a_user_is_refused_when_it_cannot_be_called(reference: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "spaces.py"
    file.write_text("def two(trial, more):\n    return {}\n")
    with pytest.raises(ValueError, match=rule):
        search_spaces.read_space(reference.format(file=file))


def test_space_tells_the_families_apart_when_there_are_several() -> None:
    rows, _ = table()
    space = Space(families_of(learner(boosted(num_leaves=7)), rows, BINARY, timed=False, seed=0, every=True))
    names = [one.name for one in space.families]
    assert names[0] == "own"
    assert {"forest", "extra_trees", "linear"} <= set(names)
    assert "lightgbm" not in names, "it is the model's own kind"
    assert space.distributions()["family"].choices == tuple(names)
    first = within(space.of_models()[0], space.distributions())
    assert first["own_num_leaves"] == 7
    proposal = space.propose(optuna.trial.FixedTrial(first))
    assert proposal.family.name == "own"
    assert proposal.params["num_leaves"] == 7


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_other_families_train_and_export_when_the_table_has_text_and_holes(kind: str, tmp_path: Path) -> None:
    from mlflow_opt.export import exporting
    from mlflow_opt.tables import learner_files

    rows = pd.read_parquet(TELCO).head(400).drop(columns="split")
    labels = rows.pop("target").to_numpy()
    task = BINARY
    if kind == "regression":
        task, labels = Task("regression"), rows.pop("monthly_charges").to_numpy(dtype=float)
    rows["tenure"] = rows["tenure"].astype(float).where(rows.index % 9 != 0)
    own = Learner(boosted(), tuple(map(str, rows.columns)))
    for name, one in other_learners(own, rows, task, 0).items():
        fitted = one.fit(rows, labels, params={"n_estimators": 10} if "n_estimators" in one.params() else {})
        native = learner_files.save(fitted, rows, tmp_path / name)
        graph = exporting.to_onnx(native, rows, task)
        assert not exporting.compare(graph, rows, fitted.scores(rows))


def test_other_families_are_left_out_when_the_table_is_infinite(caplog: pytest.LogCaptureFixture) -> None:
    rows, _ = table()
    rows.loc[3, "a"] = np.inf
    assert other_learners(learner(boosted()), rows, BINARY, 0) == {}
    assert "infinite" in caplog.text
