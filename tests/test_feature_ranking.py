from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_opt.features import feature_samples
from mlflow_opt.features.feature_ranking import METHODS, rank
from mlflow_opt.features.feature_samples import Sample
from mlflow_opt.records import Task
from mlflow_opt.tables import column_codes
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.table_models import default_pipeline

BINARY = Task("binary", (0, 1))
ROWS = 500


def table(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Two columns that matter, a near copy of the first, five of noise."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({f"noise{at}": rng.normal(size=ROWS) for at in range(5)})
    first, second = rng.normal(size=ROWS), rng.normal(size=ROWS)
    rows = rows.assign(first=first, copy=first + 0.1 * rng.normal(size=ROWS), second=second)
    return rows, (1.5 * first + second + 0.5 * rng.normal(size=ROWS) > 0).astype(int)


def sample(template: Any = None, rows: pd.DataFrame | None = None, labels: np.ndarray | None = None) -> Sample:
    made = table()
    given, known = (made[0] if rows is None else rows), (made[1] if labels is None else labels)
    learner = Learner(template or default_pipeline(given, BINARY, 0), tuple(given.columns))
    return Sample(learner, given, known, BINARY, tuple(given.columns))


@pytest.mark.parametrize("template", [None, make_pipeline(StandardScaler(), LogisticRegression())], ids=["trees", "linear"])
@pytest.mark.parametrize("method", METHODS)
def test_rank_puts_columns_that_matter_first_when_others_are_noise(method: str, template: Any) -> None:
    found = rank(sample(template), method)
    # mRMR puts a copy behind; that is what it is for.
    assert set(found.order[:3]) == {"first", "copy", "second"} or (method == "mrmr" and "second" in found.order[:2])
    assert sorted(found.order) == sorted(table()[0].columns)


def test_rank_by_mrmr_puts_a_copy_behind_when_another_column_says_something_new() -> None:
    order = rank(sample(), "mrmr").order
    assert {order[0], order[1]} in ({"first", "second"}, {"copy", "second"})
    assert set(rank(sample(), "mutual_information").order[:2]) == {"first", "copy"}


def test_rank_by_shap_test_finds_as_many_as_matter_when_others_are_noise() -> None:
    found = rank(sample(), "shap_test")
    assert 2 <= found.significant <= 4
    assert {"first", "second"} <= set(found.order[: found.significant])


def test_rank_by_shap_test_finds_nothing_significant_when_all_is_noise() -> None:
    rng = np.random.default_rng(3)
    rows = pd.DataFrame(rng.normal(size=(ROWS, 6)), columns=[f"n{at}" for at in range(6)])
    assert rank(sample(rows=rows, labels=rng.integers(0, 2, ROWS)), "shap_test").significant <= 2


def test_rank_uses_trees_when_the_model_cannot_be_explained() -> None:
    given = sample(make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0)))
    for method in ("gain", "shap", "shap_test"):
        assert set(rank(given, method).order[:3]) == {"first", "copy", "second"}
    assert given.trained[0] is not given.learner


def test_rank_gives_the_same_order_when_called_twice() -> None:
    for method in METHODS:
        assert rank(sample(), method) == rank(sample(), method)


def test_rank_refuses_when_the_method_is_unknown() -> None:
    with pytest.raises(ValueError, match="methods must be among gain, mutual_information"):
        rank(sample(), "magic")


def test_rank_keeps_all_columns_when_there_are_more_than_dear_methods_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_samples, "SCREENED", 4)
    found = rank(sample(), "permutation")
    assert len(found.values) == 4
    assert sorted(found.order) == sorted(table()[0].columns)
    assert {"first", "second"} <= set(found.order[:4])


def test_sample_holds_copies_of_a_row_together_when_it_is_a_bootstrap() -> None:
    rows, labels = table()
    index = np.random.default_rng(0).choice(ROWS, ROWS)
    given = sample(rows=rows.iloc[index], labels=labels[index])
    held = given.rows.index[given.held]
    assert not set(held) & set(given.rows.index[~given.held])
    assert 0.15 < given.held.mean() < 0.45
    assert rank(given, "permutation").order


@pytest.mark.parametrize(
    "column",
    [np.array([1.0, np.nan, np.inf, -np.inf] * 50), np.array(["a", None, "b", "c"] * 50, dtype=object), np.full(200, np.nan)],
    ids=["infinite", "text", "empty"],
)
def test_coded_gives_missing_values_a_code_of_their_own_when_there_are_some(column: np.ndarray) -> None:
    codes = column_codes.coded(pd.DataFrame({"x": column}), np.arange(200) % 2, BINARY)
    np.testing.assert_array_equal(codes[:, 0] == 0, pd.isna(column))
    assert codes.max() < column_codes.BINS


def test_coded_makes_an_identifier_useless_when_it_has_a_value_a_row() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 2000)
    rows = pd.DataFrame({"id": [f"id{at}" for at in range(2000)], "town": [f"t{label}{at % 40}" for at, label in enumerate(labels)]})
    codes = column_codes.coded(rows, labels, BINARY)
    assert column_codes.information(codes[:, 0], labels) < 0.01
    assert column_codes.information(codes[:, 1], labels) > 0.5, "a text of many values that tells the label keeps it"
