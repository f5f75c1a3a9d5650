"""What a search finds on this CPU in a given time, beside MobileNetV2 trained alike and random search of the same budget.

Run with `python -m benchmarks.nas [seconds] [seeds]` (default 600 seconds for each study, seed 0; the bound speaks of 1,800 and
three seeds). The recipe itself runs, in a store of its own; what it wrote is read back, and the networks that it found are
measured against MobileNetV2 on the gate rows, in turns in fresh processes, both in ONNX Runtime.

Bounds: at most half of MobileNetV2's parameters and a lower latency at an accuracy that is not lower; the front's hypervolume is
larger than random search's, over three seeds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient

from benchmarks.results_file import interval, save
from mlflow_opt import data, measure, models
from mlflow_opt.policy import parse_policy
from recipes.nas import nas

# What is asked of the network that is chosen: next to no accuracy given up.
POLICY = "validation_criteria: [{metric: accuracy, max_drop: 0.005}, {metric: speedup, min: 1.05}]\n"
CONDITIONS = measure.Conditions(threads=1, batch_size=32, budget_s=30.0)


def hunt(seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run the recipe once and read what it found."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "XDG_CACHE_HOME": str(folder / "cache")}
    mlflow.set_tracking_uri(uri)
    (folder / "policy.yaml").write_text(POLICY)
    nas(policy=str(folder / "policy.yaml"), seed=seed, trials=400, time_budget_s=seconds, budget_s=20.0)
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    outputs = {str(run.info.run_name): run.outputs.model_outputs for run in runs if run.outputs}
    found = {name: models.load(f"models:/{made[0].model_id}", 1) for name, made in outputs.items() if made}
    told: dict[str, Any] = {name: parent.data.metrics[name] for name in ("hypervolume", "hypervolume_random", "search_gap")}
    told["trials"] = sum(str(run.info.run_name).startswith("trial-") for run in runs)
    split, rules = data.split(data.read("fashion_mnist")), parse_policy(POLICY)
    for name in sorted(one for one in found if one.startswith("searched")):
        measured = measure.evidence(found[name], found["runtime_only"], split.gate, split.task, rules, CONDITIONS).candidate.quantities
        told[name] = {
            "speedup": _ends(measured["speedup"]),
            "points lost": [100 * one for one in _ends(measured["drop_accuracy"])],
            "parameters": found[name].parameters / found["runtime_only"].parameters,
        }
    return told


def _ends(quantity: Any) -> list[float]:
    return [quantity.value, quantity.lo, quantity.hi]


def main() -> None:
    """Measure and write results/nas.*."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    lines = [
        f"{seconds:.0f} s for each study; MobileNetV2 of half width is the baseline, in the same runtime.",
        "",
        "| seed | trials | found | over MobileNetV2, one row [95%] | parameters | points lost [95%] | hypervolume, random | search gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {"seconds": seconds}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            found = hunt(seconds, seed, Path(name))
        figures[f"seed {seed}"] = found
        volumes = f"{found['hypervolume']:.4f}, {found['hypervolume_random']:.4f}"
        for key, one in found.items():
            if isinstance(one, dict):
                shown = f"{interval(one['speedup'])} | {one['parameters']:.2f} | {interval(one['points lost'])}"
                lines.append(f"| {seed} | {found['trials']} | {key} | {shown} | {volumes} | {found['search_gap']:+.4f} |")
    save("nas", figures, [*lines, "", "Bounds: > 1 | <= 0.50 | <= 0 | larger than random's, over three seeds."])


if __name__ == "__main__":
    main()
