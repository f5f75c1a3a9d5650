"""What a trial's run costs over the raw store, in turns in one run, to 2,000 trials, counted from the stored runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_opt import data, session
from mlflow_opt.search.searching import Tried
from mlflow_opt.search.studies import Plan
from mlflow_opt.workbench.trial_runs import TrialRuns, written

TRIALS, HUNDREDS = 2000, 200
PARAMS = {"learning_rate": 0.1, "num_leaves": 31, "subsample": 0.8, "colsample_bytree": 0.7, "reg_lambda": 1.0, "min_child_samples": 20}
METRICS = {"roc_auc": 0.84, "accuracy": 0.8, "f1": 0.6, "log_loss": 0.4, "roc_auc_spread": 0.01, "train_seconds": 1.0, "rounds": 120.0}


def measure(folder: Path) -> dict[str, float]:
    """Write 2,000 trials and as many raw runs of the same content in turns.

    Args:
        folder: scratch folder.
    """
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    raw_store: Any = SqlAlchemyStore
    store = raw_store(uri, str(folder / "artifacts"))
    plan = Plan("cost", str(folder / "cost.journal"), ("maximize",), "none", 0, 5, 1, "cost")
    given = {"data": str(_table(folder)), "target": "target", "seed": 0, "policy": "", "model": ""}
    ours, raw = [], []
    with session.start("tune", given, aim="quality") as work:
        runs = TrialRuns(work, plan, ("roc_auc",), TRIALS)
        for number in range(TRIALS):
            tried = Tried(number, "complete", (0.84,), PARAMS, METRICS, 1.0)
            ours.append(_timed(partial(runs.write, tried)))
            raw.append(_timed(partial(_raw_run, store, work.parent.experiment_id, number)))
        kept = len(written(plan.name))
    ratios = statistics.quantiles([a / b for a, b in zip(ours, raw, strict=True)], n=4)
    drift = _late_over_early(ours) / _late_over_early(raw)
    found = {"trials": float(TRIALS), "kept": float(kept), "ours_ms": statistics.median(ours) * 1e3, "raw_ms": statistics.median(raw) * 1e3}
    return found | {"ratio": ratios[1], "ratio_low": ratios[0], "ratio_high": ratios[2], "drift": drift}


def table(found: dict[str, float]) -> list[str]:
    """Write the figures as Markdown."""
    cost = f"{found['ratio']:.2f}x (quartiles {found['ratio_low']:.2f}-{found['ratio_high']:.2f}), {found['ours_ms']:.0f} ms"
    flat = f"| the last {HUNDREDS} of {found['trials']:.0f} trials over the first, over the same of the raw store"
    return [
        "| tracking | measured | bound |",
        "|---|---|---|",
        f"| a trial's run over the raw store's of the same content | {cost} | 1.3x |",
        f"{flat} | {found['drift']:.2f}x | flat |",
        f"| trials found again in the store | {found['kept']:.0f} of {found['trials']:.0f} | all |",
    ]


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _late_over_early(times: list[float]) -> float:
    return statistics.median(times[-HUNDREDS:]) / statistics.median(times[:HUNDREDS])


def _raw_run(store: Any, experiment: str, number: int) -> None:
    now = int(time.time() * 1000)
    tags = {"mlflow_opt.recipe": "tune", "mlflow_opt.trial": f"trial-{number:04d}"}
    params = {"variant": "raw", "study": "raw", "trial": str(number), "state": "complete", "why": "-"}
    params |= {name: str(value) for name, value in PARAMS.items()}
    run = store.create_run(experiment, "", now, [RunTag(key, value) for key, value in tags.items()], "raw")
    metrics = [Metric(key, value, now, 0) for key, value in {**METRICS, "trial_seconds": 1.0}.items()]
    store.log_batch(run.info.run_id, metrics, [Param(key, value) for key, value in params.items()], [])
    store.update_run_info(run.info.run_id, RunStatus.FINISHED, now, "raw")


def _table(folder: Path) -> Path:
    part = data.read("telco_churn")
    assert isinstance(part.rows, pd.DataFrame)
    numbers = part.rows.select_dtypes("number").head(600).assign(target=part.labels[:600])
    numbers.to_parquet(folder / "small.parquet")
    return folder / "small.parquet"
