"""A model's first rounds answer as the model did after these rounds."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from mlflow_opt.trees.tree_rounds import first_rounds, rounds_in
from tests import tree_zoo as zoo
from tests.model_zoo import one_thread

__all__ = ["one_thread"]


def _answers(model: Any, rows: Any) -> np.ndarray:
    return np.asarray(model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows))


def _after(name: str, model: Any, rows: Any, rounds: int) -> np.ndarray:
    """Give what the library itself says after so many rounds."""
    if name.startswith("lightgbm"):
        way = model.predict_proba if hasattr(model, "predict_proba") else model.predict
        return np.asarray(way(rows, num_iteration=rounds))
    if name == "pipeline":
        return np.asarray(model[-1].predict_proba(model[:-1].transform(rows), num_iteration=rounds))
    if name.startswith("forest"):
        plain = rows.to_numpy()
        return np.asarray(np.mean([_answers(one, plain) for one in model.estimators_[:rounds]], axis=0))
    staged = model.staged_predict_proba(rows) if hasattr(model, "predict_proba") else model.staged_predict(rows)
    return np.asarray(next(islice(staged, rounds - 1, None)))


# LightGBM and scikit-learn warn of a pipeline's matrix without the names that were trained on.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.parametrize("rounds", [1, 5, 12])
@pytest.mark.parametrize("name", zoo.SEQUENCES)
def test_first_rounds_answers_as_the_library_after_as_many_rounds(name: str, rounds: int) -> None:
    model, rows, _, _ = zoo.fitted(name)
    short = first_rounds(model, rounds)
    assert rounds_in(short) == rounds
    np.testing.assert_allclose(_answers(short, rows), _after(name, model, rows, rounds), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", zoo.SEQUENCES)
def test_first_rounds_leaves_the_model_alone(name: str) -> None:
    model, rows, _, _ = zoo.fitted(name)
    before, params, there = _answers(model, rows), model.get_params(), rounds_in(model)
    short = first_rounds(model, 3)
    np.testing.assert_array_equal(_answers(model, rows), before)
    assert {key: str(value) for key, value in model.get_params().items()} == {key: str(value) for key, value in params.items()}
    assert rounds_in(model) == there
    assert str(short.get_params()) != str(params)


def test_first_rounds_takes_a_bare_booster() -> None:
    booster, rows = zoo.booster(), zoo.table().to_numpy()
    short = first_rounds(booster, 4)
    np.testing.assert_array_equal(short.predict(rows), booster.predict(rows, num_iteration=4))
    assert booster.current_iteration() == 20


@pytest.mark.parametrize("rounds", [0, 13])
def test_first_rounds_refuses_when_the_model_has_not_so_many(rounds: int) -> None:
    model, *_ = zoo.fitted("forest")
    with pytest.raises(ValueError, match=r"rounds must be in \[1, 12\]"):
        first_rounds(model, rounds)


def test_rounds_in_counts_none_when_no_sequence() -> None:
    assert rounds_in(zoo.fitted("tree")[0]) == 0
