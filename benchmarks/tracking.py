"""What tracking a child run costs over the raw store, on sqlite, in turns in one run, and whether it stays flat.

Run with `python -m benchmarks.tracking`. A child has 30 metrics, 20 parameters and its tags. The raw store's own cost is
the same content through SqlAlchemyStore's create_run, log_batch and update_run_info, without client, context or checks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from benchmarks.results_file import save
from mlflow_opt.runs import tracking

CHILDREN, MODELS = 500, 20
METRICS = {f"metric_{i}": i / 7 for i in range(30)}
PARAMS = {f"param_{i}": str(i) for i in range(20)}
TAGS = {"mlflow_opt.recipe": "benchmark", "mlflow_opt.variant": "v", "mlflow_opt.standing": "passes"}


def main() -> None:
    """Measure and write results/tracking.*."""
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{name}/mlflow.db"
        mlflow.set_tracking_uri(uri)
        raw_store: Any = SqlAlchemyStore
        store = raw_store(uri, f"{name}/artifacts")
        parent = tracking.open_parent("benchmark", {}, TAGS)
        ours, raw = [], []
        for number in range(CHILDREN):
            ours.append(_timed(partial(tracking.log_finished_child, parent, f"child{number}", METRICS, PARAMS, TAGS)))
            raw.append(_timed(partial(_raw_child, store, parent.experiment_id)))
        models = _log_models(Path(name), parent)
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    hundred = CHILDREN // 5
    early, late = statistics.median(ours[:hundred]), statistics.median(ours[-hundred:])
    low, middle, high = statistics.quantiles(ratios, n=4)
    figures = {
        "child_ms": statistics.median(ours) * 1e3,
        "raw_ms": statistics.median(raw) * 1e3,
        "ratio_median": middle,
        "ratio_low": low,
        "ratio_high": high,
        "late_over_early": late / early,
        "late_over_early_raw": statistics.median(raw[-hundred:]) / statistics.median(raw[:hundred]),
        "log_model_s": statistics.median(models),
        "children": CHILDREN,
    }
    # The disk's own drift hits both alike: flat is what the raw store's neighbours in time are.
    drift = figures["late_over_early"] / figures["late_over_early_raw"]
    lines = [
        "| what | measured | bound |",
        "|---|---|---|",
        f"| child run, 30 metrics + 20 params + tags: over the raw store | {middle:.2f}x (quartiles {low:.2f}-{high:.2f}) | 1.3x |",
        f"| the last 100 of {CHILDREN} children over the first 100, over the same of the raw store | {drift:.2f}x | flat |",
        f"| logging a variant's model | {figures['log_model_s'] * 1e3:.0f} ms | 150 ms |",
    ]
    save("tracking", figures, lines)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _raw_child(store: Any, experiment: str) -> None:
    now = int(time.time() * 1000)
    run = store.create_run(experiment, "", now, [RunTag(key, value) for key, value in TAGS.items()], "raw")
    metrics = [Metric(key, value, now, 0) for key, value in METRICS.items()]
    store.log_batch(run.info.run_id, metrics, [Param(key, value) for key, value in PARAMS.items()], [])
    store.update_run_info(run.info.run_id, RunStatus.FINISHED, now, "raw")


def _log_models(folder: Path, parent: tracking.Parent) -> list[float]:
    files = folder / "variant"
    files.mkdir()
    (files / "MLmodel").write_text("flavors: {python_function: {loader_module: none}}\n")
    (files / "model.onnx").write_bytes(bytes(1_000_000))
    run = MlflowClient().create_run(parent.experiment_id)
    times = []
    for number in range(MODELS):
        started = time.perf_counter()
        tracking.upload_model(tracking.create_model(parent, run.info.run_id, f"v{number}", PARAMS, TAGS), files)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
