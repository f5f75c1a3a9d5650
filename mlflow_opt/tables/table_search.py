"""What one trial of a table's search does: propose parameters, score them fold by fold, time the model if asked.

Reports after every fold are the running mean on folds that all trials share, so that a pruner compares like with like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_opt import models
from mlflow_opt.data import Split
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.dropin import SessionOptions
from mlflow_opt.measurement import stopwatch
from mlflow_opt.records import Task
from mlflow_opt.search import file_locks, searching
from mlflow_opt.search.searching import Ticket, Tried
from mlflow_opt.tables import cross_validation, learner_files
from mlflow_opt.tables.cross_validation import Folds, FoldScore
from mlflow_opt.tables.learners import Fitted, Learner
from mlflow_opt.tables.table_space import Proposal, Space

if TYPE_CHECKING:
    from optuna.trial import Trial

# A timing's fresh processes, and calls in each: for a search's objective, not for a verdict.
SESSIONS, CALLS = 2, 100


@dataclass(frozen=True)
class Timer:
    """Times a trained model as it would serve: exported, in fresh processes, in turns with the unchanged model.

    Args:
        baseline: folder of the model to optimise, whose drop-in the trial's model must be.
        reference: folder of the same model in the same runtime, unchanged.
        rows: to answer.
        task: what is predicted.
        threads: of one prediction.
        locks: folder of this machine's timing locks.
    """

    baseline: Path
    reference: Path
    rows: pd.DataFrame
    task: Task
    threads: int
    locks: Path

    def time(self, fitted: Fitted) -> dict[str, float]:
        """Give the one-row latency, and its share of the unchanged model's in the same processes."""
        with tempfile.TemporaryDirectory(prefix="mlflow-opt-trial-") as name:
            example = self.rows.head(64)
            native = learner_files.save(fitted, example, Path(name) / "native")
            graph = exporting.to_onnx(native, example, self.task)
            baseline, options = models.load(str(self.baseline), self.threads), SessionOptions(threads=self.threads)
            made = dropin.save_dropin(graph, baseline, Path(name) / "variant", session=options, example=example)
            pair: list[stopwatch.Located | stopwatch.Entry] = [made, stopwatch.Entry(str(self.reference))]
            with file_locks.timing(self.locks):
                found = stopwatch.time_models(pair, self.rows, sessions=SESSIONS, threads=self.threads, calls=CALLS)
        return {"latency_p50_ms": found.latency(0).value, "relative_latency": 1 / found.speedup(0, 1).value}

    def beside(self) -> AbstractContextManager[None]:
        """Train beside others, but not while a model is being timed."""
        return file_locks.working(self.locks)


@dataclass(frozen=True)
class Scoring:
    """Evaluates trials; it travels to the workers once.

    Args:
        space: what may be proposed.
        folds: train rows, and the calibration rows that stop boosting early.
        headline: the metric to optimise.
        timer: times models where latency is an objective, else None.
    """

    space: Space
    folds: Folds
    headline: str
    timer: Timer | None = None

    @property
    def directions(self) -> tuple[str, ...]:
        """Give the direction of every objective, in Optuna's words."""
        return (cross_validation.direction(self.headline), *(("minimize",) if self.timer else ()))

    def __call__(self, trial: Trial, ticket: Ticket) -> tuple[float, ...]:
        """Score one trial.

        Raises:
            TrialPruned: it is worse than the others so far.
            OutOfTime: the search's time is over.
            ValueError: the estimator refuses the parameters.
        """
        proposal = self.space.propose(trial)
        scores: list[FoldScore] = []
        try:
            for number in range(self.folds.count):
                ticket.check()
                with self.timer.beside() if self.timer else nullcontext():
                    scores.append(self._fold(proposal, number))
                self._report(trial, scores)
            timed = self.timer.time(scores[-1].fitted) if self.timer else {}
        finally:
            if scores:
                measured = cross_validation.means(scores, self.headline)
                searching.keep(trial, measured)
        if timed:
            searching.keep(trial, measured | timed)
        return (measured[self.headline], *((timed["relative_latency"],) if timed else ()))

    def _fold(self, proposal: Proposal, number: int) -> FoldScore:
        scored = cross_validation.score_fold(proposal.family.learner, proposal.params, self.folds, number)
        if self.headline not in scored.values:
            raise ValueError(f"{self.headline} must be defined on every fold, on fold {number} it is not; give fewer folds or more rows.")
        return scored

    def _report(self, trial: Trial, scores: list[FoldScore]) -> None:
        import optuna

        # Optuna prunes with one objective only, and a last report would prune what is finished.
        if self.timer is not None or len(scores) == self.folds.count:
            return
        trial.report(sum(one.values[self.headline] for one in scores) / len(scores), len(scores))
        if trial.should_prune():
            raise optuna.TrialPruned


def refit(space: Space, tried: Tried, split: Split) -> Fitted:
    """Train what a trial tried on all train and calibration rows, with as many rounds as its folds kept on average.

    Args:
        space: that proposed it.
        tried: a complete trial.
        split: of the rows.
    """
    from optuna.trial import FixedTrial

    proposal = space.propose(FixedTrial(dict(tried.params)))
    rounds = {"n_estimators": int(tried.metrics["rounds"])} if "rounds" in tried.metrics else {}
    return fit_all(proposal.family.learner, split, {**proposal.params, **rounds})


def fit_all(learner: Learner, split: Split, params: Mapping[str, Any]) -> Fitted:
    """Train on all train and calibration rows, without early stopping."""
    parts: list[Any] = [split.train.rows, split.calibration.rows]
    rows = pd.concat(parts, ignore_index=True)
    return learner.fit(rows, np.concatenate([split.train.labels, split.calibration.labels]), params=params)
