from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from mlflow_opt import data, models
from mlflow_opt.export.from_torch import export_retrained
from mlflow_opt.networks.network_learners import NetworkLearner, learner_for
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.precision.fake_quantisation import RoundedInput, RoundedWeight, folded, grids_of, rounded, taken_apart
from mlflow_opt.precision.quantisation import Scheme, batches_of, outputs_of, prepared, quantised
from recipes.quantize import quantize
from tests import training_cases
from tests.training_cases import Case

SETTINGS = TrainSettings(epochs=2, batch_size=32, learning_rate=1e-3)
KINDS: dict[str, Callable[[Path], Case]] = {
    "depthwise": training_cases.digits,
    "mlp": training_cases.perceptron,
    "regression": lambda folder: training_cases.perceptron(folder, classes=1),
    "encoder": training_cases.tokens,
}
SCHEMES = {
    "8 bits": Scheme("u8s8"),
    "reduced": Scheme("u8s8_reduced", reduce_range=True),
    "per tensor": Scheme("tensor", per_channel=False),
    "4 bits": Scheme("w4", weight_bits=4),
}


@dataclass(frozen=True)
class Scene:
    learner: NetworkLearner
    split: data.Split

    @property
    def rows(self) -> Any:
        return self.split.calibration.rows


def scene(case: Case) -> Scene:
    split = data.split(data.read(str(case.data)))
    return Scene(learner_for(models.load(str(case.model)), split), split)


def trained(one: Scene, scheme: Scheme) -> tuple[nn.Module, Any]:
    valid = one.learner.arrays(one.split.calibration)
    plain = folded(one.learner.module, valid.inputs)
    fitted = one.learner.fit(rounded(plain, valid.inputs, scheme), (one.learner.arrays(one.split.train), valid), SETTINGS)
    module, learnt = taken_apart(fitted.module, plain)
    graph = export_retrained(module, one.learner.model, one.rows)
    proto = prepared(graph.proto)
    grids = grids_of(proto, learnt)
    assert len(grids) >= len(learnt), "every layer was found in the graph"
    feeds = batches_of(dict(zip([name.name for name in proto.graph.input], valid.inputs.values(), strict=True)))
    return fitted.module.eval(), quantised(proto, scheme, feeds, grids=grids)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("depthwise", "encoder") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_integers_answer_as_the_rounded_network_when_it_was_trained(kind: str, tmp_path: Path) -> None:
    one = scene(KINDS[kind](tmp_path))
    module, proto = trained(one, SCHEMES["8 bits"])
    held = one.learner.arrays(one.split.selection)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(array) for array in held.inputs.values())).numpy()
    got = outputs_of(proto, [dict(zip([name.name for name in proto.graph.input], held.inputs.values(), strict=True))])
    spread = np.abs(wanted - wanted.mean(axis=0)).mean()
    assert np.abs(got - wanted).mean() / spread < 0.06


@pytest.mark.parametrize(
    "name", [name if name in ("per tensor", "4 bits") else pytest.param(name, marks=pytest.mark.slow) for name in SCHEMES]
)
def test_integers_keep_to_their_grid_when_any_scheme_is_trained(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    _, proto = trained(scene(training_cases.digits(tmp_path)), scheme)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    integers = [array for key, array in stored.items() if array.dtype == np.int8 and array.ndim > 1]
    assert len(integers) == 4
    assert all(np.abs(array.astype(int)).max() <= scheme.largest for array in integers)
    # Zero has the scale's shape, one a channel or none.
    scales = [stored[f"{key.removesuffix('_quantized')}_scale"] for key, array in stored.items() if any(array is one for one in integers)]
    assert all((scale.ndim == 1) == scheme.per_channel for scale in scales)


def test_runtime_computes_in_integers_when_the_trained_graph_is_opened(tmp_path: Path) -> None:
    _, proto = trained(scene(training_cases.digits(tmp_path)), SCHEMES["8 bits"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds


def test_training_recovers_what_rounding_lost_when_there_are_few_bits(tmp_path: Path) -> None:
    one = scene(training_cases.digits(tmp_path, rows=1200))
    scheme = Scheme("w3", weight_bits=3, per_channel=False)
    valid, held = one.learner.arrays(one.split.calibration), one.learner.arrays(one.split.selection)
    graph = prepared(export_retrained(one.learner.module, one.learner.model, one.rows).proto)
    feeds, rows = batches_of({"images": valid.inputs["images"]}), [{"images": held.inputs["images"]}]
    float_score, after = ((outputs_of(proto, rows).argmax(1) == held.targets).mean() for proto in (graph, quantised(graph, scheme, feeds)))
    _, proto = trained(one, scheme)
    score = (outputs_of(proto, rows).argmax(1) == held.targets).mean()
    assert float_score - after > 0.02, "the case must lose something, or nothing is tested"
    assert float_score - score < (float_score - after) / 2


def test_rounded_weight_learns_its_step_when_the_first_one_is_wrong() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 50)
    rounding = RoundedWeight(weight, 7, per_channel=True)
    with torch.no_grad():
        rounding.log_step.add_(1.5)
        before = float((rounding(weight) - weight).square().mean())
    optimizer = torch.optim.Adam(rounding.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward((rounding(weight) - weight).square().mean())
        optimizer.step()
    with torch.no_grad():
        assert float((rounding(weight) - weight).square().mean()) < before / 2


def test_rounded_input_keeps_zero_exact_when_the_range_is_one_sided() -> None:
    for low, high in ((0.0, 3.0), (-1.0, 3.0), (-2.0, 0.0)):
        rounding = RoundedInput(low, high)
        assert not rounding(torch.zeros(1)).any()
        values = torch.linspace(low, high, 100)
        assert (rounding(values) - values).detach().abs().max() <= 0.51 * (high - low) / 255 + 1e-6 + (high - low) / 255


def test_folded_answers_alike_when_batch_norm_goes(tmp_path: Path) -> None:
    one = scene(training_cases.digits(tmp_path))
    inputs = one.learner.arrays(one.split.calibration).inputs
    made = folded(one.learner.module, inputs)
    assert not [layer for layer in made.modules() if isinstance(layer, nn.BatchNorm2d)]
    rows = torch.from_numpy(inputs["images"])
    assert torch.allclose(made(rows), one.learner.module.eval()(rows), atol=1e-4)


def test_folded_refuses_when_a_layer_feeds_something_else_too() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.layer(x)
            return torch.as_tensor(self.norm(found) + found)

    module = Shared()
    with torch.no_grad():
        module.norm.weight.fill_(3.0)
    with pytest.raises(ValueError, match="must follow the only user of its layer"):
        folded(module.eval(), {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)})


def test_rounded_refuses_when_there_is_no_layer() -> None:
    with pytest.raises(ValueError, match="needs linear or convolutional layers"):
        rounded(nn.Sequential(nn.Flatten(), nn.ReLU()), {"x": np.zeros((4, 2), np.float32)}, SCHEMES["8 bits"])


def test_rounded_leaves_the_network_as_it_was_when_it_is_trained() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = {"x": np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)}
    from mlflow_opt.networks.losses import Arrays

    rows = Arrays(inputs, np.arange(32) % 2)
    fit(rounded(module, inputs, SCHEMES["8 bits"]), rows, rows, replace(SETTINGS, epochs=1))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.slow
def test_quantize_trains_when_asked_and_says_what_that_recovered(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.digits(tmp_path)
    quantize(model=str(case.model), data=str(case.data), qat="always", qat_epochs=1, budget_s=3.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    variants = {run.data.tags.get("mlflow_opt.variant") for run in runs}
    assert "qat" in variants
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert "Training with rounding loses" in parent.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("name", ["calibration_rows", "qat_epochs"])
def test_quantize_refuses_when_a_length_is_zero(name: str) -> None:
    # The recipe has no such parameter of another type.
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        quantize(**{name: 0})  # type: ignore[arg-type]


# MLflow's own pyfunc hands a table's memory to torch as it is.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.slow
def test_quantize_leaves_training_out_with_a_word_when_the_rows_are_a_table(tmp_path: Path, tracking_uri: str) -> None:
    case = training_cases.perceptron(tmp_path)
    with np.load(case.data) as arrays:
        table = pd.DataFrame(arrays["numbers"], columns=list("abcdef")).assign(target=arrays["target"])
    table.to_parquet(tmp_path / "table.parquet")
    quantize(model=str(case.model), data=str(tmp_path / "table.parquet"), qat="always", budget_s=2.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    assert "qat" not in {run.data.tags.get("mlflow_opt.variant") for run in runs}
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "FINISHED"
    assert "training with rounding was left out: a network is trained on arrays" in parent.data.tags["mlflow.note.content"]
