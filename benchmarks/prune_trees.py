"""A model of 500 trees pruned and compiled by the recipe, on real tables and a made one, against `booster.predict` on an array.

Run with `python -m benchmarks.prune_trees [TABLE ...]`. The recipe `prune` runs as a user runs it, with a policy that asks for 8x at one
row and at most half a point of ROC AUC lost; what it chose (or, where nothing met the policy, what came nearest) is then measured anew on
the gate rows. `runtime_only` is the same model in ONNX Runtime with no tree touched: what is gained beyond it is pruning's. Columns of
text are coded as numbers, so that the baseline's own call is `booster.predict` on an array; MLflow's pyfunc gets a DataFrame.
Bounds: 8x at one row over booster.predict, 200x over the baseline's pyfunc, 7x at 1,000 rows, ROC AUC down by at most 0.005.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks import compile as made_up
from benchmarks.real_data import real_data
from benchmarks.results_file import FOLDER, interval, save
from benchmarks.select_features import TABLES as WIDE_TABLES
from mlflow_opt import data, measure, models
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.measurement.stopwatch import PYFUNC_LOADER, Entry, time_models
from mlflow_opt.models import Model
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Measurement, Quantity
from mlflow_opt.runs import choosing
from recipes.prune import prune

TREES, LEAVES = 500, 63
FASTER, BATCH, PYFUNC, LOST = 8.0, 7.0, 200.0, 0.005
POLICY = f"validation_criteria:\n  - {{metric: roc_auc, max_drop: {LOST}}}\n  - {{metric: speedup, min: {FASTER:g}}}\n"
SHOWN = ("method", "n_estimators", "num_leaves", "leaf_share", "rounds", "depth")
CONDITIONS = measure.Conditions(threads=1, budget_s=20.0)


@dataclass(frozen=True)
class Line:
    """One table: what the recipe chose, and what it is worth on the gate rows."""

    table: str
    rows: int
    full: float
    variant: str
    how: str
    chosen: bool
    one_row: Quantity
    runtime_alone: float
    batch: Quantity
    over_pyfunc: Quantity
    lost: Quantity
    seconds: float


def main() -> None:
    """Measure and write results/prune_trees.*; tables that are not named keep the lines that they have."""
    lines = {line.table: line for line in _kept()} if sys.argv[1:] else {}
    for name, write in TABLES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            lines[name] = measured(name, write(Path(folder)), Path(folder))
        _write([lines[one] for one in TABLES if one in lines])


def measured(name: str, path: Path, folder: Path) -> Line:
    """Run the recipe on one table and measure what it chose."""
    split = data.split(data.read(str(path)))
    baseline = models.load(str(trained(split, folder / "trees")), 1)
    (folder / "policy.yaml").write_text(POLICY)
    os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder / 'mlflow.db'}"
    began = time.monotonic()
    prune(model=str(folder / "trees"), data=str(path), policy=str(folder / "policy.yaml"), budget_s=8.0)
    seconds = time.monotonic() - began
    runs = variants_of(uri)
    found, chosen = picked(runs)
    variant = _load(runs[found])
    pair = measure.evidence(variant, baseline, split.gate, split.task, parse_policy(POLICY), CONDITIONS)
    quantities = pair.candidate.quantities
    slow = time_models([variant, Entry(str(baseline.path), PYFUNC_LOADER)], split.gate.rows, sessions=3, calls=40).speedup(0, 1)
    alone = runs["runtime_only"].data.metrics["speedup"]
    how = ", ".join(f"{key} {runs[found].data.params[key]}" for key in SHOWN if key in runs[found].data.params)
    return Line(
        name, len(split.gate.labels), pair.reference.quantities["roc_auc"].value, found, how, chosen,
        quantities["speedup"], alone, quantities["throughput_ratio"], slow, quantities["drop_roc_auc"], seconds,
    )  # fmt: skip


def variants_of(uri: str) -> dict[str, Run]:
    """Find the runs of a session's variants by name."""
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {run.data.tags["mlflow_opt.variant"]: run for run in runs if "mlflow_opt.variant" in run.data.tags}


def picked(runs: dict[str, Run]) -> tuple[str, bool]:
    """Name the variant that the recipe chose, or what came nearest to the policy; and whether it was chosen."""
    chosen = [name for name, run in runs.items() if run.data.tags.get("mlflow_opt.standing") == "chosen"]
    if chosen:
        return chosen[0], True
    rules = parse_policy(POLICY)
    values = {
        name: Measurement({key: Quantity(value, value, value, 1) for key, value in run.data.metrics.items()})
        for name, run in runs.items()
        if name != "baseline"
    }
    return choosing.nearest(values, rules), False


def trained(split: data.Split, folder: Path) -> Path:
    """Train the 500 trees as LightGBM's classifier, which is what most users log."""
    import lightgbm
    import mlflow
    from mlflow.models import infer_signature

    model = lightgbm.LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, n_jobs=1, random_state=0, verbose=-1)
    model.fit(split.train.rows, split.train.labels)
    head = data.take(split.train.rows, slice(0, 50))
    mlflow.lightgbm.save_model(model, folder, signature=infer_signature(head, model.predict(head)), pip_requirements=["lightgbm"])
    return folder


def _kept() -> list[Line]:
    """Read the lines of an earlier run on the same machine."""
    file = FOLDER / "prune_trees.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if said.get("machine") != fingerprint(1):
        return []
    plain: list[dict[str, Any]] = said["lines"]
    quantities: list[dict[str, Any]] = [{key: Quantity(**one) for key, one in line.items() if isinstance(one, dict)} for line in plain]
    return [Line(**{**line, **found}) for line, found in zip(plain, quantities, strict=True)]


def _load(run: Run) -> Model:
    assert run.outputs is not None
    return models.load(f"models:/{run.outputs.model_outputs[0].model_id}", 1)


def _numbers(table: pd.DataFrame, folder: Path) -> Path:
    """Write a table with its texts coded as whole numbers, kept as doubles."""
    coded = {}
    for name in table.columns:
        if name not in ("target", "split"):
            column = table[name]
            numeric = pd.api.types.is_numeric_dtype(column)
            coded[name] = column.astype(float) if numeric else column.astype("category").cat.codes.astype(float)
    path = folder / "numbers.parquet"
    table.assign(**coded).to_parquet(path)
    return path


def _shared(name: str) -> Callable[[Path], Path]:
    return lambda folder: _numbers(pd.read_parquet(real_data(name)), folder)


def _dear(folder: Path) -> Path:
    """Houses above the median price: little noise, so that every tree counts."""
    table = pd.read_parquet(real_data("california.parquet"))
    return _numbers(table.assign(target=(table["target"] > table["target"].median()).astype(int)), folder)


def _words(folder: Path) -> Path:
    return _numbers(pd.read_parquet(WIDE_TABLES["reviews, 300 words"](folder)), folder)


TABLES: dict[str, Callable[[Path], Path]] = {
    "churn (telco)": _shared("telco_churn.parquet"),
    "income (adult)": _shared("adult.parquet"),
    "reviews, 300 words": _words,
    "dear houses (california)": _dear,
    "made, 30 columns": made_up.made_table,
}


def _write(lines: list[Line]) -> None:
    shown = [
        f"{TREES} trees x {LEAVES} leaves; one thread; on the gate rows [95%]; one row and 1,000 rows: over booster.predict on an array;",
        "over pyfunc: one row, over the baseline through MLflow's pyfunc on a DataFrame; lost: ROC AUC, positive is worse.",
        "",
        "| table (gate rows) | ROC AUC | chosen | one row | of it the runtime alone | over pyfunc | 1,000 rows | lost | recipe, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        name = f"{one.variant} ({one.how})" if one.chosen else f"none; nearest {one.variant} ({one.how})"
        faster = f"{_of(one.one_row)} | {one.runtime_alone:.2f} | {_of(one.over_pyfunc, '{:.0f}')} | {_of(one.batch)}"
        shown.append(f"| {one.table} ({one.rows}) | {one.full:.4f} | {name} | {faster} | {_of(one.lost, '{:+.4f}')} | {one.seconds:.0f} |")
    shown += ["", _verdict(lines)]
    save("prune_trees", {"lines": [asdict(one) for one in lines]}, shown)


def _verdict(lines: list[Line]) -> str:
    asked = {
        f"at least {FASTER:g}x at one row": sum(one.one_row.value >= FASTER for one in lines),
        f"at least {BATCH:g}x at 1,000 rows": sum(one.batch.value >= BATCH for one in lines),
        f"at most {100 * LOST:g} point lost": sum(one.lost.value <= LOST for one in lines),
        "all three": sum(one.one_row.value >= FASTER and one.batch.value >= BATCH and one.lost.value <= LOST for one in lines),
        f"at least {PYFUNC:g}x over the baseline's pyfunc": sum(one.over_pyfunc.value >= PYFUNC for one in lines),
    }
    return f"Of {len(lines)} tables: " + ", ".join(f"{what} on {count}" for what, count in asked.items()) + "."


def _of(one: Quantity, form: str = "{:.1f}") -> str:
    return interval((one.value, one.lo, one.hi), form)


if __name__ == "__main__":
    main()
