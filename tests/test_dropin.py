"""A variant stands where its baseline stood: same input, same form of answer, served without any of our code."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from mlflow_opt import models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.dropin import SessionOptions, check_dropin, load_trainable, save_dropin, save_trainable
from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from tests import model_zoo as zoo

# A fixture for every test of the file.
from tests.model_zoo import one_thread  # noqa: F401

Made = tuple[Model, Any, Task]


def _fitted(name: str, folder: Path, *, labels: Any = None, **kept: Any) -> Made:
    table, found = zoo.telco()
    labels = found if labels is None else np.array(labels)[found]
    native = zoo.SKLEARN[name].make(table).fit(table[zoo.TRAINED], labels[zoo.TRAINED])
    return zoo.save(folder, native, table, **kept), table, Task("binary", tuple(np.unique(labels).tolist()))


def _regressor(folder: Path, *, several: bool) -> Made:
    from sklearn.linear_model import LinearRegression

    table, values = zoo.housing()
    native = LinearRegression().fit(table, np.stack([values, values * 2], axis=1) if several else values)
    return zoo.save(folder, native, table), table, Task("regression")


def _images(folder: Path) -> Made:
    model, rows = zoo.images(folder)
    return model, rows, Task("multiclass", tuple(range(10)))


def _onnx(folder: Path) -> Made:
    import mlflow.onnx

    model, rows, task = _images(folder / "torch")
    graph = exporting.to_onnx(model, rows, task)
    mlflow.onnx.save_model(graph.proto, str(folder / "onnx"), signature=model.signature, pip_requirements=["onnx"])
    return models.load(str(folder / "onnx")), rows, task


BASELINES: dict[str, Callable[[Path], Made]] = {
    "sklearn_labels": lambda folder: _fitted("logistic", folder),
    "sklearn_text_labels": lambda folder: _fitted("logistic", folder, labels=["no", "yes"]),
    "sklearn_probabilities": lambda folder: _fitted("logistic", folder, pyfunc_predict_fn="predict_proba"),
    "sklearn_hard_vote": lambda folder: _fitted("voting_hard", folder, labels=["no", "yes"]),
    "sklearn_margin": lambda folder: _fitted("linear_svc", folder),
    "sklearn_values": lambda folder: _regressor(folder, several=False),
    "sklearn_many_values": lambda folder: _regressor(folder, several=True),
    "lightgbm_labels": zoo.BOOSTERS["classifier"],
    "lightgbm_booster": zoo.BOOSTERS["booster"],
    "lightgbm_multiclass": zoo.BOOSTERS["multiclass"],
    "lightgbm_values": zoo.BOOSTERS["regressor"],
    "torch": _images,
    "onnx": _onnx,
}


def variant_of(made: Made, folder: Path, **session: Any) -> Model:
    model, rows, task = made
    return save_dropin(exporting.to_onnx(model, rows, task), model, folder, session=SessionOptions(**session), example=rows)


def pyfuncs(variant: Model, made: Made) -> tuple[Any, Any]:
    data = dropin.pyfunc_input(made[1], made[0])
    return mlflow.pyfunc.load_model(str(variant.path)).predict(data), mlflow.pyfunc.load_model(str(made[0].path)).predict(data)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _fitted("logistic", tmp_path_factory.mktemp("baseline") / "m")


@pytest.mark.parametrize("name", BASELINES)
def test_variant_answers_as_baselines_pyfunc_when_any_flavour(name: str, tmp_path: Path) -> None:
    made = BASELINES[name](tmp_path / "m")
    variant = variant_of(made, tmp_path / "v")
    check_dropin(variant, made[0], made[1])
    mine, theirs = pyfuncs(variant, made)
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        mine, theirs = next(iter(mine.values())), next(iter(theirs.values()))
    assert (type(mine), mine.dtype, mine.shape) == (type(theirs), theirs.dtype, theirs.shape)
    if theirs.dtype.kind == "f":
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(mine, theirs)
    loaded = models.load(str(variant.path))
    np.testing.assert_allclose(loaded.predict(made[1]), made[0].predict(made[1]), rtol=1e-5, atol=1e-5)


# MLflow's torch pyfunc gives torch pandas' read-only memory.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_variant_keeps_the_index_when_network_is_given_a_table(tmp_path: Path) -> None:
    from mlflow.types import TensorSpec

    module = torch.nn.Linear(3, 2)
    model = zoo.save_network(tmp_path / "m", module, [TensorSpec(np.dtype(np.float32), (-1, 3))], (2,))
    rows = {"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    variant = variant_of((model, rows, Task("multiclass", (0, 1))), tmp_path / "v")
    unsigned = shutil.copytree(variant.path, tmp_path / "unsigned")
    for folder in (unsigned, shutil.copytree(model.path, tmp_path / "bare")):
        file = folder / "MLmodel"
        file.write_text(file.read_text().split("signature:")[0])
    table = pd.DataFrame(rows["x"], index=list("vwxyz"))
    mine, theirs = (mlflow.pyfunc.load_model(str(path)).predict(table) for path in (unsigned, tmp_path / "bare"))
    pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5)


def test_variant_takes_text_when_lightgbm_has_categories(tmp_path: Path) -> None:
    made = zoo.BOOSTERS["classifier_categories"](tmp_path / "m")
    variant = variant_of(made, tmp_path / "v")
    check_dropin(variant, made[0], made[1])
    plain = made[1].astype(dict.fromkeys(zoo.text_columns(made[1]), object))
    labels = mlflow.pyfunc.load_model(str(variant.path)).predict(plain)
    np.testing.assert_array_equal(labels, made[0].native.predict(made[1]))


def test_variant_refuses_unknown_text_when_encoder_does(tmp_path: Path) -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table, labels = zoo.telco(holes=True)
    strict = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    made = (
        zoo.save(tmp_path / "m", zoo.encoded(LogisticRegression(max_iter=500), table, strict).fit(table, labels), table),
        table,
        zoo.BINARY,
    )
    variant = variant_of(made, tmp_path / "v")
    check_dropin(variant, made[0], table)
    with pytest.raises(ValueError, match="contract must hold one of Month-to-month, One year, Two year"):
        variant.predict(table.assign(contract="Weekly"))
    answers, wanted = pyfuncs(variant, made)  # missing values are filled, not refused
    np.testing.assert_array_equal(answers, wanted)
    lax = _edited(variant, tmp_path / "lax", lambda said: said["inputs"][1].update(known={}))
    with pytest.raises(ValueError, match="accepts an unknown value in"):
        check_dropin(lax, made[0], table)


def test_variant_answers_the_first_class_when_scores_are_equal(classifier: Made, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    model, table, _ = classifier
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 1])]
    nodes = [helper.make_node("Mul", ["x", "zero"], ["none"]), helper.make_node("Concat", ["none", "none"], ["scores"], axis=1)]
    zero = helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])
    outputs = [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, [None, 2])]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [zero]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    graph = OnnxGraph(proto, Binding((Feed("x", "float64", ("monthly_charges",)),), Output("scores", "logits")))
    variant = save_dropin(graph, model, tmp_path / "v", session=SessionOptions(), example=table[:5])
    assert set(mlflow.pyfunc.load_model(str(variant.path)).predict(table)) == {0}


def test_variant_turns_logits_into_probabilities_when_baseline_answers_them(tmp_path: Path) -> None:
    from mlflow.types import TensorSpec

    baseline, table, _ = zoo.BOOSTERS["booster"](tmp_path / "m")
    width = table.shape[1]
    student = zoo.save_network(tmp_path / "s", torch.nn.Linear(width, 2), [TensorSpec(np.dtype(np.float32), (-1, width))], (2,))
    rows = {"x": np.nan_to_num(table.to_numpy(np.float32)) / 100}
    graph = exporting.to_onnx(student, rows, zoo.BINARY)
    fed = OnnxGraph(graph.proto, Binding((Feed(graph.binding.inputs[0].name, "float32", tuple(table.columns)),), graph.binding.output))
    variant = save_dropin(fed, baseline, tmp_path / "v", session=SessionOptions(), example=table[:5])
    check_dropin(variant, baseline, table)
    answer = mlflow.pyfunc.load_model(str(variant.path)).predict(table.fillna(0))
    assert answer.shape == (len(table),)
    assert ((answer >= 0) & (answer <= 1)).all()


def test_variant_stands_for_a_variant_when_chained(classifier: Made, tmp_path: Path) -> None:
    first = variant_of(classifier, tmp_path / "one")
    second = variant_of((first, classifier[1], classifier[2]), tmp_path / "two")
    check_dropin(second, first, classifier[1])
    check_dropin(second, classifier[0], classifier[1])


def test_folder_holds_no_pickle_and_no_place_of_this_machine(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    names = {str(file.relative_to(variant.path)) for file in variant.path.rglob("*") if file.is_file()}
    assert names == {
        "MLmodel",
        "artifacts/model.onnx",
        "artifacts/variant.json",
        "conda.yaml",
        "dropin_code.py",
        "python_env.yaml",
        "requirements.txt",
    }
    assert str(tmp_path) not in (variant.path / "MLmodel").read_text()
    wanted = (variant.path / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in wanted] == ["mlflow", "numpy", "onnxruntime", "pandas"]
    assert all("==" in line for line in wanted)
    assert not list(tmp_path.glob(".*"))


def test_save_dropin_is_repeatable_when_same_graph(classifier: Made, tmp_path: Path) -> None:
    model, rows, task = classifier
    graph = exporting.to_onnx(model, rows, task)
    made = [save_dropin(graph, model, tmp_path / name, session=SessionOptions(), example=rows[:5]) for name in ("a", "b")]
    assert made[0].digest == made[1].digest
    other = save_dropin(graph, model, tmp_path / "c", session=SessionOptions(threads=2), example=rows[:5])
    assert other.digest != made[0].digest


def test_save_dropin_is_quick_when_small(classifier: Made, tmp_path: Path) -> None:
    model, rows, task = classifier
    graph = exporting.to_onnx(model, rows, task)
    spent = []
    for at in range(5):
        start = time.perf_counter()
        save_dropin(graph, model, tmp_path / str(at), session=SessionOptions(), example=rows[:5])
        spent.append(time.perf_counter() - start)
    # 0.05-0.1 s on a quiet machine; MLflow's inference of requirements takes seconds.
    assert min(spent) < 0.5


def test_save_dropin_records_what_made_it(classifier: Made, tmp_path: Path) -> None:
    model, rows, task = classifier
    graph = exporting.to_onnx(model, rows, task)
    options = SessionOptions(threads=2, graph_level="basic")
    variant = save_dropin(graph, model, tmp_path / "v", session=options, example=rows[:5], params={"scheme": "U8S8"})
    metadata = mlflow.models.Model.load(str(variant.path)).metadata
    assert metadata is not None
    said = metadata["mlflow_opt"]
    assert (said["threads"], said["graph_level"], said["classes"]) == (2, "basic", [0, 1])
    assert said["params"] == {"scheme": "U8S8"}
    assert said["replaces"]["digest"] == model.digest


def test_save_dropin_refuses_when_folder_is_taken(classifier: Made, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="saved in a new folder"):
        variant_of(classifier, tmp_path / "v")


def test_variant_serves_without_our_package_when_elsewhere(classifier: Made, tmp_path: Path) -> None:
    variant_of(classifier, tmp_path / "v")
    classifier[1].to_parquet(tmp_path / "rows.parquet")
    code = """
import sys
sys.modules["mlflow_opt"] = sys.modules["torch"] = sys.modules["lightgbm"] = sys.modules["onnx"] = None
import mlflow.pyfunc, pandas as pd
answer = mlflow.pyfunc.load_model("v").predict(pd.read_parquet("rows.parquet"))
assert "sklearn" not in sys.modules, "scikit-learn was imported"
print(int(answer.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout.split()[-1]) == int(classifier[0].native.predict(classifier[1]).sum())


def test_importing_the_code_offers_no_model_when_package_is_used() -> None:
    code = "import mlflow_opt.export.dropin_code, sys; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _edited(variant: Model, folder: Path, change: Callable[[dict[str, Any]], None]) -> Model:
    shutil.copytree(variant.path, folder)
    file = folder / "artifacts" / "variant.json"
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))
    return models.load(str(folder))


def _answer_otherwise(edit: dict[str, Any], said: dict[str, Any]) -> None:
    said["answer"].update(edit)


def test_check_dropin_refuses_when_answer_has_another_form(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    edits: dict[str, dict[str, Any]] = {
        "type": {"dtype": "int64"},
        "kind": {"kind": "probabilities", "dtype": "float64"},
        "text": {"dtype": "U3", "classes": ["no", "yes"]},
    }
    for name, edit in edits.items():
        changed = _edited(variant, tmp_path / name, functools.partial(_answer_otherwise, edit))
        with pytest.raises(ValueError, match="must have the form"):
            check_dropin(changed, classifier[0], classifier[1])


def test_check_dropin_refuses_when_rows_are_refused(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    changed = _edited(variant, tmp_path / "w", lambda said: said["inputs"][0]["columns"].append("more"))
    with pytest.raises(ValueError, match="must take the baseline's rows"):
        check_dropin(changed, classifier[0], classifier[1])


def test_check_dropin_refuses_when_signature_differs(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    file = variant.path / "MLmodel"
    file.write_text(file.read_text().replace('"double", "name": "monthly', '"float", "name": "monthly'))
    with pytest.raises(ValueError, match="has the baseline's signature"):
        check_dropin(models.load(str(variant.path)), classifier[0], classifier[1])


def test_check_dropin_refuses_when_bad_input_is_accepted(tmp_path: Path) -> None:
    # Without a signature nobody but the model itself can refuse.
    table, labels = zoo.telco()
    table = table[["tenure", "monthly_charges"]].astype(float)
    from sklearn.linear_model import LogisticRegression

    model = zoo.save(tmp_path / "m", LogisticRegression().fit(table, labels), table)
    file = model.path / "MLmodel"
    file.write_text(file.read_text().split("signature:")[0])
    model = models.load(str(model.path))
    variant = variant_of((model, table, zoo.BINARY), tmp_path / "v")
    check_dropin(variant, model, table)
    code = variant.path / "dropin_code.py"
    code.write_text(
        code.read_text().replace("    if missing:\n", "    table = table.assign(**dict.fromkeys(missing, 0.0))\n    if False:\n")
    )
    with pytest.raises(ValueError, match="must refuse what the baseline refuses"):
        check_dropin(variant, model, table)


def test_stamp_changes_ids_and_not_the_digest(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    before = variant.digest
    dropin.stamp(variant.path, "m-42", "run-1")
    again = models.load(str(variant.path))
    assert (again.model_id, again.digest) == ("m-42", before)
    assert mlflow.models.Model.load(str(variant.path)).run_id == "run-1"
    mlflow.pyfunc.load_model(str(variant.path)).predict(classifier[1])


def test_trainable_gives_the_network_back_when_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = zoo.Convolutions(classes=4).eval()
    folder = save_trainable(module, tmp_path)
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pth", ".pt")]
    again = load_trainable(tmp_path)
    rows = torch.randn(5, 1, 12, 12)
    torch.testing.assert_close(again(rows), module(rows))
    torch.autograd.backward(again.train()(rows).sum())
    assert again.first.weight.grad is not None


def test_trainable_keeps_narrower_layers_when_pruned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = zoo.Convolutions(classes=4).eval()
    kept = [0, 2, 5]
    module.first = torch.nn.Conv2d(1, 3, 3, padding=1)
    module.norm = torch.nn.BatchNorm2d(3)
    module.second = torch.nn.Conv2d(3, 3, 3, padding=1)
    module.last = torch.nn.Linear(len(kept), 4)
    save_trainable(module.eval(), tmp_path)
    again = load_trainable(tmp_path)
    rows = torch.randn(5, 1, 12, 12)
    torch.testing.assert_close(again(rows), module(rows))
    assert (again.first.out_channels, again.norm.num_features, again.last.in_features) == (3, 3, 3)


def test_trainable_refuses_when_there_is_none_or_arguments_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be trained on"):
        load_trainable(tmp_path)

    class Local(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="must lie in a file"):
        save_trainable(Local(), tmp_path)
    module = zoo.Convolutions(classes=4)
    del module.classes
    module.last = torch.nn.Linear(8, 4)
    save_trainable(module, tmp_path, {"classes": 4})
    module.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="do not fit"):
        save_trainable(module, tmp_path / "other", {"classes": 4})


def test_graph_is_valid_onnx_when_saved(classifier: Made, tmp_path: Path) -> None:
    variant = variant_of(classifier, tmp_path / "v")
    onnx.checker.check_model(onnx.load(variant.path / "artifacts" / "model.onnx"))
