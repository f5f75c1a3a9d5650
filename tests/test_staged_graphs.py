"""A graph cut behind its trees gives every request the bits that it gets alone, or is not cut."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_code import SessionOptions
from mlflow_opt.serving.app import Application
from mlflow_opt.serving.operators import uncertain_operators
from mlflow_opt.serving.staged_graphs import NoCut, StagedGraph
from tests import tree_zoo as zoo
from tests.serving_models import answered_by, client, numbers, save_variant, serving_models, split, with_application

__all__ = ["serving_models"]


def _variant(name: str, folder: Path) -> tuple[Path, dropin_code.Spec]:
    model, rows, _, task = zoo.saved(name, folder / "native")
    artifacts = save_variant(model.path, folder / "variant", rows.head(64), task) / "artifacts"
    return artifacts / "model.onnx", dropin_code.read_spec(artifacts / "variant.json")


@pytest.mark.parametrize("name", ["lightgbm", "lightgbm_multiclass", "boosting", "histogram"])
def test_staged_graph_answers_each_request_as_alone_when_joined(name: str, tmp_path: Path) -> None:
    graph, spec = _variant(name, tmp_path)
    assert uncertain_operators(graph)
    output = spec.binding.output
    wanted = [output.label if spec.answer.kind == "labels" and output.label else output.name]
    whole, staged = dropin_code.open_session(graph, SessionOptions()), StagedGraph(graph, SessionOptions(), wanted)
    rows = zoo.table(200, holes=name != "boosting", seed=5)
    sizes, start, alone = [1, 1, 3, 1, 16, 2, 1, 40, 7, 1], 0, []
    for size in sizes:
        feeds = dropin_code.feed(rows.iloc[start : start + size], spec.binding.inputs)
        alone.append(dropin_code.run(whole, wanted, feeds)[0])
        start += size
    feeds = dropin_code.feed(rows.iloc[:start], spec.binding.inputs)
    joined = dropin_code.run(staged.for_requests(sizes), wanted, feeds)[0]
    np.testing.assert_array_equal(joined, np.concatenate(alone))
    assert len(joined) == sum(sizes)


@pytest.mark.parametrize("name", ["mixed_variant", "network_variant"])
def test_staged_graph_is_not_made_when_trees_are_not_what_is_uncertain(serving_models: Mapping[str, Path], name: str) -> None:
    with pytest.raises(NoCut):
        StagedGraph(serving_models[name] / "artifacts" / "model.onnx", SessionOptions(), ["y"])


def test_staged_graph_is_not_made_when_onnx_is_missing(serving_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NoCut, match="onnx is not installed"):
        StagedGraph(serving_models["trees_variant"] / "artifacts" / "model.onnx", SessionOptions(), ["scores"])


def test_server_joins_a_classifier_of_trees_when_batching_is_exact(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        assert application.live.served.facts.batches == "yes"
        answer = await client(application).post("/invocations", content=split(numbers(2)), headers={"content-type": "application/json"})
        assert answer.status_code == 200

    assert answered_by(with_application(serving_models["trees_variant"], check)) == {"fast": 1}
