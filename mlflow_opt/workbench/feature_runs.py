"""The search for few columns within a session: what is tried in which order and how long, a child run a trial, the pictures."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_opt.features import feature_plots, feature_trials
from mlflow_opt.features.attributions import Unexplained, attributions
from mlflow_opt.features.feature_plots import Swarm
from mlflow_opt.features.feature_ranking import Ranking
from mlflow_opt.features.feature_samples import WIDE
from mlflow_opt.features.feature_trials import Fold, Table, Trial
from mlflow_opt.records import Task
from mlflow_opt.runs import tracking
from mlflow_opt.runs.progress import Progress
from mlflow_opt.session import Session
from mlflow_opt.tables import column_codes
from mlflow_opt.tables.learners import Fitted

logger = logging.getLogger(__name__)

# Of the time: what the model with all columns may take before folds are given up, and what resampling may take.
_REFERENCE_SHARE, _RESAMPLING_SHARE = 0.4, 0.25
# Halvings of the gap between the fewest columns that do and the next that do not.
_REFINEMENTS = 3
# Methods that are tried at each of these.
_LEADING = 3
_SWARM_ROWS = 400


@dataclass(frozen=True)
class Plan:
    """What to try.

    Args:
        methods: of ranking, cheap ones first.
        sizes: numbers of columns.
        folds: of the train rows.
        bootstraps: resamples that say how stable a ranking is.
        time_budget_s: of all of it; 0 for no limit.
        bounds: losses allowed, by quantity.
        level: confidence of intervals.
    """

    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    folds: int
    bootstraps: int
    time_budget_s: float
    bounds: dict[str, float]
    level: float


@dataclass
class Found:
    """What was found so far.

    Args:
        trials: every method and size.
        rankings: method -> one ranking a fold.
        resampled: method -> rankings of bootstrap samples.
        skipped: what there was no time for, in words.
    """

    trials: list[Trial] = field(default_factory=list)
    rankings: dict[str, list[Ranking]] = field(default_factory=dict)
    resampled: dict[str, list[Ranking]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Search:
    """A search under way; it knows the time, so that every part of it can stop early and say so."""

    def __init__(self, work: Session, table: Table, plan: Plan) -> None:
        """Cut the rows into folds and start the clock.

        Args:
            work: the session whose parent run takes the trials.
            table: the train rows.
            plan: what to try.
        """
        self.work, self.table, self.plan, self.found = work, table, plan, Found()
        self.folds = feature_trials.folds_of(table.labels, table.task, plan.folds, table.seed)
        rng = np.random.default_rng(table.seed)
        rows, most = len(table.labels), min(len(table.labels), feature_trials.RANK_ROWS)
        none = np.empty(0, dtype=np.int64)
        self._samples = [Fold(rng.choice(rows, size=most, replace=True), none) for _ in range(plan.bootstraps)]
        self._progress = Progress("ranking", len(plan.methods))
        self._started, self._resampling = time.monotonic(), 0.0

    @property
    def late(self) -> bool:
        """Tell whether the time is up."""
        return 0 < self.plan.time_budget_s < time.monotonic() - self._started

    @property
    def full(self) -> float:
        """Return the headline quality with all columns, mean over the folds."""
        rows = [len(fold.judge) for fold in self.folds]
        values = [feature_trials.answered(self.table, fold, self.table.columns)[0].values[self.work.headline] for fold in self.folds]
        return float(np.average(values, weights=rows))

    def run(self) -> Found:
        """Try every method at every size, then look closer around the fewest columns that do."""
        self._settle_folds()
        for method in self.plan.methods:
            if self.late and self.found.trials:
                self.found.skipped.append(method)
                continue
            self._try(method)
        best = feature_trials.smallest(self.found.trials, self.plan.bounds, self.work.headline)
        self._refine(best or feature_trials.best(self.found.trials, self.work.headline), done=best is not None)
        return self.found

    def stability_of(self, method: str, size: int) -> float:
        """Say how alike the first columns are over the resamples (over the folds if there are none), NaN if there is one only."""
        rankings = self.found.resampled.get(method) or self.found.rankings[method]
        sets = [self.table.first(ranking, size) for ranking in rankings]
        return feature_trials.stability(sets, len(self.table.columns)) if len(sets) > 1 else float("nan")

    def agreed(self, method: str) -> Ranking:
        """Join what a method said on the folds: columns by their mean place, so that the set is one that the folds have tried.

        Saeys, Abeel & Van de Peer 2008, "Robust feature selection using ensemble feature selection techniques".
        """
        rankings = self.found.rankings[method]
        places = pd.DataFrame([{name: at for at, name in enumerate(one.order)} for one in rankings])
        # What a fold screened out stands behind all that it ranked.
        mean = places.fillna(len(self.table.columns)).mean().sort_values(kind="stable")
        return Ranking(method, tuple(map(str, mean.index)))

    def shares_of(self, method: str, size: int) -> dict[str, float]:
        """Count in which share of the resamples a column is among the first."""
        rankings = self.found.resampled.get(method) or self.found.rankings[method]
        counts = Counter(name for ranking in rankings for name in self.table.first(ranking, size))
        return {name: count / len(rankings) for name, count in counts.most_common()}

    def draw(self, chosen: Trial, fitted: Fitted) -> None:
        """Attach the pictures and the table of columns to the parent run."""
        shares, kept = self.shares_of(chosen.method, chosen.size), fitted.columns
        resamples = len(self.found.resampled.get(chosen.method) or self.found.rankings[chosen.method])
        figures = {
            "features_quality.png": feature_plots.curve(self.found.trials, self.full, self.work.headline, chosen),
            "features_stability.png": feature_plots.frequencies(shares, kept, self.stability_of(chosen.method, chosen.size), resamples),
        }
        try:
            figures["features_shap.png"] = feature_plots.beeswarm(
                swarm_of(fitted, pd.DataFrame(self.work.calibration(_SWARM_ROWS)), self.table.task)
            )
        except Unexplained as why:
            logger.info("No SHAP picture: %s", why)
        with tempfile.TemporaryDirectory(prefix="mlflow-opt-features-") as name:
            for file, figure in figures.items():
                figure.savefig(Path(name) / file)
            self._columns(kept, shares).to_csv(Path(name) / "features.csv", index=False)
            for path in sorted(Path(name).iterdir()):
                tracking.log_file(self.work.parent.run_id, path)

    def _settle_folds(self) -> None:
        """Train on all columns, which is dear, and give folds up where it takes too much of the time."""
        _, seconds = feature_trials.answered(self.table, self.folds[0], self.table.columns)
        allowed = int(_REFERENCE_SHARE * self.plan.time_budget_s / max(seconds, 1e-9)) if self.plan.time_budget_s else len(self.folds)
        self.folds = self.folds[: max(1, allowed)]

    def _try(self, method: str) -> None:
        self.found.rankings[method] = [feature_trials.ranked(self.table, fold, method) for fold in self.folds]
        made: list[Trial] = []
        for size in sorted({*self.plan.sizes, *self._natural(method)}):
            if self.late and self.found.trials:
                self.found.skipped.append(f"{method} at {size} columns")
            elif not self._settled(made):
                made.append(self._trial(method, size))
        self._resample(method)
        for trial in made:
            self._write(trial)
        shown = feature_trials.smallest(made, self.plan.bounds, self.work.headline)
        self._progress.step(f"{method}: {f'{shown.size} columns do' if shown else 'no size tried loses little enough'}")

    def _settled(self, made: Sequence[Trial]) -> bool:
        """Tell whether larger sets need no look: of a wide table, where each costs seconds, once two in a row lose little enough."""
        return len(self.table.columns) > WIDE and len(made) > 1 and all(one.within(self.plan.bounds) for one in made[-2:])

    def _natural(self, method: str) -> list[int]:
        """Give the number of columns that a method with a test finds, the median over the folds."""
        found = int(np.median([ranking.significant for ranking in self.found.rankings[method]]))
        return [found] if 0 < found < len(self.table.columns) and found <= max(self.plan.sizes) else []

    def _trial(self, method: str, size: int) -> Trial:
        trial = feature_trials.tried(self.table, self.folds, self.found.rankings[method], size, self.plan.level)
        self.found.trials.append(trial)
        return trial

    def _resample(self, method: str) -> None:
        started, rankings = time.monotonic(), list[Ranking]()
        for sample in self._samples:
            spent = self._resampling + time.monotonic() - started
            if self.plan.time_budget_s and (self.late or spent > _RESAMPLING_SHARE * self.plan.time_budget_s):
                break
            rankings.append(feature_trials.ranked(self.table, sample, method))
        self._resampling += time.monotonic() - started
        # One resample says nothing of how they differ.
        if len(rankings) > 1:
            self.found.resampled[method] = rankings

    def _refine(self, trial: Trial, *, done: bool) -> None:
        """Halve the gap below the fewest columns that do, or above the best that do not, with the methods that lead there.

        One method alone would drop what it happens to rank last, where another of the same size may lose next to nothing.
        """
        leading = self._leading(trial)
        mine = sorted(one.size for one in self.found.trials if one.method == trial.method)
        lower = max((size for size in mine if size < trial.size), default=0) if done else trial.size
        upper = trial.size if done else min((size for size in mine if size > trial.size), default=len(self.table.columns))
        for _ in range(_REFINEMENTS):
            middle = (lower + upper) // 2
            if middle in (lower, upper) or middle < max(1, len(self.table.always)) or self.late:
                return
            made = [self._tried_late(method, middle) for method in leading]
            fits = any(one.within(self.plan.bounds) for one in made if one)
            lower, upper = (lower, middle) if fits else (middle, upper)

    def _tried_late(self, method: str, size: int) -> Trial | None:
        """Try one more set, if there is time for it."""
        if self.late:
            return None
        made = self._trial(method, size)
        self._write(made)
        return made

    def _leading(self, trial: Trial) -> list[str]:
        """Name the methods that lose least with as many columns as a trial has, its own first."""
        rivals = [one for one in self.found.trials if one.size == trial.size and one.method != trial.method]
        rivals.sort(key=lambda one: one.drops[f"drop_{self.work.headline}"].value)
        return [trial.method, *(one.method for one in rivals)][:_LEADING]

    def _write(self, trial: Trial) -> None:
        values = dict(trial.values) | {"features": float(trial.size), "train_seconds": trial.seconds}
        values["train_speedup"] = trial.full_seconds / max(trial.seconds, 1e-9)
        for name, drop in trial.drops.items():
            values |= {name: drop.value, f"{name}_lo": drop.lo, f"{name}_hi": drop.hi}
        values["stability"] = self.stability_of(trial.method, trial.size)
        first = self.table.first(self.found.rankings[trial.method][0], trial.size)
        told = {"method": trial.method, "features": trial.size, "folds": len(self.folds), "columns": ",".join(first)}
        told["bootstraps"] = len(self.found.resampled.get(trial.method, ()))
        told["meets_policy"] = trial.within(self.plan.bounds)
        self.work.trial(trial.name, told, {name: value for name, value in values.items() if np.isfinite(value)})

    def _columns(self, kept: Sequence[str], shares: dict[str, float]) -> pd.DataFrame:
        """List every column with its mean rank by each method, the best first."""
        places = {
            method: pd.DataFrame([{name: at + 1 for at, name in enumerate(one.order)} for one in rankings]).mean()
            for method, rankings in self.found.rankings.items()
        }
        table = pd.DataFrame(places).reindex(self.table.columns).round(1).rename_axis("column").reset_index()
        table.insert(1, "kept", table["column"].isin(kept))
        table.insert(2, "bootstrap_share", table["column"].map(shares).fillna(0.0))
        order = table[list(places)].mean(axis=1).argsort(kind="stable")
        return table.iloc[order].sort_values("kept", ascending=False, kind="stable")


def swarm_of(fitted: Fitted, rows: pd.DataFrame, task: Task) -> Swarm:
    """Give a model's SHAP values on some rows; of several classes, those of the last.

    Raises:
        Unexplained: the model has none.
    """
    values = attributions(fitted, rows)[:, -1]
    levels = np.column_stack([_levels(rows[name]) for name in fitted.columns])
    of = "a larger value" if not task.classes else f"{task.classes[-1]!r}"
    return Swarm(fitted.columns, values, levels, of)


def finalists(table: Table, rankings: Sequence[tuple[Trial, Ranking]]) -> list[tuple[Trial, tuple[str, ...]]]:
    """Give the sets to train for good, the largest first; equal sets once."""
    found: dict[tuple[str, ...], Trial] = {}
    for trial, ranking in sorted(rankings, key=lambda pair: -pair[0].size):
        found.setdefault(table.first(ranking, trial.size), trial)
    return [(trial, columns) for columns, trial in found.items()]


def _levels(column: pd.Series) -> np.ndarray:
    if not column_codes.is_number(column):
        column = pd.Series(pd.factorize(column.astype(object), sort=False)[0], index=column.index).replace(-1, np.nan)
    return np.asarray(column.astype(float).rank(pct=True, method="dense"))
