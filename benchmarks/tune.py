"""`tune` against FLAML with the same seconds and against LightGBM's defaults, on real tables, and what tracking trials costs.

Run with `python -m benchmarks.tune` (with `tracking` or `quality` for one half, with names of tables for some). FLAML runs
in an environment of its own: `PEER_FLAML` is its Python; without it that column is left out. Bounds: with 50 trials quality on
the gate rows at least FLAML's and at least LightGBM's defaults; a trial's run costs at most 1.3x the raw store's, flat to
2,000 trials, none lost.

Both rivals train on every row outside the gate; `tune` trains on the train and calibration rows and picks among its
finalists on the selection rows, as the recipe does. FLAML gets the seconds that the search and its finalists took, and
more where the machine was busy and gave it less processor time. Of larger tables 3,000 rows outside the gate are taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_data import real_data, sea_temperature
from benchmarks.results_file import interval, save
from benchmarks.tune_peers import trial_cost
from mlflow_opt import baselines, data, metrics
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.records import Quantity, Task
from mlflow_opt.search import executors, searching, studies
from mlflow_opt.search.searching import Budget
from mlflow_opt.search.studies import Plan
from mlflow_opt.tables.cross_validation import Folds, fold_of
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.table_search import Scoring, refit
from mlflow_opt.tables.table_space import Space, families_of
from recipes.tune import lift

TRIALS, FOLDS, FINALISTS = 50, 5, 3
# Rows outside the gate, of a larger table a sample; all gate rows stay. So the benchmark takes minutes, not hours.
MOST_ROWS = 3000
PEER = "PEER_FLAML"
# FLAML may have this share of our processor seconds at least, or it runs again with a longer budget.
ENOUGH, ATTEMPTS = 0.9, 3
FLAML = Path(__file__).parent / "tune_peers" / "flaml_fit.py"


@dataclass(frozen=True)
class Rival:
    """What a way of training answered on the gate rows, and what it took."""

    scored: Scored
    seconds: float
    cpu_seconds: float
    told: str = ""


def main() -> None:
    """Measure and write results/tune_quality.* and results/tune_tracking.*."""
    given = set(sys.argv[1:])
    halves = given & {"quality", "tracking"} or {"quality", "tracking"}
    tables = {name: read for name, read in TABLES.items() if not given & set(TABLES) or name in given}
    with tempfile.TemporaryDirectory() as name:
        if "quality" in halves:
            _quality(Path(name), tables)
        if "tracking" in halves:
            cost = trial_cost.measure(Path(name))
            save("tune_tracking", {"tracking": cost}, trial_cost.table(cost))


def _quality(folder: Path, tables: dict[str, Callable[[Path], data.Dataset]]) -> None:
    figures: dict[str, Any] = {}
    lines = [
        f"{TRIALS} trials, {FOLDS} folds, at most {MOST_ROWS} rows, one thread; lifts with 95% intervals on the gate rows.",
        "The default trains on the rows that `tune` trains on; the default on all rows and FLAML train on the selection rows too.",
        "",
        "| table (gate rows) | metric | tune | over default | over default on all rows | over FLAML | seconds (of CPU) | FLAML chose |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, read in tables.items():
        split = data.split(_sampled(read(folder)))
        headline = metrics.QUALITY[split.task.kind][0]
        ours = _tune(split, folder / f"{name}.journal")
        small, every = _default(split, [split.train, split.calibration]), _default(split, _outside(split))
        peer = _flaml_with_equal_means(split, ours, folder / name)
        against = {"default": small, "default_all_rows": every, **({"flaml": peer} if peer else {})}
        lifts = {rival: lift(ours.scored, one.scored, headline, 0.95, 0) for rival, one in against.items()}
        shown = [interval((q.value, q.lo, q.hi), "{:+.4f}") for q in lifts.values()] + ["-"] * (3 - len(lifts))
        seconds = " / ".join(f"{one.seconds:.0f} ({one.cpu_seconds:.0f})" for one in (ours, peer) if one)
        value = ours.scored.values[headline]
        rows = len(split.gate.labels)
        lines.append(f"| {name} ({rows}) | {headline} | {value:.4f} | {' | '.join(shown)} | {seconds} | {peer.told if peer else '-'} |")
        figures[name] = _figures(headline, ours, against, lifts)
        save("tune_quality", figures, lines)


def _figures(headline: str, ours: Rival, against: dict[str, Rival], lifts: dict[str, Quantity]) -> dict[str, Any]:
    found: dict[str, Any] = {"metric": headline, "tune": _plain(headline, ours)}
    for rival, one in against.items():
        quantity = lifts[rival]
        found[rival] = {**_plain(headline, one), "lift": [quantity.value, quantity.lo, quantity.hi, quantity.n]}
    return found


def _plain(headline: str, one: Rival) -> dict[str, Any]:
    return {"value": one.scored.values[headline], "seconds": one.seconds, "cpu_seconds": one.cpu_seconds, "told": one.told}


def _tune(split: data.Split, journal: Path) -> Rival:
    """Search, train the finalists and pick one on the selection rows, as the recipe does."""
    began, spent = time.perf_counter(), time.process_time()
    rows, headline = _frame(split.train), metrics.QUALITY[split.task.kind][0]
    fold = fold_of(rows, split.train.labels, split.task, FOLDS)
    folds = Folds(rows, split.train.labels, fold, (_frame(split.calibration), split.calibration.labels), split.task)
    space = Space(families_of(_learner(split), rows, split.task, timed=False, seed=0))
    scoring = Scoring(space, folds, headline)
    plan = Plan("benchmark", str(journal), scoring.directions, "median", 0, FOLDS, 1, "benchmark")
    with studies.owned(plan), executors.pool("local", 1) as crew:
        studies.warm(plan, studies.open_study(plan, 0), space.of_models(), space.distributions())
        tried = list(searching.search(plan, scoring, Budget(TRIALS), crew))
    finalists = [refit(space, one, split) for one in searching.best(tried, plan.directions, FINALISTS)]
    sign = 1 if metrics.larger_is_better(headline) else -1
    chosen = max(
        finalists, key=lambda one: sign * _scored(split.task, split.selection, one.scores(_frame(split.selection))).values[headline]
    )
    took = time.perf_counter() - began, time.process_time() - spent
    return Rival(_scored(split.task, split.gate, chosen.scores(_frame(split.gate))), *took)


def _default(split: data.Split, parts: list[data.Part]) -> Rival:
    """Train LightGBM as it comes."""
    began, spent = time.perf_counter(), time.process_time()
    fitted = _learner(split).fit(pd.concat([_frame(part) for part in parts], ignore_index=True), _labels(parts))
    took = time.perf_counter() - began, time.process_time() - spent
    return Rival(_scored(split.task, split.gate, fitted.scores(_frame(split.gate))), *took)


def _flaml_with_equal_means(split: data.Split, ours: Rival, folder: Path) -> Rival | None:
    """Give FLAML our seconds; where a busy machine then gave it less processor than us, give it more seconds."""
    if PEER not in os.environ:
        return None
    seconds = ours.seconds
    for attempt in range(ATTEMPTS):
        found = _flaml(split, seconds, folder / str(attempt))
        if found.cpu_seconds >= ENOUGH * ours.cpu_seconds:
            break
        seconds *= min(3.0, max(1.2, ours.cpu_seconds / max(found.cpu_seconds, 1.0)))
    return found


def _flaml(split: data.Split, seconds: float, folder: Path) -> Rival:
    folder.mkdir(parents=True)
    parts = _outside(split)
    train = pd.concat([_frame(part) for part in parts], ignore_index=True).assign(target=_labels(parts))
    train.to_parquet(folder / "train.parquet")
    _frame(split.gate).to_parquet(folder / "gate.parquet")
    (folder / "asked.json").write_text(json.dumps({"kind": split.task.kind, "seconds": seconds, "seed": 0}))
    subprocess.run([os.environ[PEER], str(FLAML), str(folder)], check=True, cwd=folder)
    told = json.loads((folder / "told.json").read_text())
    return Rival(_scored(split.task, split.gate, np.load(folder / "answers.npy")), told["seconds"], told["cpu_seconds"], told["estimator"])


def _learner(split: data.Split) -> Learner:
    """Put LightGBM with its own defaults behind the preprocessing of this project's default model."""
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn.base import clone

    rows = _frame(split.train)
    pipeline = clone(baselines.train_pipeline(rows.head(200), split.train.labels[:200], split.task, 0))
    estimator = LGBMRegressor if split.task.kind == "regression" else LGBMClassifier
    pipeline.steps[-1] = ("trees", estimator(n_jobs=1, verbose=-1, random_state=0, deterministic=True, force_row_wise=True))
    return Learner(pipeline, tuple(map(str, rows.columns)))


def _outside(split: data.Split) -> list[data.Part]:
    return [split.train, split.calibration, split.selection]


def _labels(parts: list[data.Part]) -> np.ndarray:
    return np.concatenate([part.labels for part in parts])


def _frame(part: data.Part) -> pd.DataFrame:
    assert isinstance(part.rows, pd.DataFrame)
    return part.rows


def _scored(task: Task, part: data.Part, scores: Any) -> Scored:
    return score(task, part.labels, scores)


def _sampled(dataset: data.Dataset) -> data.Dataset:
    if dataset.parts is None:
        return dataset
    train = np.flatnonzero(dataset.parts == "train")
    kept = np.random.default_rng(0).permutation(train)[:MOST_ROWS]
    index = np.sort(np.concatenate([kept, np.flatnonzero(dataset.parts == "test")]))
    return replace(dataset, rows=data.take(dataset.rows, index), labels=dataset.labels[index], parts=dataset.parts[index])


def _sea(folder: Path) -> data.Dataset:
    """Spread the windows of the sea temperature over columns."""
    windows = sea_temperature(folder).dataset
    assert isinstance(windows.rows, dict)
    series = windows.rows["series"][:, :, 0]
    table = pd.DataFrame(series.astype(float), columns=[f"lag_{step}" for step in range(series.shape[1])])
    path = folder / "sea_temperature.parquet"
    table.assign(target=windows.labels, split=windows.parts).to_parquet(path)
    return data.read(str(path))


def _digits(folder: Path) -> data.Dataset:
    from sklearn.datasets import load_digits

    found = load_digits()
    table = pd.DataFrame(found.data, columns=[f"pixel_{place}" for place in range(64)]).assign(target=found.target)
    table.to_parquet(folder / "digits.parquet")
    return data.read(str(folder / "digits.parquet"))


TABLES: dict[str, Callable[[Path], data.Dataset]] = {
    "telco_churn": lambda _: data.read("telco_churn"),
    "adult": lambda _: data.read(str(real_data("adult.parquet"))),
    "california": lambda _: data.read(str(real_data("california.parquet"))),
    "sea_temperature": _sea,
    "digits": _digits,
}


if __name__ == "__main__":
    main()
