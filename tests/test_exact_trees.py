"""LightGBM's trees in ONNX Runtime answer as `predict` does, to the last bit, or are not used."""

from __future__ import annotations

import sys
from typing import Any

import lightgbm
import numpy as np
import pytest

from mlflow_opt.serving.exact_trees import ExactTrees, Inexact
from tests import tree_zoo as zoo
from tests.model_zoo import BINARY, one_thread

__all__ = ["one_thread"]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"objective": "binary"},
    "binary_with_a_slope": {"objective": "binary", "sigmoid": 0.7},
    "cross_entropy": {"objective": "cross_entropy"},
    "multiclass": {"objective": "multiclass", "num_class": 3},
    "one_against_all": {"objective": "multiclassova", "num_class": 3, "sigmoid": 1.3},
    "regression": {"objective": "regression"},
    "square_root": {"objective": "regression", "reg_sqrt": True},
    "quantile": {"objective": "quantile", "alpha": 0.3},
    "poisson": {"objective": "poisson"},
    "zero_as_missing": {"objective": "binary", "zero_as_missing": True},
    "no_missing": {"objective": "binary", "use_missing": False},
    "many_trees": {"objective": "binary", "num_leaves": 63, "rounds": 150},
}


def _booster(objective: str, **more: Any) -> lightgbm.Booster:
    said = {"num_leaves": 15, "rounds": 20, "verbose": -1, "num_threads": 1, **OBJECTIVES[objective], **more}
    rows = zoo.table(600, holes="missing" not in objective)
    wanted = {"multiclass": zoo.labels(rows, zoo.MULTICLASS), "multiclassova": zoo.labels(rows, zoo.MULTICLASS)}
    target = wanted.get(said["objective"], np.abs(zoo.signal(rows)) if said["objective"] == "poisson" else zoo.signal(rows))
    if said["objective"] in ("binary", "cross_entropy"):
        target = zoo.labels(rows, BINARY)
    rounds, columns = said.pop("rounds"), said.pop("categorical_feature", "auto")
    matrix = np.nan_to_num(rows.to_numpy()) if columns != "auto" else rows.to_numpy()
    return lightgbm.train(said, lightgbm.Dataset(matrix, target, categorical_feature=columns), rounds)


def _strange_rows(count: int) -> np.ndarray:
    rows = zoo.table(count, seed=3).to_numpy().copy()
    rng = np.random.default_rng(5)
    return np.where(rng.random(rows.shape) < 0.2, rng.choice(zoo.STRANGE, rows.shape), rows)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_exact_trees_answer_bit_for_bit_when_any_objective(objective: str) -> None:
    booster, rows = _booster(objective), _strange_rows(700)
    wanted, trees = np.asarray(booster.predict(rows, num_threads=1)), ExactTrees(booster)
    start = 0
    for size in (1, 2, 5, 32, 64, 500):
        part = slice(start, start + size)
        np.testing.assert_array_equal(trees(rows[part]), wanted[part])
        assert trees(rows[part]).shape == wanted[part].shape
        start += size


def test_exact_trees_stop_at_best_iteration_when_the_booster_has_one() -> None:
    booster, rows = _booster("binary"), _strange_rows(50)
    whole = np.asarray(booster.predict(rows))
    booster.best_iteration = 5
    answers = ExactTrees(booster)(rows)
    np.testing.assert_array_equal(answers, booster.predict(rows))
    assert not np.array_equal(answers, whole)


def test_exact_trees_answer_infinity_when_an_exponential_overflows() -> None:
    rows = zoo.table(300, holes=False).to_numpy()
    booster = lightgbm.train({"objective": "poisson", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, np.ones(300)), 2)
    huge = lightgbm.Booster(model_str=_with_leaves(booster.model_to_string(), 800.0))
    assert np.isposinf(ExactTrees(huge)(rows[:3])).all()


def _with_leaves(text: str, value: float) -> str:
    lines = [
        "leaf_value=" + " ".join(f"{value:g}" for _ in line.split("=")[1].split()) if line.startswith("leaf_value=") else line
        for line in text.splitlines()
    ]
    # The sizes that the file names are of the old text.
    return "\n".join(line for line in lines if not line.startswith("tree_sizes=")) + "\n"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"linear_tree": True}, "linear leaves"),
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "differs"),
        ({"categorical_feature": [4]}, "categories"),
    ],
    ids=["linear", "forest", "categories"],
)
def test_exact_trees_are_not_used_when_they_would_answer_otherwise(more: dict[str, Any], why: str) -> None:
    with pytest.raises(Inexact, match=why):
        ExactTrees(_booster("regression", **more))


def test_exact_trees_are_not_used_when_onnx_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Inexact, match="onnx is not installed"):
        ExactTrees(_booster("binary"))
