"""A 500-tree LightGBM in ONNX Runtime against `booster.predict` on an array and against the baseline through MLflow's pyfunc.

Run with `python -m benchmarks.compile`. Bounds: 1.9x over booster.predict at one row, 80x
over the pyfunc DataFrame path, 2.3x at a batch of 1,000 rows, no label flipped on the gate rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.results_file import interval, save
from mlflow_opt import data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.measurement.stopwatch import PYFUNC_LOADER, Entry, time_models
from mlflow_opt.policy import parse_policy

POLICY = parse_policy("validation_criteria: [{metric: speedup, min: 1.9}, {metric: label_flips, max: 0}]")
CONDITIONS = measure.Conditions(threads=1, budget_s=60.0)
TREES, LEAVES, FEATURES, ROWS = 500, 63, 30, 20_000


def main() -> None:
    """Measure and write results/compile.*."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = data.split(data.read(str(_table(folder))))
        booster = models.load(str(_booster(split, folder / "booster")))
        example = data.take(split.calibration.rows, slice(0, 64))
        graph = exporting.to_onnx(booster, example, split.task)
        variant = dropin.save_dropin(graph, booster, folder / "variant", session=dropin.SessionOptions(), example=example)
        found = measure.evidence(variant, booster, split.gate, split.task, POLICY, CONDITIONS).candidate.quantities
        pyfunc = time_models([Entry(str(variant.path)), Entry(str(booster.path), PYFUNC_LOADER)], split.gate.rows, sessions=5, calls=60)
    over_pyfunc = pyfunc.speedup(0, 1)
    asked = {
        "one row, over booster.predict on an array": (found["speedup"], ">= 1.9"),
        "one row, over the baseline's pyfunc on a DataFrame": (over_pyfunc, ">= 80"),
        "1,000 rows, throughput over booster.predict": (found["throughput_ratio"], ">= 2.3"),
        "labels flipped on the gate rows": (found["label_flips"], "0"),
    }
    lines = [
        f"{TREES} trees x {LEAVES} leaves, {FEATURES} features, one thread; {len(split.gate.labels)} gate rows.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
        *(f"| {what} | {interval((q.value, q.lo, q.hi))} | {bound} |" for what, (q, bound) in asked.items()),
    ]
    save("compile", {what: [q.value, q.lo, q.hi, q.n] for what, (q, _) in asked.items()}, lines)


def _table(folder: Path) -> Path:
    """Make a table of 30 numbers with interactions; no bundled table has as many features."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    odds = values[:, 0] * values[:, 1] + np.sin(3 * values[:, 2]) + values[:, 3:8].sum(axis=1) + rng.normal(size=ROWS)
    table = pd.DataFrame(values.astype(float), columns=[f"x{i}" for i in range(FEATURES)])
    table["target"] = (odds > 0).astype(int)
    path = folder / "table.parquet"
    table.to_parquet(path)
    return path


def _booster(split: data.Split, folder: Path) -> Path:
    import lightgbm
    import mlflow
    from mlflow.models import infer_signature

    train = lightgbm.Dataset(split.train.rows, split.train.labels)
    settings = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "num_threads": 1, "seed": 0}
    booster = lightgbm.train(settings, train, TREES)
    head = data.take(split.train.rows, slice(0, 50))
    mlflow.lightgbm.save_model(booster, folder, signature=infer_signature(head, booster.predict(head)), pip_requirements=["lightgbm"])
    return folder


if __name__ == "__main__":
    main()
