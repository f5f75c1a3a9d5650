"""A 500-tree LightGBM in ONNX Runtime against `booster.predict` on an array and against the baseline through MLflow's pyfunc.

Run with `python -m benchmarks.compile`. Through pyfunc a bare booster costs less than LightGBM's classifier, which is what most users
log, so both stand here. The graph in single precision and LightGBM's own call for one row are shown beside the default.
Bounds: 1.9x over booster.predict at one row, 80x over the classifier's pyfunc on a DataFrame, 2.3x at a batch of 1,000 rows, no label
flipped on the gate rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.results_file import interval, save
from mlflow_opt import data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.flavours import single_row
from mlflow_opt.measurement.stopwatch import PYFUNC_LOADER, Entry, time_models
from mlflow_opt.models import Model
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Quantity

POLICY = parse_policy("validation_criteria: [{metric: speedup, min: 1.9}, {metric: label_flips, max: 0}]")
CONDITIONS = measure.Conditions(threads=1, budget_s=60.0)
TREES, LEAVES, FEATURES, ROWS = 500, 63, 30, 20_000


def main() -> None:
    """Measure and write results/compile.*."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = data.split(data.read(str(made_table(folder))))
        booster, classifier = (models.load(str(path)) for path in _trained(split, folder))
        example = data.take(split.calibration.rows, slice(0, 64))
        variants = [_compiled(booster, example, split, folder / f"single_{single}", single=single) for single in (False, True)]
        found = measure.evidence(variants[0], booster, split.gate, split.task, POLICY, CONDITIONS).candidate.quantities
        quick = single_row.save_quick(booster, folder / "quick")
        rivals = [Entry(str(one.path), PYFUNC_LOADER) for one in (booster, classifier)]
        pyfunc = time_models([variants[0], *rivals], split.gate.rows, sessions=5, calls=60)
        others = time_models([booster, variants[0], variants[1], quick], split.gate.rows, sessions=5, calls=400)
    asked = {
        "one row, over booster.predict on an array": (found["speedup"], ">= 1.9"),
        "one row, over the baseline's pyfunc on a DataFrame, LightGBM's classifier": (pyfunc.speedup(0, 2), ">= 80"),
        "one row, over a bare booster's pyfunc on a DataFrame": (pyfunc.speedup(0, 1), "-"),
        "1,000 rows, throughput over booster.predict": (found["throughput_ratio"], ">= 2.3"),
        "labels flipped on the gate rows": (found["label_flips"], "0"),
        "one row in single precision, over booster.predict": (others.speedup(2, 0), "-"),
        "one row by LightGBM's own single-row call, over booster.predict": (others.speedup(3, 0), "-"),
        "booster.predict on one row, us": (_microseconds(others.latency(0)), "-"),
        "the compiled model on one row, us": (_microseconds(others.latency(1)), "-"),
        "the classifier's pyfunc on one row, us": (_microseconds(pyfunc.latency(2)), "-"),
    }
    lines = [
        f"{TREES} trees x {LEAVES} leaves, {FEATURES} features, one thread; {len(split.gate.labels)} gate rows.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
        *(f"| {what} | {interval((q.value, q.lo, q.hi))} | {bound} |" for what, (q, bound) in asked.items()),
    ]
    save("compile", {what: [q.value, q.lo, q.hi, q.n] for what, (q, _) in asked.items()}, lines)


def made_table(folder: Path) -> Path:
    """Make a table of 30 numbers with interactions; no bundled table has as many features."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    odds = values[:, 0] * values[:, 1] + np.sin(3 * values[:, 2]) + values[:, 3:8].sum(axis=1) + rng.normal(size=ROWS)
    table = pd.DataFrame(values.astype(float), columns=[f"x{i}" for i in range(FEATURES)])
    table["target"] = (odds > 0).astype(int)
    path = folder / "table.parquet"
    table.to_parquet(path)
    return path


def _trained(split: data.Split, folder: Path) -> tuple[Path, Path]:
    """Train the trees once, and save them as a bare booster and as LightGBM's classifier."""
    import lightgbm
    import mlflow
    from mlflow.models import infer_signature

    classifier = lightgbm.LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, n_jobs=1, random_state=0, verbose=-1)
    classifier.fit(split.train.rows, split.train.labels)
    head = data.take(split.train.rows, slice(0, 50))
    made: dict[str, Any] = {"booster": classifier.booster_, "classifier": classifier}
    for name, model in made.items():
        signature = infer_signature(head, model.predict(head))
        mlflow.lightgbm.save_model(model, folder / name, signature=signature, pip_requirements=["lightgbm"])
    return folder / "booster", folder / "classifier"


def _compiled(booster: Model, example: data.Batch, split: data.Split, folder: Path, *, single: bool) -> Model:
    graph = exporting.to_onnx(booster, example, split.task, single=single)
    return dropin.save_dropin(graph, booster, folder, session=dropin.SessionOptions(), example=example)


def _microseconds(latency: Quantity) -> Quantity:
    return Quantity(1e3 * latency.value, 1e3 * latency.lo, 1e3 * latency.hi, latency.n)


if __name__ == "__main__":
    main()
