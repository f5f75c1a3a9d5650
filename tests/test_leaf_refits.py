"""Leaves learnt together lower the loss that they are learnt on, leave every decision as it was, and come back from a file."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Learner
from mlflow_opt.trees.leaf_refits import can_be_refined, refined, subsampled

QUIET: dict[str, Any] = {"n_estimators": 12, "num_leaves": 8, "learning_rate": 0.4, "subsample": 0.5, "subsample_freq": 1, "verbose": -1}
KINDS = ("binary", "multiclass", "regression")


def _task(kind: str, rows: int = 800) -> tuple[pd.DataFrame, np.ndarray, Task, Learner]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "town": rng.choice(["x", "y", "z"], rows)})
    signal = (table["a"] * table["b"] + table["a"] + (table["town"] == "x") + 0.5 * rng.normal(size=rows)).to_numpy()
    labels: dict[str, np.ndarray] = {
        "binary": np.where(signal > 0.3, "yes", "no"),
        "multiclass": np.array(["low", "mid", "top"])[np.digitize(signal, [-0.5, 1.0])],
        "regression": 50 * signal,
    }
    task = (
        Task("regression") if kind == "regression" else Task("binary" if kind == "binary" else "multiclass", tuple(np.unique(labels[kind])))
    )
    estimator = (lightgbm.LGBMRegressor if kind == "regression" else lightgbm.LGBMClassifier)(**QUIET)
    coded = make_column_transformer((OrdinalEncoder(), ["town"]), remainder="passthrough")
    return table, labels[kind], task, Learner(make_pipeline(coded, estimator), ("a", "b", "town"))


def _loss(task: Task, labels: np.ndarray, scores: np.ndarray) -> float:
    return score(task, labels, scores).values["log_loss" if task.classes else "rmse"]


@pytest.mark.parametrize("kind", KINDS)
def test_refined_lowers_the_loss_and_keeps_every_decision_when_any_task(kind: str) -> None:
    rows, labels, task, learner = _task(kind)
    fitted = learner.fit(rows, labels)
    before = fitted.scores(rows)
    made = refined(fitted, rows, labels, task, 1.0)
    assert _loss(task, labels, made.scores(rows)) < 0.97 * _loss(task, labels, before)
    np.testing.assert_array_equal(fitted.scores(rows), before)
    ways = [one.estimator[-1].booster_.predict(one.estimator[:-1].transform(rows), pred_leaf=True) for one in (fitted, made)]
    np.testing.assert_array_equal(*ways)
    text = made.last.booster_.model_to_string()
    again = lightgbm.Booster(model_str=text).predict(made.estimator[:-1].transform(rows))
    answers = made.scores(rows)
    np.testing.assert_allclose(again, answers[:, 1] if kind == "binary" else answers, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_refined_moves_less_when_the_price_is_high(kind: str) -> None:
    rows, labels, task, learner = _task(kind)
    fitted = learner.fit(rows, labels)
    before = fitted.scores(rows)
    near, far = (float(np.abs(refined(fitted, rows, labels, task, price).scores(rows) - before).max()) for price in (1e6, 1.0))
    assert near < 0.01 * far


def test_refined_is_better_on_other_rows_when_rounds_are_few() -> None:
    rows, labels, task, learner = _task("binary", 4000)
    fitted = learner.fit(rows[:2000], labels[:2000])
    made = refined(fitted, rows[:2000], labels[:2000], task, 30.0)
    losses = [_loss(task, labels[2000:], one.scores(rows[2000:])) for one in (fitted, made)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("given", "can"),
    [
        ({}, True),
        ({"objective": "binary"}, True),
        ({"objective": "poisson"}, False),
        ({"class_weight": "balanced"}, False),
        ({"scale_pos_weight": 3.0}, False),
        ({"boosting_type": "dart"}, False),
        ({"linear_tree": True}, False),
    ],
    ids=["default", "binary", "poisson", "weights", "positive weight", "dart", "linear leaves"],
)
def test_can_be_refined_only_if_leaves_add_up_to_what_the_plain_labels_say(given: dict[str, Any], can: bool) -> None:
    assert can_be_refined(Learner(lightgbm.LGBMClassifier(**given), ("a",))) == can


def test_subsampled_leaves_a_users_own_way_of_sampling_alone() -> None:
    assert subsampled({"subsample_freq": 0}) == {"subsample": 0.5, "subsample_freq": 1}
    assert subsampled({"subsample_freq": 2}) == {}
