from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from mlflow_opt.policy import parse_policy
from mlflow_opt.runs.outcome import Row
from mlflow_opt.workbench.network_pruning import advise, wish_of
from mlflow_opt.workbench.structured_pruning import wanted_speedup
from recipes.prune import prune
from recipes.quantize import quantize
from tests import stripes


class Deciding(nn.Module):
    """Decides by a value, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.scores = nn.Linear(144, 8), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        found = self.hidden(image.flatten(1))
        if found.mean() > 0:
            found = torch.relu(found)
        scores: Tensor = self.scores(found)
        return scores


GIVEN = {"method": "all", "rates": "0.5,0.7", "importance": "taylor", "epochs": 6, "steps": 2, "speedup": 0.0}
LENIENT = "validation_criteria:\n  - {metric: accuracy, max_drop: 0.9}\n  - {metric: speedup, min: 0.001}\n"


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pruned")
    pictures = stripes.pictures(folder, rows=500)
    return pictures, stripes.cnn(folder, pictures, width=32, epochs=6)


@pytest.fixture
def given(cnn: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "policy.yaml").write_text(LENIENT)
    return {"model": str(cnn[1]), "data": str(cnn[0]), "policy": str(tmp_path / "policy.yaml"), "budget_s": 3.0}


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def variants_of(uri: str, recipe: str) -> dict[str, Run]:
    tags = {run.info.run_id: run.data.tags for run in runs_of(uri)}
    return {
        tags[run.info.run_id]["mlflow_opt.variant"]: run
        for run in runs_of(uri)
        if tags[run.info.run_id].get("mlflow_opt.recipe") == recipe and "mlflow_opt.variant" in tags[run.info.run_id]
    }


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"rates": "0.5,1"}, r"rates must lie in \(0, 1\), got \[1.0\]"),
        ({"rates": "half"}, "rates must be numbers"),
        ({"epochs": 0}, "epochs and steps must be at least 1"),
        ({"speedup": -1.0}, "speedup must not be negative"),
    ],
    ids=["whole", "word", "epochs", "speedup"],
)
def test_wish_refuses_when_it_cannot_be(changed: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wish_of({**GIVEN, **changed})


def test_wish_reads_the_parameters_when_they_are_given() -> None:
    wish = wish_of({**GIVEN, "method": "unstructured", "rates": "0.3, 0.9"}, 0.02)
    assert (wish.method, wish.rates, wish.allowed_drop) == ("unstructured", (0.3, 0.9), 0.02)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{metric: speedup, min: 9}", 3.0),
        ("{metric: latency_p50_ms, max: 2.5}", 2.0),
        ("{metric: accuracy, max_drop: 0.01}", 0.0),
        ("{metric: speedup, min: 1.2}", 0.4),
    ],
    ids=["speedup", "latency", "neither", "runtime_alone"],
)
def test_wanted_speedup_is_over_the_same_runtime_when_a_policy_bounds_it(text: str, wanted: float) -> None:
    assert wanted_speedup(parse_policy(f"validation_criteria: [{text}]"), 3.0, 5.0) == pytest.approx(wanted)


def test_advice_keeps_multiplications_and_latency_apart_when_rows_are_finished() -> None:
    def row(name: str, latency: float, accuracy: float, macs: float, zeros: float) -> Row:
        found = {"latency_p50_ms": latency, "accuracy": accuracy, "noisy_accuracy": accuracy - 0.1, "damaged_accuracy": accuracy - 0.2}
        return Row(name, {**found, "macs": macs, "sparsity": zeros, "compressed_mb": 1 - zeros / 2})

    rows = [
        row("baseline", 4.0, 0.90, 100, 0),
        row("runtime_only", 2.0, 0.90, 100, 0),
        row("dense_finetuned", 2.0, 0.91, 100, 0),
        row("pruned_70", 1.0, 0.905, 30, 0),
        row("zeros_global_70", 2.0, 0.91, 100, 0.7),
    ]
    text = " ".join(advise(rows, "accuracy"))
    assert "The runtime alone answers one row 2.00x" in text
    assert "pruned_70: 3.3x fewer multiplications, 2.00x faster" in text
    assert "-0.0050 against the dense network trained as long" in text
    assert "Zeros do not speed up a dense runtime: zeros_global_70, with 70% zeros, answers one row 1.00x" in text


@pytest.mark.slow
def test_prune_makes_a_network_that_can_be_quantised_when_it_registers(given: dict[str, Any], tracking_uri: str) -> None:
    verdict = prune(**given, register_as="stripes", rates="0.6", epochs=2)
    assert verdict is not None
    children = variants_of(tracking_uri, "prune")
    assert set(children) == {"baseline", "runtime_only", "dense_finetuned", "pruned_60", "zeros_global_60"}
    metrics = {name: run.data.metrics for name, run in children.items()}
    assert metrics["pruned_60"]["macs"] < 0.45 * metrics["runtime_only"]["macs"]
    assert metrics["pruned_60"]["parameters"] < 0.6 * metrics["runtime_only"]["parameters"]
    assert metrics["zeros_global_60"]["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert metrics["zeros_global_60"]["compressed_mb"] < 0.8 * metrics["runtime_only"]["compressed_mb"]
    assert metrics["dense_finetuned"]["epochs_run"] == metrics["pruned_60"]["epochs_run"] == 2
    assert {"noisy_accuracy", "damaged_accuracy"} <= set(metrics["baseline"])

    quantize(**{**given, "model": "models:/stripes@challenger"}, register_as="small", fallback=False)
    client = MlflowClient(tracking_uri)
    version = client.get_model_version_by_alias("small", "challenger")
    model = client.get_logged_model(str(version.source).removeprefix("models:/"))
    before = client.get_model_version_by_alias("stripes", "challenger")
    assert model.tags["mlflow_opt.source_model_id"] == str(before.source).removeprefix("models:/")


@pytest.mark.slow
def test_prune_keeps_the_nearest_when_no_widths_are_fast_enough(given: dict[str, Any], tracking_uri: str) -> None:
    Path(given["policy"]).write_text("validation_criteria: [{metric: latency_p50_ms, max: 0.000001}]\n")
    assert prune(**given, register_as="never", method="structured", rates="0.5", epochs=1, steps=1) is None
    assert "pruned_nearest" in variants_of(tracking_uri, "prune")
    assert not MlflowClient(tracking_uri).search_registered_models()
    assert any("It is kept as the nearest" in run.data.tags.get("mlflow.note.content", "") for run in runs_of(tracking_uri))


@pytest.mark.slow
def test_prune_sets_zeros_in_every_way_when_asked_for_unstructured(given: dict[str, Any], tracking_uri: str) -> None:
    prune(**given, method="unstructured", rates="0.7", epochs=2)
    zeros = {name: run.data.metrics["sparsity"] for name, run in variants_of(tracking_uri, "prune").items() if name.startswith("zeros")}
    assert zeros == {
        name: pytest.approx(0.7, abs=0.01) for name in ("zeros_global_70", "zeros_layer_70", "zeros_l1_70", "zeros_gradual_70")
    }


@pytest.mark.parametrize("method", ["rounds", "leaves"])
def test_prune_refuses_when_a_way_of_trees_is_asked_for_a_network(method: Any, given: dict[str, Any], tracking_uri: str) -> None:
    with pytest.raises(ValueError, match="structured, unstructured for arrays"):
        prune(**given, method=method)


@pytest.mark.parametrize("method", ["structured", "unstructured"])
def test_prune_refuses_and_names_the_place_when_forward_decides_by_values(method: Any, tmp_path: Path, tracking_uri: str) -> None:
    pictures = stripes.pictures(tmp_path, rows=400)
    given, answered = (Schema([TensorSpec(np.dtype("float32"), (-1, width))]) for width in (144, 4))
    signature, model = ModelSignature(given, answered), str(tmp_path / "deciding")
    kept = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(Deciding().eval(), model, signature=signature, **kept)
    rows = np.load(pictures)
    np.savez(pictures, image=rows["image"].reshape(-1, 144), target=rows["target"])
    with pytest.raises(ValueError, match=r"cannot be followed at 'if found.mean\(\) > 0:' \(line \d+ of test_network_pruning.py\)"):
        prune(model=model, data=str(pictures), method=method)
