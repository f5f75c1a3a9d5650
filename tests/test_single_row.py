"""LightGBM's quick call for one row answers as `predict` does, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mlflow_opt import models
from mlflow_opt.flavours.single_row import SingleRow, asks_quick, save_quick
from mlflow_opt.records import Task
from mlflow_opt.serving.engines import Chunk, LightgbmEngine, table_columns
from tests import tree_zoo as zoo
from tests.model_zoo import BINARY, one_thread

__all__ = ["one_thread"]


def _rows() -> np.ndarray:
    rows = zoo.table(60, seed=3).to_numpy().copy()
    rows[:12, 0] = zoo.STRANGE
    return rows


@pytest.mark.parametrize("task", [BINARY, zoo.MULTICLASS, zoo.REGRESSION], ids=lambda task: str(task.kind))
def test_single_row_answers_bit_for_bit_when_any_objective(task: Task) -> None:
    booster, rows = zoo.booster(task), _rows()
    quick = SingleRow(booster, 1)
    for at in range(len(rows)):
        np.testing.assert_array_equal(quick(rows[at : at + 1]), booster.predict(rows[at : at + 1]))


def test_single_row_stops_at_best_iteration_when_the_booster_has_one() -> None:
    booster, row = zoo.booster(), _rows()[:1]
    whole = booster.predict(row)
    booster.best_iteration = 5
    np.testing.assert_array_equal(SingleRow(booster, 1)(row), booster.predict(row))
    assert booster.predict(row) != whole


def test_single_row_takes_read_only_rows_and_refuses_others() -> None:
    booster = zoo.booster()
    quick, rows = SingleRow(booster, 1), _rows()
    locked = rows[:1].copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(quick(locked), booster.predict(locked))
    for wrong in (rows[:2], rows[:1, :4], rows[:1].astype(np.float32)):
        with pytest.raises(ValueError, match=r"float64 of shape \(1, 5\)"):
            quick(wrong)


@pytest.mark.parametrize("name", ["lightgbm", "lightgbm_multiclass"])
def test_save_quick_answers_as_the_model_when_loaded_again(name: str, tmp_path: Path) -> None:
    model, rows, _, _ = zoo.saved(name, tmp_path / "m")
    copied = save_quick(model, tmp_path / "quick")
    loaded = models.load(str(copied.path))
    assert asks_quick(loaded.path)
    assert not asks_quick(model.path)
    assert loaded.flavour == "lightgbm"
    for batch in (rows[:1], rows[:9]):
        np.testing.assert_array_equal(loaded.predict(batch), model.predict(batch))
    pyfunc = mlflow.pyfunc.load_model(str(copied.path))
    np.testing.assert_array_equal(pyfunc.predict(rows[:9]), mlflow.pyfunc.load_model(str(model.path)).predict(rows[:9]))


@pytest.mark.parametrize("name", ["lightgbm", "lightgbm_multiclass", "lightgbm_regression"])
def test_lightgbm_engine_answers_one_row_as_in_a_batch(name: str, tmp_path: Path) -> None:
    model, rows, _, _ = zoo.saved(name, tmp_path / "m")
    engine = LightgbmEngine(model.path, table_columns(model.signature.inputs), 1)
    given: list[Any] = rows[:40].astype(object).where(rows[:40].notna(), None).to_numpy().tolist()
    together = np.asarray(engine.run([Chunk(len(given), given)]))
    alone = np.concatenate([np.asarray(engine.run([Chunk(1, [row])])) for row in given])
    np.testing.assert_array_equal(alone, together)
