from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from mlflow_opt import measure, models
from mlflow_opt.data import Part
from mlflow_opt.export import dropin, exporting
from mlflow_opt.models import Model
from mlflow_opt.tables import learner_files, learners
from mlflow_opt.tables.learners import Fitted
from tests.model_zoo import BINARY, TRAINED, number_columns, one_thread, save, telco, text_columns

__all__ = ["one_thread"]

TABLE, LABELS = telco()
TEXT, NUMBERS = text_columns(TABLE), number_columns(TABLE)
ROWS, HELD = TABLE.iloc[TRAINED], TABLE.iloc[2000:2400]
Y, HELD_Y = LABELS[TRAINED], LABELS[2000:2400]


def _trees(**params: Any) -> Any:
    return lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1, random_state=0, **params)


def _coded(last: Any) -> Any:
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return make_pipeline(make_column_transformer((codes, TEXT), ("passthrough", NUMBERS)), last)


def _native(kind: str) -> tuple[Any, pd.DataFrame, str]:
    categories = telco(categories=True)[0].iloc[TRAINED]
    if kind == "booster with categories":
        return (
            lightgbm.train({"verbose": -1, "objective": "binary", "num_leaves": 7}, lightgbm.Dataset(categories, Y), 20),
            categories,
            "lightgbm",
        )
    if kind == "classifier with categories":
        return _trees().fit(categories, Y), categories, "lightgbm"
    if kind == "linear pipeline":
        shown = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), TEXT), (SimpleImputer(), NUMBERS))
        return make_pipeline(shown, LogisticRegression(max_iter=5000)).fit(ROWS, Y), ROWS, "sklearn"
    if kind == "forest pipeline":
        return _coded(RandomForestClassifier(20, random_state=0, n_jobs=1)).fit(ROWS, Y), ROWS, "sklearn"
    return _coded(_trees()).fit(ROWS, Y), ROWS, "sklearn"


KINDS = ["trees pipeline", "forest pipeline", "linear pipeline", "classifier with categories", "booster with categories"]


@pytest.fixture(scope="module", params=KINDS, ids=[kind.replace(" ", "_") for kind in KINDS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    native, rows, flavour = _native(request.param)
    return save(tmp_path_factory.mktemp("native") / "m", native, ROWS, native.predict(rows), flavour)


def test_learner_trains_the_same_model_again_when_nothing_is_changed(model: Model) -> None:
    fitted = learners.learner_of(model).fit(ROWS, Y)
    np.testing.assert_allclose(_scores(fitted), model.predict(HELD), atol=1e-9)


def test_learner_takes_only_the_columns_when_some_are_chosen(model: Model) -> None:
    chosen = [*TEXT[:2], *NUMBERS[:2]]
    fitted = learners.learner_of(model).fit(ROWS, Y, columns=chosen)
    assert fitted.columns == tuple(chosen)
    wrong = HELD.drop(columns=chosen[0])
    np.testing.assert_array_equal(fitted.scores(HELD[chosen]), fitted.scores(HELD))
    with pytest.raises(KeyError):
        fitted.scores(wrong)


def test_variant_can_be_trained_again_when_it_carries_its_model(model: Model, tmp_path: Path) -> None:
    fitted = learners.learner_of(model).fit(ROWS, Y, columns=[*TEXT, *NUMBERS[:3]])
    native = learner_files.save(fitted, ROWS, tmp_path / "native")
    variant = dropin.save_dropin(
        exporting.to_onnx(native, HELD, BINARY), model, tmp_path / "variant", session=dropin.SessionOptions(), example=HELD
    )
    with pytest.raises(ValueError, match="holds nothing to train on"):
        learners.learner_of(variant)
    assert learner_files.carry(native, variant.path)
    dropin.check_dropin(variant, model, HELD)
    again = learners.learner_of(replace(variant)).fit(ROWS, Y)
    assert set(again.columns) == set(fitted.columns)
    np.testing.assert_allclose(_scores(again), variant.predict(HELD), atol=1e-6)
    assert not any(one.suffix in (".pkl", ".pickle") for one in variant.path.rglob("*"))


def test_boosting_stops_early_when_held_rows_say_so(tmp_path: Path) -> None:
    learner = learners.Learner(_coded(_trees()), tuple(TABLE.columns))
    fitted = learner.fit(ROWS, Y, params={"n_estimators": 400, "learning_rate": 0.3}, valid=(HELD, HELD_Y), patience=5)
    assert 0 < fitted.last.best_iteration_ < 100
    # What is saved stops there too.
    saved = learner_files.save(fitted, ROWS, tmp_path / "m")
    np.testing.assert_allclose(saved.predict(HELD), fitted.scores(HELD))


def test_learner_refuses_when_columns_are_picked_by_position() -> None:
    template = make_pipeline(make_column_transformer(("passthrough", [0, 1])), LogisticRegression())
    with pytest.raises(ValueError, match="must name its columns"):
        learners.with_columns(template, ["tenure"])


def test_model_with_pickled_classes_is_kept_out_when_carried(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer

    numbers = ROWS[NUMBERS].fillna(0)
    own = make_pipeline(FunctionTransformer(_doubled), LogisticRegression(max_iter=5000)).fit(numbers, Y)
    source = save(tmp_path / "m", own, numbers, own.predict(numbers))
    assert not learner_files.carry(source, tmp_path / "variant")
    assert not (tmp_path / "variant").exists()


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.62])
def test_threshold_decides_alike_when_native_exported_and_scored(threshold: float, tmp_path: Path) -> None:
    import mlflow.pyfunc

    wrapped = learners.with_threshold(_coded(_trees()).fit(ROWS, Y), threshold)
    native = learner_files.save(Fitted(wrapped, tuple(TABLE.columns), {}, 0.0), ROWS, tmp_path / "native")
    assert native.threshold == threshold
    assert learners.learner_of(native).threshold == threshold
    variant = dropin.save_dropin(
        exporting.to_onnx(native, HELD, BINARY), native, tmp_path / "variant", session=dropin.SessionOptions(), example=HELD
    )
    wanted = wrapped.predict(HELD)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(variant.path)).predict(HELD), wanted)
    assert models.load(str(variant.path)).threshold == threshold
    for one in (native, variant):
        scored = measure.quality(one, Part("gate", HELD, HELD_Y, "x"), BINARY)
        assert scored.values["accuracy"] == pytest.approx((wanted == HELD_Y).mean())
        np.testing.assert_array_equal(scored.answers, wanted)


def _doubled(table: Any) -> Any:
    return table * 2


def _scores(fitted: Fitted) -> np.ndarray:
    return fitted.scores(HELD)
