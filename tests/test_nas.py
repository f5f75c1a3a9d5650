from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt import models
from mlflow_opt.architectures.network_space import Facts
from mlflow_opt.networks.trainable import load_trainable
from mlflow_opt.search.searching import Tried
from mlflow_opt.workbench.network_search import _blank
from mlflow_opt.workbench.search_findings import compared, finalists
from recipes.nas import nas
from recipes.prune import prune
from tests import stripes
from tests.tiny import tiny_network, tiny_table

ROOT = Path(__file__).resolve().parent.parent
SPACE = f"{ROOT / 'examples/network_space.py'}:space"
SMALL: dict[str, Any] = {"trials": 2, "time_budget_s": 120.0, "epochs": 2, "search_epochs": 1, "finalists": 1, "budget_s": 3.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write noisy uint8 stripes of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("nas")
    found = np.load(stripes.pictures(folder, rows=500))
    path = folder / "small.npz"
    np.savez(path, image=np.clip(found["image"][:, :8, :8] * 40 + 128, 0, 255).astype(np.uint8), target=found["target"])
    return path


@pytest.fixture
def lenient(tmp_path: Path) -> Path:
    """Write a policy that nearly anything meets."""
    path = tmp_path / "policy.yaml"
    path.write_text("validation_criteria:\n  - {metric: accuracy, max_drop: 0.9}\n  - {metric: speedup, min: 0.001}\n")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def runs_of(uri: str, recipe: str) -> tuple[Run, list[Run]]:
    client = MlflowClient(uri)
    every = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = [run for run in every if run.data.tags.get("mlflow_opt.recipe") == recipe]
    parent = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
    return parent, [run for run in found if run is not parent]


def test_nas_refuses_when_the_data_are_a_table(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_table(tmp_path)
    with pytest.raises(ValueError, match="array"):
        nas(data=str(tiny.data), trials=1, epochs=1, search_epochs=1, finalists=1)
    assert MlflowClient(tracking_uri).search_registered_models() == []


@pytest.mark.parametrize("wrong", [{"finalists": 0}, {"epochs": 0}, {"workers": 0}])
def test_nas_says_the_rule_when_a_number_is_wrong(wrong: dict[str, int], tmp_path: Path, tracking_uri: str) -> None:
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=name):
        nas(data=str(tmp_path / "none.npz"), **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_nas_keeps_trials_and_finalists_when_run(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_network(tmp_path)
    nas(
        model=str(tiny.model),
        data=str(tiny.data),
        trials=2,
        time_budget_s=60.0,
        epochs=1,
        search_epochs=1,
        finalists=1,
        budget_s=3.0,
    )
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert sum("mlflow_opt.trial" in run.data.tags for run in runs) >= 1
    variants = {run.data.tags.get("mlflow_opt.variant") for run in runs} - {None, "baseline"}
    assert variants == {"runtime_only", "searched_1", "mobilenetv2"}
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_nas_finds_a_network_that_can_be_pruned_again_when_it_registers(pictures: Path, tracking_uri: str, lenient: Path) -> None:
    given: dict[str, Any] = {"data": str(pictures), "policy": str(lenient)}
    verdict = nas(**given, **SMALL, register_as="stripes", space=SPACE)
    assert verdict is not None
    parent, children = runs_of(tracking_uri, "nas")
    names = {str(run.info.run_name) for run in children}
    assert {"baseline", "runtime_only", "searched_1"} <= names
    assert {name for name in names if "-" in name} == {"trial-0000", "trial-0001", "random-0000", "random-0001"}
    trial = next(run for run in children if run.info.run_name == "trial-0000")
    assert {"score", "relative_latency", "latency_p50_ms", "parameters", "whole"} <= set(trial.data.metrics)
    assert {"search_gap", "unseen_score", "hypervolume", "hypervolume_random"} <= set(parent.data.metrics)
    variants = {str(run.info.run_name): set(run.data.metrics) for run in children if "mlflow_opt.variant" in run.data.tags}
    assert "macs" in variants["searched_1"]
    artifacts = {item.path for item in MlflowClient(tracking_uri).list_artifacts(parent.info.run_id)}
    assert {"search_pareto.png", "pareto.png", "curves.png", "report.html"} <= artifacts

    found = models.load("models:/stripes@challenger")
    assert type(load_trainable(found.path)).__name__ in ("Pooled", "SearchedCNN")
    again: dict[str, Any] = {**given, "model": "models:/stripes@challenger", "register_as": "narrow", "budget_s": 3.0}
    prune(**again, method="structured", rates="0.4", epochs=1, steps=1)
    client = MlflowClient(tracking_uri)
    version = client.get_model_version_by_alias("narrow", "challenger")
    model = client.get_logged_model(str(version.source).removeprefix("models:/"))
    assert model.tags["mlflow_opt.source_model_id"] == found.model_id, "the lineage shows the chain"


@pytest.mark.slow
def test_nas_prunes_what_it_finds_when_asked_to(pictures: Path, tracking_uri: str, lenient: Path, tmp_path: Path) -> None:
    # Too short for a second trial, too: the first is whole all the same.
    nas(data=str(pictures), policy=str(lenient), **{**SMALL, "time_budget_s": 0.01}, space=SPACE, prune=True, rival=False)
    parent, children = runs_of(tracking_uri, "nas")
    metrics = {str(run.info.run_name): run.data.metrics for run in children}
    assert {"searched_1", "searched_pruned_50", "trial-0000"} <= set(metrics)
    assert "trial-0001" not in metrics
    assert 0 < metrics["searched_pruned_50"]["macs"] < 0.6 * metrics["searched_1"]["macs"]
    told = parent.data.tags["mlflow.note.content"]
    assert "time_budget_s=0.01 is shorter than a trial" in told
    assert "trained with an L1 term" in told


@pytest.mark.slow
def test_nas_goes_on_where_it_was_when_run_again(pictures: Path, tracking_uri: str, lenient: Path, tmp_path: Path) -> None:
    # A model that is given is the same in both runs.
    model = stripes.cnn(tmp_path, stripes.pictures(tmp_path, rows=400), epochs=1)
    given: dict[str, Any] = {"data": str(tmp_path / "pictures.npz"), "policy": str(lenient), "model": str(model), "rival": False}
    nas(**given, **{**SMALL, "trials": 1})
    nas(**given, **SMALL)
    client = MlflowClient(tracking_uri)
    every = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    trials = sorted(str(run.info.run_name) for run in every if str(run.info.run_name).startswith("trial-"))
    assert trials == ["trial-0000", "trial-0001"], "the second run added one trial to the study of the first"


def test_nas_says_why_when_the_space_fails(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def space(trial, shape, outputs):\n    raise RuntimeError('no such layer')\n")
    model = stripes.cnn(tmp_path, stripes.pictures(tmp_path, rows=400), epochs=1)
    with pytest.raises(ValueError, match=r"broken.py:space' must build a network, it raised RuntimeError: no such layer"):
        nas(model=str(model), data=str(tmp_path / "pictures.npz"), space=f"{tmp_path / 'broken.py'}:space", **SMALL)
    parent, _ = runs_of(tracking_uri, "nas")
    assert parent.info.status == "FAILED"


def test_blank_network_is_built_when_a_space_refuses_some_of_its_proposals(tmp_path: Path) -> None:
    path = tmp_path / "choosy.py"
    path.write_text(
        "import torch\n\ndef space(trial, shape, outputs):\n"
        "    if trial.suggest_float('share', 0, 1) < 0.5:\n        raise ValueError('too small')\n"
        "    return torch.nn.Linear(shape[0], outputs)\n"
    )
    facts = Facts("numbers", (5,), {"outputs": 3, "shift": 0.0, "spread": 1.0})
    for seed in range(3):
        module, ranges = _blank(facts, f"{path}:space", seed)
        assert isinstance(module, torch.nn.Linear)
        assert set(ranges) == {"share"}


def test_finalists_are_any_trials_when_none_was_trained_to_the_end() -> None:
    tried = [Tried(at, "complete", (0.5 + at / 10, 1.0 + at), {}, {"whole": 0.0}) for at in range(3)]
    assert [one.number for one in finalists(tried, 2)] == [2, 1]
    assert [one.number for one in finalists([*tried, Tried(3, "complete", (0.4, 3.0), {}, {"whole": 1.0})], 2)] == [3]


def test_finalists_are_the_most_accurate_that_are_faster_than_the_model_when_there_are_such() -> None:
    points = [(0.90, 1.8), (0.85, 0.9), (0.84, 0.5), (0.83, 0.6), (0.70, 0.1)]
    tried = [Tried(at, "complete", point, {}, {"whole": 1.0}) for at, point in enumerate(points)]
    failed = Tried(9, "failed", (), {}, {})
    assert [one.number for one in finalists([failed, *tried], 2)] == [1, 2]
    assert [one.number for one in finalists([failed, *tried], 9)] == [1, 2, 4]


def test_hypervolumes_are_compared_from_one_corner_when_two_searches_ran() -> None:
    wide, narrow = (
        [Tried(at, "complete", values, {}) for at, values in enumerate(points)]
        for points in ([(0.9, 1.0), (0.7, 0.5)], [(0.8, 1.0), (0.6, 2.0)])
    )
    found = compared(wide, narrow)
    assert found["hypervolume"] > found["hypervolume_random"] > 0
    assert compared(narrow, wide) == {"hypervolume": found["hypervolume_random"], "hypervolume_random": found["hypervolume"]}
