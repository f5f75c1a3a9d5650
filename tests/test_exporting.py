"""An export answers as the model does, on real rows and on what breaks converters: missing, unknown, infinite, none at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mlflow.types import TensorSpec

from mlflow_opt import models
from mlflow_opt.export import dropin_code, exporting
from mlflow_opt.export.dropin_code import Output, SessionOptions
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.lightgbm_trees import booster_graph
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from tests import model_zoo as zoo

# A fixture for every test of the file.
from tests.model_zoo import one_thread  # noqa: F401

# Doubles through other sums than scikit-learn's.
EXACT = 1e-9
# Single precision through a network.
CLOSE = 1e-5


def scores(graph: OnnxGraph, rows: Any) -> np.ndarray:
    session = dropin_code.open_session(graph.proto.SerializeToString(), SessionOptions())
    output = graph.binding.output
    return dropin_code.scores(dropin_code.run(session, [output.name], dropin_code.feed(rows, graph.binding.inputs))[0], output)


def assert_same(model: Model, graph: OnnxGraph, rows: Any, tolerance: float) -> None:
    wanted, got = model.predict(rows), scores(graph, rows)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    if wanted.ndim == 2:
        assert (got.argmax(1) != wanted.argmax(1)).sum() == 0


@pytest.mark.parametrize("name", zoo.SKLEARN)
def test_to_onnx_answers_alike_when_sklearn(name: str, tmp_path: Path) -> None:
    entry = zoo.SKLEARN[name]
    table, labels = zoo.telco(holes=entry.holes)
    native = entry.make(table).fit(table[zoo.TRAINED], labels[zoo.TRAINED])
    model = zoo.save(tmp_path / "m", native, table)
    graph = exporting.to_onnx(model, table[:100], zoo.BINARY)
    assert_same(model, graph, table, EXACT)
    assert_same(model, graph, table[:1], EXACT)
    strange = table[:40].copy()
    strange["contract"] = "never seen"
    if entry.holes and name != "discriminant":
        strange["monthly_charges"] = np.nan
    # scikit-learn warns of the unknown category that this is about.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        assert_same(model, graph, strange, EXACT)
    assert scores(graph, table[:0]).shape == (0, 2)


def test_to_onnx_uses_two_inputs_when_column_transformer(tmp_path: Path) -> None:
    table, labels = zoo.telco()
    model = zoo.save(tmp_path / "m", zoo.SKLEARN["logistic"].make(table).fit(table, labels), table)
    graph = exporting.to_onnx(model, table[:100], zoo.BINARY)
    assert [(one.name, one.dtype) for one in graph.binding.inputs] == [("numbers", "float64"), ("text", "str")]


def test_to_onnx_keeps_users_own_converters_when_done(tmp_path: Path) -> None:
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from sklearn.preprocessing import OneHotEncoder

    before = dict(sklearn_operator_name_map)
    table, labels = zoo.telco()
    model = zoo.save(tmp_path / "m", zoo.SKLEARN["logistic"].make(table).fit(table, labels), table)
    exporting.to_onnx(model, table[:100], zoo.BINARY)
    assert before[OneHotEncoder] == "SklearnOneHotEncoder"
    assert dict(sklearn_operator_name_map) == before


def test_to_onnx_gives_one_file_when_operator_sets_are_listed_in_any_order(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    # skl2onnx lists them in the order of a Python set, which differs from process to process.
    table, values = zoo.housing()
    labels = (values > np.median(values)).astype(int)
    model = zoo.save(tmp_path / "m", RandomForestClassifier(5, random_state=0).fit(table, labels), table)
    proto = exporting.to_onnx(model, table[:100], zoo.BINARY).proto
    rows, found = {proto.graph.input[0].name: table[:100].to_numpy(float)}, set()
    for reverse in (False, True):
        proto.opset_import.sort(key=lambda one: one.domain, reverse=reverse)
        onnx.save(proto, tmp_path / f"{reverse}.onnx")
        again = exporting.to_onnx(models.load(str(tmp_path / f"{reverse}.onnx")), rows, zoo.BINARY)
        found.add(again.proto.SerializeToString())
    assert len(proto.opset_import) > 1
    assert len(found) == 1


def test_to_onnx_leaves_model_alone_when_exported(tmp_path: Path) -> None:
    table, labels = zoo.telco()
    model = zoo.save(tmp_path / "m", zoo.SKLEARN["voting_soft"].make(table).fit(table[zoo.TRAINED], labels[zoo.TRAINED]), table)
    before, digest = model.predict(table), model.digest
    exporting.to_onnx(model, table[:100], zoo.BINARY)
    np.testing.assert_array_equal(model.predict(table), before)
    assert models.load(str(model.path)).digest == digest


@pytest.mark.parametrize("kind", ["forest", "boosting", "histogram", "tree"])
def test_to_onnx_answers_alike_when_multiclass_trees(kind: str, tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    table, values = zoo.housing()
    labels = np.array(["cheap", "dear", "worst"])[np.digitize(values, [500, 2000])]
    made = {
        "forest": RandomForestClassifier(20, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=8),
        "histogram": HistGradientBoostingClassifier(max_iter=8),
        "tree": DecisionTreeClassifier(max_depth=5),
    }[kind]
    model = zoo.save(tmp_path / "m", made.fit(table[zoo.TRAINED], labels[zoo.TRAINED]), table)
    graph = exporting.to_onnx(model, table[:100], Task("multiclass", ("cheap", "dear", "worst")))
    assert_same(model, graph, table, EXACT)


@pytest.mark.parametrize("kind", ["forest", "boosting", "histogram", "linear", "voting"])
def test_to_onnx_answers_alike_when_regressor(kind: str, tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor, RandomForestRegressor, VotingRegressor
    from sklearn.linear_model import Ridge

    table, values = zoo.housing()
    made = {
        "forest": RandomForestRegressor(20, random_state=0),
        "boosting": GradientBoostingRegressor(n_estimators=8),
        "histogram": HistGradientBoostingRegressor(max_iter=8, loss="poisson"),
        "linear": Ridge(),
        "voting": VotingRegressor([("a", Ridge()), ("b", RandomForestRegressor(5, random_state=0))]),
    }[kind]
    model = zoo.save(tmp_path / "m", made.fit(table[zoo.TRAINED], np.abs(values[zoo.TRAINED])), table)
    assert_same(model, exporting.to_onnx(model, table[:100], Task("regression")), table, EXACT)


def test_to_onnx_has_no_tie_flips_when_forest_votes_are_even(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(2000, 3)), random.integers(0, 2, 2000)
    frame = pd.DataFrame(rows, columns=list("abc"))
    model = zoo.save(tmp_path / "m", RandomForestClassifier(10, random_state=0).fit(frame[:500], labels[:500]), frame)
    wanted = model.predict(frame)
    assert (wanted[:, 0] == 0.5).sum() > 50  # noise makes ties; without any this test could not fail
    graph = exporting.to_onnx(model, frame[:100], zoo.BINARY)
    np.testing.assert_array_equal(scores(graph, frame).argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("name", zoo.BOOSTERS)
def test_to_onnx_answers_alike_when_lightgbm(name: str, tmp_path: Path) -> None:
    model, table, task = zoo.BOOSTERS[name](tmp_path / "m")
    graph = exporting.to_onnx(model, table[:100], task)
    assert_same(model, graph, table, EXACT)
    assert scores(graph, table[:0]).shape[0] == 0


def test_to_onnx_takes_plain_text_when_lightgbm_has_categories(tmp_path: Path) -> None:
    model, table, task = zoo.BOOSTERS["booster_categories"](tmp_path / "m")
    graph = exporting.to_onnx(model, table[:100], task)
    plain = table.astype(dict.fromkeys(zoo.text_columns(table), object))
    plain.loc[:20, "contract"] = "never seen"
    np.testing.assert_array_equal(scores(graph, plain)[21:], scores(graph, table)[21:])
    assert_same(model, graph, plain, EXACT)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"objective": "binary"},
    "binary_slope": {"objective": "binary", "sigmoid": 2.0},
    "zero_as_missing": {"objective": "binary", "zero_as_missing": True},
    "no_missing": {"objective": "binary", "use_missing": False},
    "random_forest": {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "dart": {"objective": "binary", "boosting": "dart"},
    "one_leaf": {"objective": "binary", "min_data_in_leaf": 900},
    "multiclass": {"objective": "multiclass", "num_class": 3},
    "one_against_all": {"objective": "multiclassova", "num_class": 3},
    "regression": {"objective": "regression"},
    "square_root": {"objective": "regression", "reg_sqrt": True},
    "poisson": {"objective": "poisson"},
    "tweedie": {"objective": "tweedie"},
    "cross_entropy": {"objective": "cross_entropy"},
    "quantile": {"objective": "quantile"},
}


def _trained(params: dict[str, Any]) -> lightgbm.Booster:
    random = np.random.default_rng(0)
    rows = random.normal(size=(1000, 5))
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[random.random(rows.shape) < 0.1] = 0
    rows[:, 4] = random.integers(0, 40, 1000)
    full = np.nan_to_num(rows)
    signal = full[:, 0] + full[:, 1] * full[:, 2] + np.sin(full[:, 4]) * 2
    objective = str(params["objective"])
    if objective.startswith("multi"):
        labels = np.digitize(signal, [-1, 1])
    else:
        labels = (signal > 0) if objective in ("binary", "cross_entropy") else np.abs(signal)
    data = lightgbm.Dataset(rows, labels, categorical_feature=[4], free_raw_data=False)
    return lightgbm.train({"verbose": -1, "num_threads": 1, **params}, data, 15)


STRANGE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, -1e-36, 1e300, 5.0, 39.0, 64.0, -3.0]


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=arrays(np.float64, (7, 5), elements=st.one_of(st.floats(-4, 4), st.sampled_from(STRANGE))))
def test_booster_graph_answers_exactly_when_any_row(name: str, rows: np.ndarray) -> None:
    rows[:, 4] = np.where(np.isfinite(rows[:, 4]) & (np.abs(rows[:, 4]) < 1e6), np.trunc(rows[:, 4]), np.nan)
    booster, session = _opened(name)
    wanted = np.asarray(booster.predict(rows)).reshape(len(rows), -1)
    np.testing.assert_allclose(session.run(None, {"x": rows})[0], wanted, rtol=1e-12, atol=1e-12)


_OPENED: dict[str, tuple[Any, Any]] = {}


def _opened(name: str) -> tuple[Any, Any]:
    if name not in _OPENED:
        booster = _trained(OBJECTIVES[name])
        proto = booster_graph(booster, "x", np.float64)
        onnx.checker.check_model(proto)
        _OPENED[name] = booster, dropin_code.open_session(proto.SerializeToString(), SessionOptions())
    return _OPENED[name]


def test_booster_graph_refuses_when_leaves_are_linear() -> None:
    with pytest.raises(ValueError, match="linear_tree"):
        booster_graph(_trained({"objective": "regression", "linear_tree": True}), "x", np.float64)


XGBOOST = {
    "binary": ({"objective": "binary:logistic"}, zoo.BINARY),
    "multiclass": ({"objective": "multi:softprob"}, Task("multiclass", (0, 1, 2))),
    "regression": ({"objective": "reg:squarederror"}, Task("regression")),
    "poisson": ({"objective": "count:poisson"}, Task("regression")),
}


@pytest.mark.parametrize("name", XGBOOST)
def test_to_onnx_answers_alike_when_xgboost(name: str, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    params, task = XGBOOST[name]
    table, values = zoo.housing()
    table.loc[::7, "monthly_charges"] = np.nan
    labels = np.abs(values) if task.kind == "regression" else np.digitize(values, [2000] if task.kind == "binary" else [500, 2000])
    kind = xgboost.XGBRegressor if task.kind == "regression" else xgboost.XGBClassifier
    model = zoo.save(
        tmp_path / "m", kind(n_estimators=10, max_depth=4, **params).fit(table, labels), table, flavour="xgboost", model_format="json"
    )
    graph = exporting.to_onnx(model, table[:100], task)
    assert_same(model, graph, table, CLOSE)


def test_to_onnx_stops_at_best_iteration_when_xgboost_stopped_early(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    table, labels = zoo.telco()
    table = table[["tenure", "monthly_charges"]].astype(float)
    native = xgboost.XGBClassifier(n_estimators=200, early_stopping_rounds=2)
    native.fit(table[:500], labels[:500], eval_set=[(table[500:1000], labels[500:1000])], verbose=False)
    model = zoo.save(tmp_path / "m", native, table, flavour="xgboost", model_format="json")
    assert model.runtime.iterations < native.get_booster().num_boosted_rounds()
    np.testing.assert_allclose(model.predict(table), native.predict_proba(table), rtol=CLOSE)
    assert_same(model, exporting.to_onnx(model, table[:100], zoo.BINARY), table, CLOSE)


@pytest.mark.parametrize("form", ["pickle", "pt2"])
def test_to_onnx_answers_alike_when_images(form: str, tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m", serialization_format=form)
    graph = exporting.to_onnx(model, rows, Task("multiclass", tuple(range(10))))
    assert_same(model, graph, rows, CLOSE)
    assert_same(model, graph, {"pixels": rows["pixels"][:1]}, CLOSE)
    assert scores(graph, {"pixels": rows["pixels"][:0]}).shape == (0, 10)


def test_to_onnx_names_no_file_of_this_machine_when_network(tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m")
    written = exporting.to_onnx(model, rows, Task("multiclass", tuple(range(10)))).proto.SerializeToString()
    assert b"model_zoo" not in written
    assert b"site-packages" not in written


def test_to_onnx_matches_inputs_by_name_when_several(tmp_path: Path) -> None:
    model, rows = zoo.sentences(tmp_path / "m")
    graph = exporting.to_onnx(model, rows, Task("multiclass", (0, 1, 2)))
    assert_same(model, graph, rows, CLOSE)
    shorter = {name: array[:2, :3] for name, array in rows.items()}
    assert_same(model, graph, shorter, CLOSE)


def test_to_onnx_survives_empty_batch_when_recurrent(tmp_path: Path) -> None:
    model, rows = zoo.series(tmp_path / "m")
    graph = exporting.to_onnx(model, rows, Task("regression"))
    assert_same(model, graph, rows, CLOSE)
    assert scores(graph, {"x": rows["x"][:0]}).shape == (0,)


def test_to_onnx_quantises_when_image_network(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, rows = zoo.images(tmp_path / "m")
    graph = exporting.to_onnx(model, rows, Task("multiclass", tuple(range(10))))
    name = graph.binding.inputs[0].name

    # The runtime has no types.
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{name: rows["pixels"]}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    onnx.save(graph.proto, tmp_path / "float.onnx")
    quant_pre_process(str(tmp_path / "float.onnx"), str(tmp_path / "ready.onnx"))
    quantize_static(str(tmp_path / "ready.onnx"), str(tmp_path / "int8.onnx"), Reader(), per_channel=True, reduce_range=True)
    quantised = OnnxGraph(onnx.load(tmp_path / "int8.onnx"), graph.binding)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in quantised.proto.graph.node}
    assert np.abs(scores(quantised, rows) - model.predict(rows)).max() < 0.1 * np.abs(model.predict(rows)).max()


def test_to_onnx_names_operator_when_it_has_no_form(tmp_path: Path) -> None:
    model = zoo.save_network(tmp_path / "m", zoo.Eigenvalues(), [TensorSpec(np.dtype(np.float32), (-1, 3, 3))], (3,))
    rows = {"x": np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)}
    with pytest.raises(ValueError, match="linalg_eig"):
        exporting.to_onnx(model, rows, Task("multiclass", (0, 1, 2)))


def test_to_onnx_passes_through_when_onnx(tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m")
    task = Task("multiclass", tuple(range(10)))
    graph = exporting.to_onnx(model, rows, task)
    onnx.save(graph.proto, tmp_path / "net.onnx")
    bare = models.load(str(tmp_path / "net.onnx"))
    again = exporting.to_onnx(bare, rows, task)
    assert again.proto == graph.proto
    assert_same(model, again, rows, CLOSE)


def test_to_onnx_refuses_when_export_differs(tmp_path: Path) -> None:
    from sklearn.neighbors import KNeighborsRegressor

    # Of neighbours equally far the converter takes others than scikit-learn.
    table = pd.DataFrame({"a": np.arange(300) % 5.0})
    model = zoo.save(tmp_path / "m", KNeighborsRegressor().fit(table, np.random.default_rng(0).normal(size=300)), table)
    with pytest.raises(ValueError, match="must answer as the model does"):
        exporting.to_onnx(model, table[:100], Task("regression"))


def test_compare_tells_when_scores_are_off(tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m")
    graph = exporting.to_onnx(model, rows, Task("multiclass", tuple(range(10))))
    wanted = model.predict(rows)
    assert exporting.compare(graph, rows, wanted) == ""
    assert "differ by up to" in exporting.compare(graph, rows, wanted + 0.1)
    assert "NaN" in exporting.compare(graph, rows, np.where(wanted > 0, np.nan, wanted))
    assert "shape" in exporting.compare(graph, rows, wanted[:, :5])
    broken = OnnxGraph(onnx.ModelProto(), graph.binding)
    assert "refuses" in exporting.compare(broken, rows, wanted)


def test_to_onnx_refuses_when_classes_do_not_fit(tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m")
    with pytest.raises(ValueError, match="3 classes of the data, it gives 10 columns"):
        exporting.to_onnx(model, rows, Task("multiclass", (0, 1, 2)))


def test_probabilities_come_from_logits_when_asked() -> None:
    raw = torch.tensor([[1.0, 2.0, 0.5], [700.0, -700.0, 0.0]])
    got = dropin_code.probabilities(raw.numpy(), Output("scores", "logits"))
    np.testing.assert_allclose(got, torch.softmax(raw, 1).numpy(), rtol=1e-6)
    margin = dropin_code.probabilities(np.array([[2.0], [-2.0]]), Output("scores", "margin"))
    np.testing.assert_allclose(margin[:, 1], [0.880797, 0.119203], rtol=1e-5)
