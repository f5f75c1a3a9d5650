"""Loading by every kind of name, what models take and refuse, and that nothing about a Model depends on the process."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from mlflow_opt import models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.dropin import SessionOptions
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from tests import model_zoo as zoo

# A fixture for every test of the file.
from tests.model_zoo import one_thread  # noqa: F401

ELSEWHERE = """
import json, sys
sys.path.insert(0, {root!r})
from mlflow_opt import models
import numpy as np, pandas as pd
model = models.load({path!r}, threads={threads})
rows = pd.read_parquet({rows!r})
print(json.dumps([model.predict(rows).tolist(), model.threads, [name for name in {heavy!r} if name in sys.modules]]))
"""
HEAVY = ("torch", "sklearn", "lightgbm", "mlflow", "onnx")


@pytest.fixture(scope="module")
def booster(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, pd.DataFrame]:
    model, table, _ = zoo.BOOSTERS["booster"](tmp_path_factory.mktemp("booster") / "m")
    return model, table


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, pd.DataFrame]:
    table, labels = zoo.telco()
    return zoo.save(tmp_path_factory.mktemp("pipeline") / "m", zoo.SKLEARN["logistic"].make(table).fit(table, labels), table), table


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory, booster: tuple[Model, pd.DataFrame]) -> Model:
    model, table = booster
    folder = tmp_path_factory.mktemp("variant") / "v"
    options = SessionOptions(threads=2, entries={"session.intra_op.allow_spinning": "0"})
    return dropin.save_dropin(exporting.to_onnx(model, table[:50], zoo.BINARY), model, folder, session=options, example=table[:50])


def elsewhere(model: Model, rows: pd.DataFrame, folder: Path, threads: int = 1) -> tuple[np.ndarray, int, list[str]]:
    rows.to_parquet(folder / "rows.parquet")
    root = str(Path(models.__file__).parent.parent)
    code = ELSEWHERE.format(root=root, path=str(model.path), rows=str(folder / "rows.parquet"), heavy=HEAVY, threads=threads)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    answer, used, heavy = json.loads(done.stdout.splitlines()[-1])
    return np.array(answer), used, heavy


def log_version(folder: Path, name: str) -> tuple[str, str, str]:
    """Log a saved LightGBM model and register it; give its model id, run id and version."""
    native = mlflow.lightgbm.load_model(str(folder))
    signature = models.load(str(folder)).signature
    with mlflow.start_run() as run:
        info = mlflow.lightgbm.log_model(native, name="model", signature=signature, pip_requirements=["lightgbm"])
    version = mlflow.register_model(f"models:/{info.model_id}", name)
    return info.model_id, run.info.run_id, str(version.version)


# MLflow's own advice while it registers.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_load_finds_one_model_when_named_in_every_way(booster: tuple[Model, pd.DataFrame], tracking_uri: str) -> None:
    model, table = booster
    model_id, run_id, version = log_version(model.path, "churn")
    MlflowClient().set_registered_model_alias("churn", "champion", version)
    wanted = model.predict(table)
    names = [f"models:/{model_id}", f"runs:/{run_id}/model", f"models:/churn/{version}", "models:/churn@champion", "models:/churn/latest"]
    loaded = [models.load(name) for name in names]
    for one in loaded:
        np.testing.assert_array_equal(one.predict(table), wanted)
    assert {one.model_id for one in loaded} == {model_id}
    assert {one.flavour for one in loaded} == {"lightgbm"}
    assert len({one.digest for one in loaded}) == 1
    assert models.load(names[2]).path == loaded[2].path  # downloaded once


# MLflow's own advice while it registers.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_load_follows_alias_when_it_moves(booster: tuple[Model, pd.DataFrame], tracking_uri: str) -> None:
    first, _, one = log_version(booster[0].path, "churn")
    second, _, two = log_version(booster[0].path, "churn")
    client = MlflowClient()
    client.set_registered_model_alias("churn", "champion", one)
    assert models.load("models:/churn@champion").model_id == first
    client.set_registered_model_alias("churn", "champion", two)
    assert models.load("models:/churn@champion").model_id == second


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/nobody@champion", "no such registered model, version or alias"),
        ("models:/nobody/3", "no such registered model, version or alias"),
        ("models:/nobody/latest", "no such registered model, version or alias"),
        ("models:/nobody", "no such registered model, version or alias"),
        ("models:/m-0123456789abcdef0123456789abcdef", "could not be fetched"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "could not be fetched"),
        ("no/such/folder", "no such model folder or .onnx file"),
        ("", "an empty name"),
    ],
)
def test_load_says_what_to_give_when_there_is_no_such_model(uri: str, said: str, tracking_uri: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.load(uri)


def test_load_refuses_when_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a file named MLmodel"):
        models.load(str(tmp_path))
    (tmp_path / "MLmodel").write_text("flavors: {spark: {}}")
    with pytest.raises(ValueError, match="must have one of the flavours"):
        models.load(str(tmp_path))
    (tmp_path / "model.txt").write_text("")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        models.load(str(tmp_path / "model.txt"))
    with pytest.raises(ValueError, match="threads must be 0"):
        models.load(str(tmp_path), threads=-1)


def test_native_names_the_package_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LinearRegression

    (tmp_path / "vanishing.py").write_text("from sklearn.linear_model import LinearRegression\nclass Mine(LinearRegression): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind: type[LinearRegression] = __import__("vanishing").Mine
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    model = zoo.save(tmp_path / "m", kind().fit(frame, [1.0, 2.0]), frame)
    (tmp_path / "vanishing.py").unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    monkeypatch.delitem(sys.modules, "vanishing")
    with pytest.raises(ValueError, match="needs the package vanishing"):
        model.predict(frame)


def test_native_says_so_when_file_is_broken(booster: tuple[Model, pd.DataFrame], tmp_path: Path) -> None:
    shutil.copytree(booster[0].path, tmp_path / "m")
    next((tmp_path / "m").glob("model.*")).write_bytes(b"nothing")
    broken = models.load(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="does not load"):
        broken.predict(booster[1])
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not load"):
        models.load(str(tmp_path / "bad.onnx")).predict(booster[1])


def test_load_warns_once_when_model_is_pickled(
    pipeline: tuple[Model, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(pipeline[0].path, tmp_path / "m")
    with caplog.at_level(logging.WARNING, logger="mlflow_opt.models"):
        models.load(str(tmp_path / "m"))
        models.load(str(tmp_path / "m"))
    told = [record.getMessage() for record in caplog.records if "runs the code in its pickle" in record.getMessage()]
    assert len(told) == 1
    assert "model.pkl" in told[0]


def test_load_does_not_warn_when_model_holds_no_pickle(
    booster: tuple[Model, pd.DataFrame], variant: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, labels = zoo.telco()
    native = zoo.SKLEARN["logistic"].make(table).fit(table, labels)
    trusted: dict[str, Any] = {"serialization_format": "skops", "skops_trusted_types": ["numpy.dtype"]}
    skops = zoo.save(tmp_path / "m", native, table, **trusted)
    with caplog.at_level(logging.WARNING, logger="mlflow_opt.models"):
        for path in (booster[0].path, variant.path, skops.path):
            models.load(str(path))
    assert not caplog.records
    np.testing.assert_array_equal(skops.predict(table), native.predict_proba(table))


def test_prepare_orders_columns_when_shuffled_and_extra(booster: tuple[Model, pd.DataFrame]) -> None:
    model, table = booster
    shuffled = table[list(reversed(table.columns))].assign(more="text")
    np.testing.assert_array_equal(model.predict(shuffled), model.predict(table))


@pytest.mark.parametrize("which", ["booster", "pipeline", "variant"])
def test_prepare_names_columns_when_missing_or_of_other_type(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    model = model if isinstance(model, Model) else model[0]
    table = request.getfixturevalue("pipeline" if which == "pipeline" else "booster")[1]
    with pytest.raises(ValueError, match=r"the model needs the columns tenure.*add"):
        model.prepare(table.drop(columns="tenure"))
    with pytest.raises(ValueError, match="monthly_charges"):
        model.prepare(table.assign(monthly_charges="a lot"))


def test_prepare_refuses_when_whole_numbers_are_wanted(pipeline: tuple[Model, pd.DataFrame]) -> None:
    model, table = pipeline
    with pytest.raises(ValueError, match="tenure must be integer, got float64"):
        model.prepare(table.assign(tenure=table["tenure"].astype(float) + 0.5))
    with pytest.raises(ValueError, match="contract must be string, got int64"):
        model.prepare(table.assign(contract=np.arange(len(table))))


def test_scores_are_probabilities_in_class_order_when_classifier(pipeline: tuple[Model, pd.DataFrame]) -> None:
    model, table = pipeline
    np.testing.assert_array_equal(model.predict(table), model.native.predict_proba(table))
    assert model.predict(table[:1]).shape == (1, 2)


def test_scores_are_margins_when_estimator_has_no_probabilities(tmp_path: Path) -> None:
    table, labels = zoo.telco()
    model = zoo.save(tmp_path / "m", zoo.SKLEARN["linear_svc"].make(table).fit(table, labels), table)
    got = model.predict(table)
    np.testing.assert_array_equal(got.argmax(1), model.native.predict(table))
    np.testing.assert_array_equal(got[:, 1], model.native.decision_function(table))


def test_predict_does_not_disturb_when_two_handles_of_one_path(tmp_path: Path) -> None:
    model, rows = zoo.images(tmp_path / "m")
    one, other = models.load(str(model.path)), models.load(str(model.path))
    wanted = one.predict(rows)
    assert one.native is not other.native
    other.native.last.weight.data.zero_()
    np.testing.assert_array_equal(one.predict(rows), wanted)


def test_predict_takes_arrays_by_name_or_position_when_network(tmp_path: Path) -> None:
    model, rows = zoo.sentences(tmp_path / "m")
    wanted = model.predict(rows)
    narrow = {name: array.astype(np.int32) for name, array in rows.items()}
    np.testing.assert_array_equal(model.predict(narrow), wanted)
    ordered = {"a": rows["input_ids"], "b": rows["token_type_ids"]}
    np.testing.assert_array_equal(model.predict(ordered), wanted)
    with pytest.raises(ValueError, match="takes the arrays input_ids, token_type_ids, got input_ids"):
        model.prepare({"input_ids": rows["input_ids"]})


def test_predict_matches_names_first_when_signature_has_another_order(tmp_path: Path) -> None:
    from mlflow.types import TensorSpec

    torch.manual_seed(0)
    whole = np.dtype(np.int64)
    specs = [TensorSpec(whole, (-1, -1), "token_type_ids"), TensorSpec(whole, (-1, -1), "input_ids")]
    model = zoo.save_network(tmp_path / "m", zoo.TwoInputs(), specs, (3,))
    rows = {"input_ids": np.array([[40, 3]]), "token_type_ids": np.array([[0, 1]])}
    assert model.predict(rows).shape == (1, 3)  # 40 is no token type: the other order would raise
    with pytest.raises(ValueError, match="input_ids must hold int64, got float64"):
        model.predict({**rows, "input_ids": rows["input_ids"] + 0.5})


def test_predict_takes_a_table_when_network_has_named_columns(tmp_path: Path) -> None:
    table, _ = zoo.housing()
    module = torch.nn.Linear(table.shape[1], 2)
    model = zoo.save(tmp_path / "m", module, table, np.zeros((5, 2)), flavour="pytorch", serialization_format="pickle")
    shuffled = table[list(reversed(table.columns))].assign(more=1.0)
    np.testing.assert_array_equal(model.predict(shuffled), model.predict(table))
    graph = exporting.to_onnx(model, shuffled[:50], Task("multiclass", (0, 1)))
    assert graph.binding.inputs[0].columns == tuple(table.columns)
    options = SessionOptions()
    variant = dropin.save_dropin(graph, model, tmp_path / "v", session=options, example=table[:5])
    np.testing.assert_allclose(variant.predict(shuffled), model.predict(table), rtol=1e-4)


def test_predict_casts_to_single_when_network_is_given_doubles(tmp_path: Path) -> None:
    model, rows = zoo.series(tmp_path / "m")
    assert rows["x"].dtype == np.float64
    assert model.predict(rows).shape == (30,)


def test_model_answers_alike_when_loaded_in_another_process(pipeline: tuple[Model, pd.DataFrame], tmp_path: Path) -> None:
    model, table = pipeline
    answer, threads, _ = elsewhere(model, table[:50], tmp_path)
    np.testing.assert_array_equal(answer, model.predict(table[:50]))
    assert threads == 1


def test_variant_loads_without_training_libraries_when_in_another_process(
    variant: Model, booster: tuple[Model, pd.DataFrame], tmp_path: Path
) -> None:
    answer, threads, heavy = elsewhere(variant, booster[1][:50], tmp_path, threads=0)
    np.testing.assert_allclose(answer, booster[0].predict(booster[1][:50]), rtol=1e-12)
    assert threads == 2
    assert heavy == []


def test_model_pickles_without_its_native_when_loaded(booster: tuple[Model, pd.DataFrame]) -> None:
    model, table = booster
    wanted = model.predict(table)
    # Our own bytes.
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert again == model
    assert "runtime" not in vars(again)
    np.testing.assert_array_equal(again.predict(table), wanted)


def test_threads_are_the_variants_own_when_none_are_given(variant: Model) -> None:
    assert models.load(str(variant.path)).threads == 2
    assert models.load(str(variant.path), threads=1).threads == 1
    session = models.load(str(variant.path)).native.get_session_options()
    assert session.intra_op_num_threads == 2
    assert session.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert models.load(str(variant.path), threads=1).native.get_session_options().intra_op_num_threads == 1


def test_threads_reach_the_forest_when_estimator_has_jobs(tmp_path: Path) -> None:
    table, labels = zoo.telco()
    model = zoo.save(tmp_path / "m", zoo.SKLEARN["forest"].make(table).fit(table[:300], labels[:300]), table)
    assert model.native.steps[-1][1].n_jobs == 1
    assert models.load(str(model.path), threads=2).native.steps[-1][1].n_jobs == 2


def test_digest_changes_with_content_alone(booster: tuple[Model, pd.DataFrame], tmp_path: Path) -> None:
    shutil.copytree(booster[0].path, tmp_path / "m")
    before = models.load(str(tmp_path / "m")).digest
    assert before == booster[0].digest
    dropin.stamp(tmp_path / "m", "m-1", "run")
    (tmp_path / "m" / "registered_model_meta").write_text("model_name: churn")
    stamped = models.load(str(tmp_path / "m"))
    assert (stamped.digest, stamped.model_id) == (before, "m-1")
    with next((tmp_path / "m").glob("model.*")).open("a") as file:
        file.write("\n")
    assert models.load(str(tmp_path / "m")).digest != before


def test_digest_changes_when_signature_does(booster: tuple[Model, pd.DataFrame], tmp_path: Path) -> None:
    shutil.copytree(booster[0].path, tmp_path / "m")
    file = tmp_path / "m" / "MLmodel"
    file.write_text(file.read_text().replace("double", "float"))
    assert models.load(str(tmp_path / "m")).digest != booster[0].digest


def test_size_and_parameters_are_counted(booster: tuple[Model, pd.DataFrame], variant: Model, tmp_path: Path) -> None:
    network, _ = zoo.images(tmp_path / "net")
    assert network.parameters == 8 * 9 + 8 + 2 * 8 + 8 * 8 * 9 + 8 + 80 + 10
    assert booster[0].parameters == sum(2 * tree["num_leaves"] - 1 for tree in booster[0].native.dump_model()["tree_info"])
    assert variant.parameters == booster[0].parameters
    assert 0 < variant.size_mb < 1
    assert booster[0].size_mb == pytest.approx(sum(file.stat().st_size for file in booster[0].path.rglob("*") if file.is_file()) / 1e6)


def test_load_takes_columns_by_name_when_bare_onnx(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in "ab"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])]
    graph = helper.make_graph([helper.make_node("Sub", ["a", "b"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    model = models.load(str(tmp_path / "g.onnx"))
    table = pd.DataFrame({"b": [1, 2], "more": ["x", "y"], "a": [5.0, 7.0]})
    np.testing.assert_array_equal(model.predict(table), [4, 5])
    with pytest.raises(ValueError, match="needs the columns b"):
        model.predict(table[["a"]])
    assert (model.flavour, model.signature, model.parameters) == ("onnx", None, 0)


@pytest.mark.parametrize("zipmap", [True, False])
def test_scores_are_found_when_onnx_has_label_and_probabilities(zipmap: bool, tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    rows = random.normal(size=(100, 3)).astype(np.float32)
    native = LogisticRegression().fit(rows, np.digitize(rows[:, 0], [-0.5, 0.5]))
    onnx.save(to_onnx(native, rows, options={"zipmap": zipmap}), tmp_path / "g.onnx")
    model = models.load(str(tmp_path / "g.onnx"))
    np.testing.assert_allclose(model.predict({"X": rows}), native.predict_proba(rows), atol=1e-5)


# MLflow's stub does not export it.
class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["a"] * 2


# MLflow advises against the pickle that this is about, and about type hints.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_load_accepts_when_pyfunc_only_and_export_refuses(tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(str(tmp_path / "m"), python_model=Echo(), pip_requirements=["mlflow"])
    model = models.load(str(tmp_path / "m"))
    rows = pd.DataFrame({"a": [1.0, 2.0]})
    assert model.flavour == "pyfunc"
    np.testing.assert_array_equal(model.predict(rows), [2, 4])
    with pytest.raises(ValueError, match="a pyfunc hides what it computes"):
        exporting.to_onnx(model, rows, Task("regression"))
