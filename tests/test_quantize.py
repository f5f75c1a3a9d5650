from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
from mlflow import MlflowClient

from mlflow_opt import data, models
from mlflow_opt.export import exporting
from mlflow_opt.precision.quantisation import Scheme, heavy_operators, prepared, quantised, schemes_for
from mlflow_opt.precision.quantisation_loss import bias_corrected, fewest_in_float, least_in_float, sensitivities
from mlflow_opt.precision.regression_shift import shift_of
from mlflow_opt.runs.outcome import Row
from recipes.quantize import advise, quantize
from tests import stripes

VNNI, PLAIN = frozenset({"avx2", "avx512_vnni"}), frozenset({"avx2"})


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cnn")
    pictures = stripes.pictures(folder)
    return pictures, stripes.cnn(folder, pictures)


@pytest.fixture(scope="module")
def graph(cnn: tuple[Path, Path]) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]], np.ndarray]:
    split = data.split(data.read(str(cnn[0])))
    model = models.load(str(cnn[1]))
    proto = prepared(exporting.to_onnx(model, data.take(split.calibration.rows, slice(0, 32)), split.task).proto)
    name = proto.graph.input[0].name
    rows = np.load(cnn[0])["image"]
    return proto, [{name: rows[:64]}, {name: rows[64:128]}], rows[:128]


def answers(proto: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    live = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(live.run(None, {proto.graph.input[0].name: rows})[0])


def test_schemes_for_starts_with_reduced_range_when_there_is_no_vnni() -> None:
    assert schemes_for(PLAIN)[0].reduce_range
    assert not schemes_for(VNNI)[0].reduce_range


def test_schemes_for_names_each_scheme_once_when_every_one_is_asked_for() -> None:
    for features in (VNNI, PLAIN):
        names = [scheme.name for scheme in schemes_for(features, every=True)]
        assert len(set(names)) == len(names) > len(schemes_for(features))


@pytest.mark.parametrize("scheme", schemes_for(VNNI, every=True) + schemes_for(PLAIN), ids=lambda scheme: scheme.name)
def test_quantised_answers_nearly_as_float_when_any_scheme_is_used(scheme: Scheme, graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, rows = graph
    wanted, got = answers(proto, rows), answers(quantised(proto, scheme, feeds), rows)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.12
    assert (got.argmax(1) == wanted.argmax(1)).mean() > 0.95
    assert not np.array_equal(got, wanted), "nothing was quantised"


def test_quantised_leaves_the_float_graph_as_it_was_when_called(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, _ = graph
    before = proto.SerializeToString()
    quantised(proto, Scheme("u8s8"), feeds)
    assert proto.SerializeToString() == before


def test_quantised_weights_only_keeps_activations_in_float_when_asked(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, _ = graph
    made = quantised(proto, Scheme("weights_only", placement="weights"), feeds)
    kinds = [node.op_type for node in made.graph.node]
    assert "QuantizeLinear" not in kinds
    assert "DequantizeLinear" in kinds


def test_quantised_gives_equal_files_when_called_twice(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, _ = graph
    assert quantised(proto, Scheme("u8s8"), feeds).SerializeToString() == quantised(proto, Scheme("u8s8"), feeds).SerializeToString()


def test_quantised_refuses_when_the_graph_has_no_weights() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "relu", value[:1], value[1:]))
    with pytest.raises(ValueError, match="use `compile` for trees"):
        quantised(proto, Scheme("u8s8"), [])


def test_sensitivities_rank_the_operator_with_an_outlier_first_when_one_weight_is_huge(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, _ = graph
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(proto)
    names = heavy_operators(spoilt)
    node = next(node for node in spoilt.graph.node if node.name == names[1])
    tensor = next(tensor for tensor in spoilt.graph.initializer if tensor.name == node.input[1])
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights.flat[0] *= 200
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    scheme = Scheme("per_tensor", per_channel=False)
    found = sensitivities(spoilt, scheme, feeds)
    assert set(found) == set(names)
    assert max(found, key=lambda name: found[name]) == names[1]


@pytest.mark.parametrize("needed", range(1, 9))
def test_fewest_in_float_finds_the_smallest_number_when_the_drop_shrinks(needed: int) -> None:
    ranked = [f"op{i}" for i in range(8)]
    kept = fewest_in_float(ranked, lambda names: 0.0 if len(names) >= needed else 1.0, 0.01)
    assert kept == ranked[:needed]


def test_advise_says_that_int8_does_not_pay_when_it_is_slower() -> None:
    def row(name: str, ms: float, size: float) -> Row:
        return Row(name, {"latency_p50_ms": ms, "size_mb": size, "drop_accuracy": 0.0})

    rows = [row("baseline", 2.0, 4.0), row("fp32", 1.0, 4.0), row("weights_only", 1.2, 1.0)]
    text = " ".join(advise(rows, "accuracy", PLAIN))
    assert "does not pay" in text
    assert "without VNNI" in text
    assert "Smaller but slower than float here: weights_only" in text


def test_quantize_logs_baseline_and_variants_alike_when_run(cnn: tuple[Path, Path], tracking_uri: str) -> None:
    quantize(model=str(cnn[1]), data=str(cnn[0]), budget_s=5.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(experiment.experiment_id) for experiment in client.search_experiments()])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.data.tags["mlflow_opt.variant"]: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert {"baseline", "fp32", "u8u8", "dynamic", "weights_only"} <= set(children)
    assert all(run.info.status == "FINISHED" for run in children.values())
    common = {"accuracy", "latency_p50_ms", "size_mb", "throughput_rows_per_s", "parameters"}
    assert all(common <= set(run.data.metrics) for run in children.values())
    assert children["fp32"].data.metrics["label_flips"] == 0
    assert all(run.outputs and run.outputs.model_outputs for name, run in children.items()), "every run links its logged model"
    assert parent.data.metrics["baseline_accuracy"] == children["baseline"].data.metrics["accuracy"]
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"report.html", "pareto.png"}
    assert "| variant" in parent.data.tags["mlflow.note.content"]
    assert parent.inputs
    assert parent.inputs.dataset_inputs


def test_quantize_registers_a_dropin_with_evidence_when_the_policy_passes(
    cnn: tuple[Path, Path], tracking_uri: str, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria:\n  - {metric: accuracy, max_drop: 0.2}\n  - {metric: speedup, min: 0.01}\n")
    verdict = quantize(model=str(cnn[1]), data=str(cnn[0]), policy=str(policy), register_as="stripes", budget_s=5.0)
    assert verdict is not None
    assert verdict.passed
    client = MlflowClient(tracking_uri)
    version = client.get_model_version_by_alias("stripes", "challenger")
    assert int(version.version) == 2, "the unoptimised model is version 1"
    model = client.get_logged_model(str(version.source).removeprefix("models:/"))
    run = client.get_run(model.tags["mlflow_opt.evidence_run"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gate_passed"] == 1
    assert run.data.metrics["gate_drop_accuracy_hi"] <= run.data.metrics["gate_drop_accuracy_max"] == 0.2
    rows = np.load(cnn[0])["image"][:5]
    assert mlflow.pyfunc.load_model("models:/stripes@challenger").predict(rows).shape == (5, 4)


def test_quantize_registers_nothing_when_the_policy_is_impossible(cnn: tuple[Path, Path], tracking_uri: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria: [{metric: speedup, min: 100000}]\n")
    assert quantize(model=str(cnn[1]), data=str(cnn[0]), policy=str(policy), register_as="stripes") is None
    client = MlflowClient(tracking_uri)
    assert not client.search_registered_models()
    runs = client.search_runs([str(experiment.experiment_id) for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_bias_corrected_brings_the_mean_answer_back_when_weights_have_few_bits(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, rows = graph
    integers = quantised(proto, Scheme("w3", weight_bits=3), feeds)
    made = bias_corrected(proto, integers, feeds)
    wanted = answers(proto, rows).mean(axis=0)
    before, after = (np.abs(answers(one, rows).mean(axis=0) - wanted).max() for one in (integers, made))
    assert before > 0.2, "the case must have a bias, or nothing is tested"
    assert after < before / 4


def test_quantised_keeps_to_fewer_bits_when_they_are_asked_for(graph: tuple) -> None:  # type: ignore[type-arg]
    proto, feeds, _ = graph
    made = quantised(proto, Scheme("w4", weight_bits=4), feeds)
    integers = [onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    weights = [array for array in integers if array.ndim > 1]
    assert weights
    assert all(np.abs(array.astype(int)).max() == 7 for array in weights)


def test_least_in_float_takes_back_what_need_not_stay_when_only_some_are_harmful() -> None:
    def drop(names: Sequence[str]) -> float:
        return 0.0 if {"a", "c"} <= set(names) else 1.0

    assert least_in_float(["a", "b", "c", "d"], drop, 0.01, trials=10) == ["a", "c"]
    assert least_in_float(["a", "b", "c", "d"], drop, 0.01, trials=1) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("moved", "safe"),
    [
        (lambda before: before + 0.001, True),
        (lambda before: before + 0.2, False),
        (lambda before: before * 1.2, False),
        (lambda before: before + 0.5 * np.sin(before * 900), False),
    ],
    ids=["hardly", "all up", "apart at the ends", "noisy"],
)
def test_shift_of_judges_a_regression_when_predictions_moved(moved: Callable[[np.ndarray], np.ndarray], safe: bool) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=4000) * 2
    before = labels + rng.normal(size=4000)
    found = shift_of(labels, before, moved(before))
    assert found.is_safe == safe
    assert ("is safe" in found.told("int8")) == safe


@pytest.mark.slow
def test_quantize_looks_for_a_shift_when_it_is_a_regression(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import training_cases

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path, rows=600, classes=1)
    quantize(model=str(case.model), data=str(case.data), budget_s=3.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(experiment.experiment_id) for experiment in client.search_experiments()])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert "error_distribution.png" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert "for this regression: mean shift" in parent.data.tags["mlflow.note.content"]
    shifts = {run.data.tags.get("mlflow_opt.variant"): run.data.metrics.get("error_shift") for run in runs}
    assert shifts["fp32"] == pytest.approx(0, abs=1e-4)
    assert any(name and name.endswith("_corrected") for name in shifts)
