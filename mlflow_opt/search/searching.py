"""Search: trial after trial within a budget, here or on many workers, each finished trial kept before the next is asked for.

The process that started the search hands out tickets, one a trial; whoever takes a ticket asks the shared study for
parameters, evaluates them and tells the study. So the budget is exact, a killed search loses only the trials that were
running, and the same code runs in one process, in several and on a cluster.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_opt.search import studies
from mlflow_opt.search.executors import Pool
from mlflow_opt.search.studies import Plan

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)

# A search whose first trials are all refused asks for something that cannot be.
HOPELESS = 5


class OutOfTime(Exception):  # noqa: N818 - named for what happened, like StopIteration
    """The budget ran out in the middle of a trial."""


@dataclass(frozen=True)
class Budget:
    """How long a search goes on: trials in all, those of before included, and seconds of this process (0: no limit)."""

    trials: int
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}; 50 is usual.")
        if self.seconds < 0:
            raise ValueError(f"time_budget_s must not be negative, got {self.seconds:g}; 0 means no limit.")


@dataclass(frozen=True)
class Ticket:
    """One trial to run: its place in the search, and the moment (of `time.time`) when it must stop."""

    number: int
    deadline: float = math.inf

    def check(self) -> None:
        """Stop a trial whose time is over; called between its steps.

        Raises:
            OutOfTime: it is over.
        """
        if time.time() > self.deadline:
            raise OutOfTime


@dataclass(frozen=True)
class Tried:
    """A finished trial.

    Args:
        number: in its study.
        state: `complete`, `pruned` or `failed`.
        values: of the objectives; empty if it did not complete.
        params: as the study names them.
        metrics: everything measured.
        seconds: it took.
        why: why it failed or stopped, `""` if it completed.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    why: str = ""


# Trial and ticket -> values of the objectives. It keeps what it measures with `keep`, reports its steps to the trial and
# calls `ticket.check` between them; a ValueError means that these parameters cannot be.
Evaluate = Callable[["Trial", Ticket], tuple[float, ...]]


@dataclass(frozen=True)
class _Work:
    plan: Plan
    evaluate: Evaluate
    owner: str


def search(plan: Plan, evaluate: Evaluate, budget: Budget, pool: Pool) -> Iterator[Tried]:
    """Run trials until the budget is used up, and give each as it finishes.

    Helps wherever evaluating takes longer than the few milliseconds a proposal costs. The first trial runs to its end
    however short the time, so that there is always one.

    Args:
        plan: of the study; call it under `studies.owned`.
        evaluate: a picklable function.
        budget: trials and seconds.
        pool: what runs the trials.

    Raises:
        ValueError: the first trials are all refused.
    """
    study = studies.open_study(plan, plan.seed)
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
    done = [trial for trial in begun if studies.is_done(trial)]
    is_first = not any(trial.state.name == "COMPLETE" for trial in done)
    tickets = _tickets(len(begun), budget.trials - len(done), budget.seconds, is_first)
    ended: list[str] = []
    for tried in pool.run(run_ticket, _Work(plan, evaluate, studies.owner()), tickets):
        yield tried
        ended.append(tried.state)
        if is_first and len(ended) >= HOPELESS and set(ended) == {"failed"}:
            raise ValueError(f"the first {len(ended)} trials were all refused, the last because: {tried.why}")


def run_ticket(work: _Work, ticket: Ticket) -> Tried:
    """Run one trial in whatever process this is."""
    import optuna
    from optuna.trial import TrialState

    # Workers that share a seed would propose the same random parameters, and a search that goes on its first ones again.
    study = studies.open_study(work.plan, work.plan.seed * 1_000_003 + ticket.number)
    trial = study.ask()
    trial.set_user_attr(studies.OWNER, work.owner)
    try:
        values = work.evaluate(trial, ticket)
        return tried_of(study.tell(trial, list(values), skip_if_finished=True))
    except optuna.TrialPruned:
        return tried_of(study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True))
    except OutOfTime:
        trial.set_user_attr(studies.WHY, "the time budget ran out")
        return tried_of(study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True))
    except ValueError as error:
        trial.set_user_attr(studies.WHY, str(error)[:2000])
        return tried_of(study.tell(trial, state=TrialState.FAIL, skip_if_finished=True))
    except BaseException:
        # Interrupted, or a mistake of ours: the trial does not count, and whoever asked learns of it.
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


def keep(trial: Trial, metrics: Mapping[str, float]) -> None:
    """Keep with a trial what was measured of it; written once, just before it ends."""
    trial.set_user_attr(studies.METRICS, {name: float(value) for name, value in metrics.items()})


def tried_of(trial: FrozenTrial) -> Tried:
    """Read a finished trial of a study."""
    state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    values = tuple(trial.values or ()) if state == "complete" else ()
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    attributes = trial.user_attrs
    return Tried(
        trial.number, state, values, dict(trial.params), attributes.get(studies.METRICS, {}), seconds, attributes.get(studies.WHY, "")
    )


def finished(study: Study) -> list[Tried]:
    """List the finished trials of a study that count, first to last."""
    return [tried_of(trial) for trial in study.get_trials(deepcopy=False) if studies.is_done(trial)]


def best(trials: list[Tried], directions: tuple[str, ...], count: int) -> list[Tried]:
    """Pick the trials worth a closer look.

    With one objective the best ones. With two, trials of the Pareto front spread along it from the best of the first
    objective to the best of the second.

    Args:
        trials: finished ones; only complete ones are picked.
        directions: of the objectives.
        count: how many at most.
    """
    signs = [-1 if one == "maximize" else 1 for one in directions]
    points = {one.number: tuple(s * v for s, v in zip(signs, one.values, strict=True)) for one in trials if one.state == "complete"}
    ranked = sorted((one for one in trials if one.number in points), key=lambda one: (points[one.number], one.number))
    if len(directions) == 1:
        return ranked[:count]
    front: list[Tried] = []
    for one in ranked:
        if not front or points[one.number][1] < points[front[-1].number][1]:
            front.append(one)
    if len(front) <= count:
        return front
    places = [round(step * (len(front) - 1) / max(count - 1, 1)) for step in range(count)]
    return [front[place] for place in dict.fromkeys(places)]


def _tickets(begin: int, count: int, seconds: float, is_first: bool) -> Iterator[Ticket]:
    deadline = time.time() + seconds if seconds else math.inf
    for index in range(max(count, 0)):
        if time.time() > deadline and not (is_first and index == 0):
            return
        yield Ticket(begin + index, math.inf if is_first and index == 0 else deadline)
