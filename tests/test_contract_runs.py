"""Every recipe, run on a tiny model in a process of its own, twice with one seed and a policy that nothing can meet."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt.declaration.entries import Entry, entries
from tests.tiny import Tiny, tiny_ensemble, tiny_network, tiny_table, tiny_trees

ROOT = Path(__file__).resolve().parent.parent
RECIPES = [entry for entry in entries() if entry.kind == "recipe"]
# The recipe's bundled data tells what it works on.
KINDS = {"fashion_mnist": tiny_network, "telco_churn": tiny_table}
# Recipes that work on a model of their own kind.
OWN_KINDS = {"prune": tiny_trees, "prune_ensemble": tiny_ensemble}
# (recipe, why it is not run here). Nothing else is left out.
SKIPS: tuple[tuple[str, str], ...] = (
    ("serve", "it compares settings of a server, not variants of a model: it takes no policy and registers nothing"),
    ("compare", "it reads the runs of others and makes no variants"),
    ("baseline", "it makes a first model, which no policy judges"),
    ("pipeline", "its steps are the recipes that run here; test_pipeline runs it"),
)
# What a search or a training is kept to here, by the names that recipes share.
SMALL = {"trials": 3, "epochs": 2, "time_budget_s": 60.0}
# A high quantile is left out where a loaded machine gave too few samples for it.
SAMPLED = {"latency_p95_ms", "latency_p99_ms"}
SECONDS = 900

IMPOSSIBLE = """
validation_criteria:
  - {metric: speedup, min: 1000000}
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    """What one run of a recipe left behind: the exit code and what it said, its runs, its graphs' digests, how many names it registered."""

    code: int
    said: str
    parent: Run
    children: dict[str, Run]
    graphs: dict[str, str]
    registered: int


@dataclass(frozen=True)
class Twice:
    """Two runs of one recipe with one seed, and the digests of the given model's files before and after."""

    runs: tuple[Ended, Ended]
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module", params=RECIPES, ids=lambda entry: entry.name)
def twice(request: pytest.FixtureRequest, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """Run a recipe twice."""
    entry: Entry = request.param
    for name, why in SKIPS:
        if name == entry.name:
            pytest.skip(why)
    folder = tmp_path_factory.mktemp(entry.name)
    bundled = next(item.default for item in entry.signature().parameters if item.name == "data")
    tiny = OWN_KINDS.get(entry.name, KINDS[str(bundled)])(folder)
    before = _digests(tiny.model)
    homes = (folder / "first", folder / "second")
    for home in homes:
        home.mkdir()
        (home / "mlflow.db").write_bytes(empty_store.read_bytes())
        (home / "impossible.yaml").write_text(IMPOSSIBLE)
    # At the same time: no figure is looked at here, and most of the time goes into measuring.
    processes = [_start(entry, tiny, home) for home in homes]
    try:
        first, second = (_ended(process.wait(SECONDS), home) for process, home in zip(processes, homes, strict=True))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return Twice((first, second), before, _digests(tiny.model))


def test_recipe_ends_finished_and_registers_nothing_when_policy_is_impossible(twice: Twice) -> None:
    for ended in twice.runs:
        assert ended.code == 0, ended.said
        assert ended.parent.info.status == "FINISHED"
        assert {run.info.status for run in ended.children.values()} == {"FINISHED"}
        assert ended.registered == 0


def test_recipe_logs_a_baseline_and_variants_with_the_same_metrics_when_run(twice: Twice) -> None:
    children = twice.runs[0].children
    assert "baseline" in children
    variants = {name: set(run.data.metrics) - SAMPLED for name, run in children.items() if name != "baseline"}
    assert variants
    names = next(iter(variants.values()))
    assert all(found == names for found in variants.values())
    missing = set(children["baseline"].data.metrics) - SAMPLED - names
    assert not missing
    assert {"latency_p50_ms", "size_mb"} <= set(children["baseline"].data.metrics)


def test_recipe_makes_identical_variants_when_seed_is_the_same(twice: Twice) -> None:
    first, second = twice.runs
    assert first.graphs
    assert first.graphs == second.graphs


def test_recipe_leaves_the_model_it_was_given_alone_when_run(twice: Twice) -> None:
    assert twice.before
    assert twice.after == twice.before


def _start(entry: Entry, tiny: Tiny, home: Path) -> subprocess.Popen[str]:
    given = {
        "model": tiny.model,
        "data": tiny.data,
        "target": tiny.target,
        "policy": home / "impossible.yaml",
        "register_as": "never",
        "seed": 0,
        **SMALL,
    }
    words = [f"--{name}={value}" for name, value in given.items() if name in entry.signature().names]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"recipes.{entry.name}", *words]
    with (home / "said.txt").open("w") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, text=True, cwd=home, env=environment)


def _ended(code: int, home: Path) -> Ended:
    said = (home / "said.txt").read_text()
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert runs, said
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    # Trials of a search have figures and no model; what is compared are the variants.
    children = {str(run.info.run_name): run for run in runs if "mlflow_opt.variant" in run.data.tags}
    return Ended(code, said, parent, children, _graphs(children, client), len(client.search_registered_models()))


def _graphs(children: dict[str, Run], client: MlflowClient) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, run in children.items():
        for output in run.outputs.model_outputs if run.outputs else []:
            location = str(client.get_logged_model(output.model_id).artifact_location).removeprefix("file://")
            found |= {
                f"{name}/{path}": digest for path, digest in _digests(Path(location)).items() if path.endswith((".onnx", ".safetensors"))
            }
    return found


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
