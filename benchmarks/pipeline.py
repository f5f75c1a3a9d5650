"""`pipeline` as a user runs it, from data to a promoted version: what it brought, in which parts, and how long it took.

Run with `python -m benchmarks.pipeline churn` or `... images` on a machine that does nothing else: server and client share it.
Each set of data is kept in results/pipeline.json until it is measured again. Every figure is the run's own, as it stands in
MLflow; quality is of the half of the gate rows that no step was judged on. Bounds: churn, served latency down by 90% and the
model's own call by 60%, F1 up by 4 points, in 10 minutes; images, 8 times as fast for at most a point, in 30 minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.results_file import FOLDER, interval, save

# Data -> what is asked of the pipeline, the time it is given.
SETS = {"churn": ("telco_churn", 540.0), "images": ("fashion_mnist", 900.0)}
ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> None:
    """Run the sets that are named, all if none, and write results/pipeline.*.

    Args:
        argv: `churn`, `images`.

    Raises:
        KeyError: there is no such set.
    """
    path = FOLDER / "pipeline.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {name: known[name] for name in SETS if name in known}
    for name in argv or SETS:
        found[name] = measured(*SETS[name])
    save("pipeline", found, [line for name in SETS if name in found for line in section(name, found[name])])


def measured(data: str, budget_s: float) -> dict[str, Any]:
    """Run the pipeline on a set of data in a store of its own, and read what it left."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "recipes.pipeline", "--data", data, "--register_as", "model", "--time_budget_s", str(budget_s)]
        started = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True)
        minutes = (time.monotonic() - started) / 60
        client = MlflowClient(store)
        (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "mlflow-opt"]
        (parent,) = [run for run in client.search_runs([experiment], "tags.`mlflow_opt.recipe` = 'pipeline'") if _is_parent(run)]
        children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", order_by=["start_time ASC"])
        aliases = client.get_registered_model("model").aliases if client.search_registered_models() else {}
    values = parent.data.metrics
    return {
        "minutes": minutes,
        "cores": len(os.sched_getaffinity(0)),
        "metrics": {name: value for name, value in values.items() if name.startswith(("gain_", "served", "server", "baseline_", "gate_"))},
        "steps": [_step(run) for run in children if run.info.run_name != "baseline"],
        "champion": str(aliases.get("champion", "")),
        "story": parent.data.tags["mlflow.note.content"],
    }


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Write a set's table: what was asked and what came, then the steps with what each brought."""
    values = found["metrics"]
    faster = [values[f"gate_speedup{end}"] for end in ("", "_lo", "_hi")]
    rows = _churn(values, faster) if name == "churn" else _images(values, faster)
    limit = 10 if name == "churn" else 30
    rows.append((f"{name}: minutes from data to champion, {found['cores']} core(s)", f"{found['minutes']:.1f}", f"<= {limit}"))
    lines = [f"**{SETS[name][0]}**", "", "| what | measured [95%] | bound |", "|---|---|---|"]
    lines += [f"| {what} | {shown} | {bound} |" for what, shown, bound in rows]
    return [*lines, "", *_tables(found["story"]), ""]


def _churn(values: dict[str, float], faster: list[float]) -> list[tuple[str, str, str]]:
    saved = interval([100 * values[f"served_saved{end}"] for end in ("", "_lo", "_hi")], "{:.1f}")
    call = interval([100 * (1 - 1 / one) for one in faster], "{:.1f}")
    gain = interval([100 * values[f"gain_f1{end}"] for end in ("", "_lo", "_hi")], "{:+.1f}")
    return [
        ("churn: served latency saved, one row over HTTP, %", saved, ">= 90"),
        ("churn: the model's own call saved, one row, %", call, ">= 60"),
        ("churn: F1 gained, points, on rows that no step has seen", gain, ">= 4"),
    ]


def _images(values: dict[str, float], faster: list[float]) -> list[tuple[str, str, str]]:
    lost = interval([100 * values[f"gate_drop_accuracy{end}"] for end in ("", "_lo", "_hi")])
    return [
        ("images: one row, times as fast as the first model", interval(faster, "{:.1f}"), ">= 8"),
        ("images: accuracy lost, points, on rows that no step has seen", lost, "<= 1"),
    ]


def _tables(story: str) -> list[str]:
    """Take the tables of the parts and of the served latency out of the run's description."""
    blocks = story.split("\n\n")
    wanted = [at for at, block in enumerate(blocks) if block.startswith(("What each step brought", "Served, one row"))]
    return "\n\n".join(f"{blocks[at]}\n\n{blocks[at + 1]}" for at in wanted).splitlines()


def _step(run: Run) -> dict[str, str]:
    kept = "standing" not in run.data.params
    name = str(run.info.run_name).removeprefix("step_")
    return {"step": name, "standing": "kept" if kept else run.data.params["standing"], "why": run.data.params.get("reason", "")}


def _is_parent(run: Run) -> bool:
    return "mlflow.parentRunId" not in run.data.tags


if __name__ == "__main__":
    main(sys.argv[1:])
