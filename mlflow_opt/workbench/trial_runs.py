"""A search's trials as MLflow child runs, one a trial and none lost, and its plots as artifacts.

The process that started the search writes them, by one batch each, so that the cost of a trial does not grow with their
number. What a killed process had finished and not written is found in the study and written by the next.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow

from mlflow_opt.metrics import larger_is_better
from mlflow_opt.records import Param, Quantity
from mlflow_opt.runs import tracking
from mlflow_opt.runs.progress import Progress
from mlflow_opt.search import search_plots, studies
from mlflow_opt.search.searching import Tried, finished
from mlflow_opt.search.studies import Plan
from mlflow_opt.session import Session

logger = logging.getLogger(__name__)

JOURNAL = "mlflow-opt-studies.journal"
_PAGE = 1000


def default_journal() -> Path:
    """Name the journal of this tracking store: beside an sqlite database, else in the working folder."""
    uri = str(mlflow.get_tracking_uri())
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent / JOURNAL
    return Path(JOURNAL).resolve()


class TrialRuns:
    """Writes the trials of one study under one parent run."""

    def __init__(self, work: Session, plan: Plan, objectives: tuple[str, ...], trials: int) -> None:
        """Find out what is written already.

        Args:
            work: the session whose parent run takes the trials.
            plan: of the study.
            objectives: name of each objective's metric.
            trials: that will be, for the progress.
        """
        self.work, self.plan, self.objectives, self.trials = work, plan, objectives, trials
        self.before = written(plan.name)
        self.here: set[int] = set()
        self._progress = Progress(work.recipe, trials)
        self._best: Tried | None = None

    def write(self, tried: Tried) -> None:
        """Write one trial, if no run holds it yet."""
        if tried.number in self.before | self.here:
            return
        values = dict(tried.metrics) | dict(zip(self.objectives, tried.values, strict=False)) | {"trial_seconds": tried.seconds}
        told = {"study": self.plan.name, "trial": tried.number, "state": tried.state, "why": tried.why or "-"}
        # What a search is compared with stands beside it.
        title = "random" if self.plan.sampler == "random" else "trial"
        self.work.trial(f"{title}-{tried.number:04d}", {**told, **plain(tried.params)}, values)
        self.here.add(tried.number)
        self._say(tried)

    def complete(self) -> list[Tried]:
        """Write what is finished and not written, as after a kill, and give all finished trials of the study."""
        every = finished(studies.open_study(self.plan, 0))
        for tried in every:
            self.write(tried)
        return every

    def draw(self) -> None:
        """Draw the study and attach the plots to the parent run."""
        with tempfile.TemporaryDirectory(prefix="mlflow-opt-plots-") as name:
            search_plots.save(studies.open_study(self.plan, 0), self.objectives, Path(name))
            self._attach(sorted(Path(name).iterdir()))

    def note(self, name: str, found: Quantity) -> None:
        """Write a quantity with its interval on the parent run: `name`, `name_lo`, `name_hi`, `name_n`."""
        values = {name: found.value, f"{name}_lo": found.lo, f"{name}_hi": found.hi, f"{name}_n": float(found.n)}
        tracking.log_values(self.work.parent.run_id, values)

    def told(self, tried: Sequence[Tried]) -> list[str]:
        """Say how the search went, in a sentence."""
        states = Counter(one.state for one in tried)
        counted = ", ".join(f"{states[name]} {name}" for name in ("complete", "pruned", "failed") if states[name])
        before = len(tried) - len(self.here)
        again = f"; {before} of them ran before and are child runs of an earlier run" if before else ""
        short = f" The search ended before its {self.trials} trials: more time may find more." if len(tried) < self.trials else ""
        return [f"Study {self.plan.name}: {len(tried)} trials ({counted}){again}.{short}"]

    def _attach(self, paths: Iterable[Path]) -> None:
        for path in paths:
            tracking.log_file(self.work.parent.run_id, path)

    def _say(self, tried: Tried) -> None:
        shown = tried.why or tried.state
        if tried.values:
            sign = 1 if larger_is_better(self.objectives[0]) else -1
            if self._best is None or sign * tried.values[0] > sign * self._best.values[0]:
                self._best = tried
            shown = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, tried.values, strict=True))
            shown += f" (best {self._best.values[0]:.4f}, trial {self._best.number})"
        self._progress.step(f"trial {tried.number}: {shown}")


def plain(params: Mapping[str, Any]) -> dict[str, Param]:
    """Write parameters as MLflow takes them: nothing is the word `none`."""
    return {name: "none" if value is None else value for name, value in params.items()}


def written(study: str) -> set[int]:
    """Find the trials of a study that have a run in the experiment in use, whichever process wrote them."""
    client, found, page = tracking.client(), set(), ""
    while True:
        runs = client.search_runs(
            [tracking.experiment()], f"params.study = '{study}'", max_results=_PAGE, page_token=page or None, order_by=["start_time"]
        )
        found |= {int(run.data.params["trial"]) for run in runs if "trial" in run.data.params}
        page = runs.token
        if not page:
            return found
