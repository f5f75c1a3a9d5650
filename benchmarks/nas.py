"""What a search finds on this CPU, beside MobileNetV2 and random search of the same number of trials.

Run with `python -m benchmarks.nas [trials] [seeds]` (default 16 trials for each study, three seeds). The recipe itself runs, in a
store of its own, on Fashion-MNIST; what it wrote is read back, and the networks that it found are measured against MobileNetV2 on
the gate rows, in turns in fresh processes, both in ONNX Runtime. The first seed trains MobileNetV2 as the model to replace; the
others are given it. Trials are counted and not timed, so that a neighbour on this machine cannot give either search more of them.
What the first seed found best is then pruned by half of its multiplications, by the recipe `prune`: do the two add up?

Bounds: at most half of MobileNetV2's parameters and a lower latency at an accuracy that is not lower; the front's hypervolume is
larger than random search's, over three seeds.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.results_file import ends, interval, save
from mlflow_opt import data, measure, models
from mlflow_opt.policy import parse_policy
from recipes.nas import nas
from recipes.prune import prune

# What is asked of the network that is chosen: next to no accuracy given up.
POLICY = "validation_criteria: [{metric: accuracy, max_drop: 0.005}, {metric: speedup, min: 1.05}]\n"
PRUNING_POLICY = "validation_criteria: [{metric: accuracy, max_drop: 0.01}]\n"
CONDITIONS = measure.Conditions(threads=1, batch_size=32, budget_s=10.0)
# Of what was found; MobileNetV2 itself is trained for 12.
EPOCHS = 8
SEARCH_EPOCHS, FINALISTS = 2, 3


def hunt(trials: int, seed: int, model: str, policy: Path) -> tuple[Run, dict[str, str]]:
    """Run the recipe once; gives its run, and the URI of every variant's model."""
    return _run(
        "nas",
        nas,
        model=model,
        policy=str(policy),
        seed=seed,
        trials=trials,
        time_budget_s=0.0,
        epochs=EPOCHS,
        search_epochs=SEARCH_EPOCHS,
        finalists=FINALISTS,
        budget_s=10.0,
    )


def halved(model: str, seed: int, policy: Path) -> dict[str, str]:
    """Remove half of a found network's multiplications by the recipe `prune`; gives the URI of every variant's model."""
    policy.write_text(PRUNING_POLICY)
    asked = {"model": model, "data": "fashion_mnist", "policy": str(policy), "seed": seed, "budget_s": 10.0}
    return _run("prune", prune, method="structured", rates="0.5", epochs=EPOCHS, **asked)[1]


def _run(recipe: str, call: Callable[..., object], **params: Any) -> tuple[Run, dict[str, str]]:
    client = MlflowClient()
    before = {run.info.run_id for run in _parents(client, recipe)}
    call(**params)
    parent = next(run for run in _parents(client, recipe) if run.info.run_id not in before)
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", max_results=1000)
    made = {str(run.info.run_name): run.outputs.model_outputs for run in children if run.outputs}
    return parent, {name: f"models:/{outputs[0].model_id}" for name, outputs in made.items() if outputs}


def told(parent: Run, found: dict[str, str], split: data.Split) -> dict[str, Any]:
    """Read what a run says of its search, and measure what it found beside MobileNetV2 on the gate rows."""
    rules, loaded = parse_policy(POLICY), {name: models.load(uri, 1) for name, uri in found.items()}
    figures: dict[str, Any] = {name: parent.data.metrics[name] for name in ("hypervolume", "hypervolume_random", "search_gap")}
    for name in sorted(one for one in loaded if one.startswith(("searched", "pruned"))):
        theirs = loaded["runtime_only"]
        measured = measure.evidence(loaded[name], theirs, split.gate, split.task, rules, CONDITIONS).candidate.quantities
        figures[name] = {
            "speedup": ends(measured["speedup"]),
            "points lost": [100 * one for one in ends(measured["drop_accuracy"])],
            "parameters": loaded[name].parameters / theirs.parameters,
        }
    return figures


def _parents(client: MlflowClient, recipe: str) -> list[Run]:
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags and run.data.tags.get("mlflow_opt.recipe") == recipe]


def main() -> None:
    """Measure and write results/nas.*."""
    logging.basicConfig(level=logging.INFO)
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    figures: dict[str, Any] = {"trials": trials}
    split, model = data.split(data.read("fashion_mnist")), ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.yaml").write_text(POLICY)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "XDG_CACHE_HOME": str(folder / "cache"), "MLFLOW_EXPERIMENT_NAME": "nas"}
        mlflow.set_tracking_uri(uri)
        MlflowClient().create_experiment("nas", artifact_location=(folder / "artifacts").as_uri())
        for seed in seeds:
            started = time.monotonic()
            parent, found = hunt(trials, seed, model, folder / "policy.yaml")
            if not model:
                model = found["baseline"]
                smaller = halved(found["searched_1"], seed, folder / "pruning.yaml")
                found |= {f"{name} of searched_1": uri for name, uri in smaller.items() if name.startswith("pruned_")}
            figures[f"seed {seed}"] = {"minutes": (time.monotonic() - started) / 60, **told(parent, found, split)}
            # After each seed: what has been measured outlives an interruption.
            save("nas", figures, _lines(figures))


def _lines(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"{figures['trials']} trials for each study; MobileNetV2 of half width is the baseline, in the same runtime.",
        "",
        "| seed | found | over MobileNetV2, one row [95%] | its parameters | points lost [95%] | hypervolume, random's | search gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in (one for one in figures if one.startswith("seed")):
        one = figures[seed]
        ends = f"{one['hypervolume']:.4f}, {one['hypervolume_random']:.4f} | {one['search_gap']:+.4f}"
        for name, values in one.items():
            if isinstance(values, dict):
                shown = f"{interval(values['speedup'])} | {values['parameters']:.2f} | {interval(values['points lost'])}"
                lines.append(f"| {seed.removeprefix('seed ')} | {name} | {shown} | {ends} |")
    return [*lines, "", "Bounds: > 1 | <= 0.50 | <= 0 | larger than random's, over three seeds."]


if __name__ == "__main__":
    main()
