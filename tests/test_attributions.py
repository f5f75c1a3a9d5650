from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from mlflow_opt.features.attributions import Unexplained, attributions, encoded, importance, sources
from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Fitted, Learner
from mlflow_opt.tables.table_models import default_pipeline, trees

BINARY = Task("binary", (0, 1))


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "a": rng.normal(size=400),
            "town": rng.choice(["x", "y", "z"], 400, p=[0.6, 0.39, 0.01]),
            "b": rng.normal(size=400),
            "kind": rng.choice(["u", "v"], 400),
            "c": np.where(rng.random(400) < 0.1, np.nan, rng.normal(size=400)),
        }
    )
    labels = (rows["a"] + (rows["town"] == "x") + 0.2 * rng.normal(size=400) > 0.5).to_numpy().astype(int)
    return rows, labels


def fitted(template: Any, table: tuple[pd.DataFrame, np.ndarray], **params: Any) -> Fitted:
    return Learner(template, tuple(table[0].columns)).fit(*table, params=params)


def linear(task_is_regression: bool = False) -> Any:
    encode = make_column_transformer(
        (OneHotEncoder(), ["town", "kind"]), (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["c", "b", "a"])
    )
    return make_pipeline(encode, Ridge() if task_is_regression else LogisticRegression())


def test_sources_finds_the_column_of_every_input_when_texts_become_several(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    made = fitted(linear(), table)
    # town has three values, kind two; then c, b, a and the indicator of c.
    assert sources(made, table[0]).tolist() == [1, 1, 1, 3, 3, 4, 2, 0, 4]


def test_sources_follows_a_pipeline_that_moves_columns_when_there_are_many() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(60, 130)), columns=[f"x{at}" for at in range(130)])
    order = rng.permutation(130)
    moved = ColumnTransformer([("all", StandardScaler(), [f"x{at}" for at in order])])
    made = fitted(make_pipeline(moved, LogisticRegression()), (rows, np.arange(60) % 2))
    np.testing.assert_array_equal(sources(made, rows), order)


def test_sources_refuses_when_steps_mix_columns(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    rows, labels = table[0][["a", "b"]], table[1]
    made = fitted(make_pipeline(StandardScaler(), PCA(), LogisticRegression()), (rows, labels))
    with pytest.raises(Unexplained, match="mix columns"):
        attributions(made, rows)


def test_attributions_sum_to_the_answer_when_the_model_is_trees(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    made = fitted(default_pipeline(table[0], BINARY, 0), table, n_estimators=20)
    found = attributions(made, table[0])
    assert found.shape == (400, 1, 5)
    base = made.last.booster_.predict(encoded(made, table[0]), pred_contrib=True)[:, -1]
    np.testing.assert_allclose(found[:, 0].sum(axis=1) + base, logit(made.scores(table[0])[:, 1]), atol=1e-6)
    assert np.abs(found).mean(axis=(0, 1)).argsort()[::-1][:2].tolist() == [0, 1]


def test_attributions_sum_to_the_answer_when_the_model_is_linear(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    made = fitted(linear(), table)
    found = attributions(made, table[0])[:, 0].sum(axis=1)
    log_odds = logit(made.scores(table[0])[:, 1])
    np.testing.assert_allclose(found, log_odds - log_odds.mean(), atol=1e-6)


def test_attributions_give_an_output_a_class_when_there_are_three(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    labels = np.digitize(table[0]["a"], [-0.5, 0.5])
    task = Task("multiclass", (0, 1, 2))
    found = attributions(fitted(default_pipeline(table[0], task, 0), (table[0], labels), n_estimators=5), table[0].head(7))
    assert found.shape == (7, 3, 5)


def test_attributions_are_those_of_shap_when_the_model_is_a_forest(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    rows = table[0][["a", "b"]]
    made = fitted(RandomForestClassifier(10, max_depth=4, random_state=0), (rows, table[1]))
    found = attributions(made, rows.head(50))
    assert found.shape == (50, 2, 2)
    np.testing.assert_allclose(found[:, 1].sum(axis=1), made.scores(rows.head(50))[:, 1] - made.scores(rows)[:, 1].mean(), atol=0.05)


def test_attributions_are_xgboosts_own_when_it_is_installed(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    xgboost = pytest.importorskip("xgboost")
    codes = make_column_transformer((OrdinalEncoder(), ["town", "kind"]), remainder="passthrough")
    made = fitted(make_pipeline(codes, xgboost.XGBClassifier(n_estimators=10)), table)
    assert np.abs(attributions(made, table[0])).mean(axis=(0, 1)).argmax() == 0


def test_attributions_take_categories_as_they_are_when_lightgbm_was_given_them(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    rows = table[0][["a", "town"]]
    learner = Learner(trees(BINARY, 0, {"n_estimators": 10}), ("a", "town"), {"town": ("x", "y", "z")})
    assert attributions(learner.fit(rows, table[1]), rows).shape == (400, 1, 2)


def test_importance_refuses_when_the_model_has_neither_gains_nor_weights(table: tuple[pd.DataFrame, np.ndarray]) -> None:
    rows = table[0][["a", "b"]]
    made = fitted(make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=5)), (rows, table[1]))
    with pytest.raises(Unexplained, match="rank by permutation"):
        importance(made, rows)


def test_importance_weighs_by_spread_when_the_model_is_linear() -> None:
    rows = pd.DataFrame({"small": np.linspace(0, 1e-3, 300), "large": np.random.default_rng(0).normal(size=300)})
    made = fitted(Ridge(alpha=1e-9), (rows, rows["small"].to_numpy() * 100 + rows["large"].to_numpy()))
    found = importance(made, rows)
    assert found[1] > 10 * found[0], "the larger weight is on the column that hardly moves"
