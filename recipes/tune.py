"""Tune a table's model: search its parameters by cross-validation, retrain the best, and prove the lift on rows no trial saw.

Helps boosted trees and forests most, and most where the model runs on its library's defaults and the table has thousands
of rows. Does not help where the default is already as good as the table allows: small, noisy tables give a lift that lies
within its interval, and the recipe says so instead of promoting the luckiest of fifty trials.

The search is Optuna's TPE. A trial is scored by cross-validation on train rows, boosting stops early on calibration rows,
bad trials are stopped after their first folds, and every trial is a child run. The best few are trained again on all of
these rows and compared on the selection rows, beside the model's own parameters trained the same way (what tuning gave)
and the unchanged model in the same runtime (what the runtime gave). Selection and gate rows are in no trial.

A search that was killed goes on where it was when the same command is run again. With `executor=dask` trials run on the
cluster at DASK_SCHEDULER_ADDRESS, or on one started here; workers on other machines need a `storage` that all reach.

References: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization" (TPE); Akiba et al. 2019, "Optuna"; Li et
al. 2018, "Hyperband"; Probst, Boulesteix & Bischl 2019, "Tunability" (the ranges).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mlflow_opt import baselines, measure, session
from mlflow_opt.data import Split
from mlflow_opt.export import exporting
from mlflow_opt.measurement import pairing
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.models import Model
from mlflow_opt.records import Quantity, Variant, Verdict
from mlflow_opt.rows.batches import Batch, text_digest
from mlflow_opt.runs.outcome import Row
from mlflow_opt.search import executors, file_locks, search_spaces, searching, studies
from mlflow_opt.search.executors import Pool
from mlflow_opt.search.searching import Budget, Tried
from mlflow_opt.search.studies import Plan
from mlflow_opt.session import Session
from mlflow_opt.signature import run
from mlflow_opt.tables import learners, table_audit
from mlflow_opt.tables.cross_validation import Folds, fold_of
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.table_search import Scoring, Timer, fit_all, refit
from mlflow_opt.tables.table_space import Family, Space, families_of
from mlflow_opt.workbench.trial_runs import TrialRuns, default_journal, plain

_logger = logging.getLogger(__name__)

OWN, RUNTIME = "own_parameters", "runtime_only"
MOST_TRIALS = 100_000


def check(budget: Budget, folds: int, finalists: int, storage: str, study: str) -> None:
    """Refuse what cannot be searched before a run is opened, and a password before it is logged.

    Raises:
        ValueError: the rule that is broken.
    """
    studies.storage_of(storage, default_journal())
    if budget.trials > MOST_TRIALS:
        raise ValueError(f"trials must be at most {MOST_TRIALS}, got {budget.trials}; each is a child run, and no search needs as many.")
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}; 5 is usual, 3 is faster.")
    if study and not re.fullmatch(r"[\w.-]+", study):
        raise ValueError(f"study must be a name of letters, digits, dots, hyphens and underscores, got '{study}'.")
    if finalists < 1:
        raise ValueError(f"finalists must be at least 1, got {finalists}; 3 is usual.")


def train_default(split: Split, folder: Path, seed: int) -> Path:
    """Train the default model of a table; arrays are refused before a network is trained for nothing."""
    _require_table(split.train.rows)
    return baselines.train_baseline(split, folder, seed)


def folds_of(work: Session, count: int) -> Folds:
    """Cut the train rows into folds; calibration rows stop boosting early."""
    train, valid = work.split.train, work.split.calibration
    rows, stopping = _require_table(train.rows), (_require_table(valid.rows), valid.labels)
    fold = fold_of(rows, train.labels, work.task, count)
    return Folds(rows, train.labels, fold, stopping, work.task, (work.own,) if work.own else ())


def space_of(learner: Learner, folds: Folds, timed: bool, given: Mapping[str, Any]) -> Space:
    """Say what the search may propose, by the recipe's parameters `space`, `families`, `workers` and `seed`.

    Raises:
        ValueError: no ranges are known for the model, or the user's space does not fit it.
    """
    # Several trainings at a time share the cores between them instead of each taking all.
    threads = 1 if int(given["workers"]) > 1 else 0
    every = given["families"] == "all"
    if given["space"] and every:
        raise ValueError("space is for the model's own family, and families=all was given too; leave one of the two out.")
    if given["space"]:
        return Space((Family("own", learner, ()),), search_spaces.read_space(str(given["space"])), threads)
    return Space(families_of(learner, folds.rows, folds.task, timed=timed, seed=int(given["seed"]), every=every), None, threads)


def timer_of(work: Session, runtime: Model) -> Timer:
    """Say how a trial's model is timed: on calibration rows, against the unchanged model in the same runtime."""
    rows = _require_table(work.calibration(256))
    return Timer(work.model.path, runtime.path, rows, work.task, work.threads, file_locks.machine_folder())


def plan_of(work: Session, scoring: Scoring, given: Mapping[str, Any]) -> Plan:
    """Describe the study: its name says what is searched and on which rows, so that the same command finds it again."""
    families, ranges = scoring.space.families, scoring.space.distributions()
    learner, kinds = families[0].learner, [one.learner.kind for one in families]
    told = [learner.template.__repr__(N_CHAR_MAX=100_000), *kinds, work.split.digest, work.headline]
    told += [f"{name}={given[name]}" for name in ("goal", "pruner", "seed", "metric", "space", "warm_start")]
    told += [str(scoring.folds.count), *(f"{name} {ranges[name]}" for name in sorted(ranges))]
    search = text_digest(str(told))
    return Plan(
        name=str(given["study"]) or f"tune-{learner.kind}-{search[:12]}",
        storage=studies.storage_of(str(given["storage"]), default_journal()),
        directions=scoring.directions,
        pruner=given["pruner"],
        seed=int(given["seed"]),
        steps=scoring.folds.count,
        workers=int(given["workers"]),
        subject=text_digest(str([kinds, sorted(learner.columns), work.split.dataset.target, work.headline, scoring.directions])),
        search=search,
    )


def run_trials(runs: TrialRuns, scoring: Scoring, budget: Budget, workers: Pool, *, warm: bool) -> list[Tried]:
    """Run the search and give all finished trials of its study; an interruption keeps what is finished.

    Raises:
        ValueError: no trial completed.
    """
    plan, space = runs.plan, scoring.space
    if not workers.is_here and (plan.is_file or scoring.timer):
        raise ValueError(
            "workers on other machines need a storage that all of them reach (storage=postgresql+psycopg2://...) and goal=quality."
        )
    study = studies.open_study(plan, plan.seed)
    closed = studies.close_stale(plan, study)
    if closed:
        _logger.info("%d trials that a dead process left running were closed and do not count.", closed)
    earlier = studies.warm(plan, study, space.of_models(), space.distributions()) if warm else 0
    if earlier:
        _logger.info("The search begins with %d trials of earlier studies of such a model.", earlier)
    interrupted = False
    try:
        for tried in searching.search(plan, scoring, budget, workers):
            runs.write(tried)
    except KeyboardInterrupt:
        interrupted = True
        _logger.warning("Interrupted: going on with the best trial so far. Ctrl-C again ends the recipe.")
    studies.close_stale(plan, study)
    every = runs.complete()
    if not any(one.state == "complete" for one in every):
        if interrupted:
            raise KeyboardInterrupt
        raise ValueError(f"at least one trial must complete, none of {len(every)} did; the last: {every[-1].why if every else 'none ran'}")
    return every


def lift(candidate: Scored, default: Scored, headline: str, level: float, seed: int) -> Quantity:
    """Give how much better a candidate is than the default on the same rows, with its interval; positive is better."""
    drop = pairing.compare_quality(candidate, default, level=level, seed=seed)[f"drop_{headline}"]
    return Quantity(-drop.value, -drop.hi, -drop.lo, drop.n)


def lift_of(runs: TrialRuns, rows: Sequence[Row]) -> tuple[Quantity, str]:
    """Compare the tuned variant that stands best with the own parameters, on gate rows; the choice is made already."""
    work = runs.work
    made = {one.variant.name: one.model for one in work.candidates}
    which = next((row.name for row in rows if row.standing == "chosen" and row.name.startswith("tuned")), "tuned_1")
    scored = [measure.quality(made[name], work.split.gate, work.task, work.own) for name in (which, OWN)]
    found = lift(scored[0], scored[1], work.headline, work.policy.confidence, work.seed)
    runs.note(f"lift_{work.headline}", found)
    return found, which


def advise(rows: Sequence[Row], found: Quantity, which: str, headline: str) -> list[str]:
    """Say what the figures mean: what tuning gave on rows no trial saw, and what the runtime gave."""
    known = {row.name: row.metrics for row in rows}
    sure = "a gain" if found.lo > 0 else "a loss" if found.hi < 0 else "not resolved: it may be nothing"
    told = [
        (
            f"Lift over default: {which} against the model's own parameters trained on the same rows gives {found.value:+.4f} {headline} "
            f"[{found.lo:+.4f}, {found.hi:+.4f}] on {found.n} gate rows that no trial has seen: {sure}."
        )
    ]
    speedup = known.get(RUNTIME, {}).get("speedup")
    if speedup is not None:
        told.append(f"The runtime alone, without tuning, answers one row {speedup:.1f}x as fast as the model's own call.")
    own, best = known.get(OWN, {}).get("latency_p50_ms"), known.get(which, {}).get("latency_p50_ms")
    if own and best:
        told.append(f"{which} takes {best / own:.2f}x the time of the own parameters for one row in the same runtime.")
    return told


def tune(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    trials: int = 50,
    time_budget_s: float = 600.0,
    goal: Literal["quality", "quality_and_latency"] = "quality",
    families: Literal["own", "all"] = "own",
    space: str = "",
    pruner: Literal["median", "hyperband", "none"] = "median",
    folds: int = 5,
    warm_start: bool = True,
    finalists: int = 3,
    study: str = "",
    storage: str = "",
    executor: Literal["local", "dask", "ray"] = "local",
    workers: int = 1,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Search the parameters of a table's model (Optuna), retrain the best, and prove the lift on rows that no trial saw.

    Helps boosted trees and forests on library defaults most. Does not help where a small or noisy table gives no more than
    the default: then the lift's interval says so. Run the same command again to go on with a search that was killed.

    Example:
        mlflow run . -e tune -P model=models:/churn/3 -P data=customers.parquet -P trials=100 -P register_as=churn

    Args:
        model: MLflow model URI (scikit-learn, LightGBM, XGBoost, or a variant made of one); empty trains the default model.
        data: parquet, csv, folder, MLflow URI or a bundled name.
        target: name of the target column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it; another seed is another search.
        trials: how many trials the study has in the end, those of a killed run included.
        time_budget_s: seconds that trials may take, checked between folds; 0 for no limit.
        goal: `quality`, or `quality_and_latency` for the Pareto front of both; then every trial is also timed, alone.
        families: `own` tunes the model's own kind, `all` also tries boosted trees, forests and linear models.
        space: own search space, `path.py:function` with an Optuna trial -> parameters; empty for the built-in ranges.
        pruner: stops bad trials after some folds: `median`, `hyperband` or `none`; one goal only.
        folds: of the cross-validation on train rows.
        warm_start: begin with the model's own parameters and the best of earlier studies of such a model.
        finalists: trials that are trained again and compared on the selection rows.
        study: name of the study to begin or go on with; empty derives it from model, rows and search.
        storage: journal file or database URL without password, or `env:NAME` of a variable; empty for a journal beside the runs.
        executor: `local` processes, or a `dask` cluster; `ray` comes later.
        workers: trials at the same time.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model cannot be trained again, no ranges are known for it, or the data does not fit it.

    References:
        Bergstra et al. 2011; Akiba et al. 2019; Li et al. 2018; Probst et al. 2019.
    """
    executors.check(executor, workers)
    check(Budget(trials, time_budget_s), folds, finalists, storage, study)
    with session.start("tune", locals(), aim="quality" if goal == "quality" else "latency", train=train_default) as work:
        learner, timed = learners.learner_of(work.model), goal == "quality_and_latency"
        runtime = work.dropin(RUNTIME, exporting.to_onnx(work.model, work.example, work.task))
        work.add(Variant(RUNTIME, runtime, {"trained": "as given"}))
        rows = folds_of(work, folds)
        work.findings += table_audit.suspicions(rows.rows, rows.labels, rows.task)
        scoring = Scoring(space_of(learner, rows, timed, work.params), rows, work.headline, timer_of(work, runtime) if timed else None)
        plan = plan_of(work, scoring, work.params)
        runs = TrialRuns(work, plan, (work.headline, "relative_latency")[: len(plan.directions)], trials)
        with studies.owned(plan), executors.pool(executor, workers) as crew:
            tried = run_trials(runs, scoring, Budget(trials, time_budget_s), crew, warm=warm_start)
        runs.draw()
        work.add(Variant(OWN, work.refitted(OWN, fit_all(learner, work.split, {})), {"trained": "own parameters"}))
        for place, one in enumerate(searching.best(tried, plan.directions, finalists), 1):
            name = f"tuned_{place}"
            work.add(Variant(name, work.refitted(name, refit(scoring.space, one, work.split)), {"trial": one.number, **plain(one.params)}))
        return work.conclude(lambda found: [*advise(found, *lift_of(runs, found), work.headline), *runs.told(tried)])


def _require_table(rows: Batch) -> pd.DataFrame:
    if not isinstance(rows, pd.DataFrame):
        raise TypeError(
            "tune trains models of tables, the data are arrays; networks have recipes of their own (regularize, early_stop, nas)."
        )
    return rows


if __name__ == "__main__":
    run(tune)
