"""Optuna's studies where a search keeps its trials: opened, cleared of what a dead process left, and warmed by earlier ones.

A study lives in a journal file (no server needed, 13 ms a trial) or in a database that several machines reach. Both outlive
the process: a search that was killed goes on with the trials it had finished.

References: Akiba et al. 2019, "Optuna: a next-generation hyperparameter optimization framework"; Bergstra et al. 2011,
"Algorithms for hyper-parameter optimization" (TPE); Li et al. 2018, "Hyperband"; Golovin et al. 2017, "Google Vizier"
(median stopping rule, transfer from earlier studies).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow_opt.search import file_locks
from mlflow_opt.search.search_spaces import within
from mlflow_opt.search.study_storage import storage_at, storage_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = [
    "FROM_ALL",
    "METRICS",
    "OWNER",
    "WHY",
    "Plan",
    "Pruner",
    "Sampler",
    "close_stale",
    "is_done",
    "open_study",
    "owned",
    "owner",
    "started",
    "storage_at",
    "storage_of",
    "warm",
]


Pruner = Literal["hyperband", "median", "none"]
Sampler = Literal["tpe", "nsga2", "random"]
# Small populations: searches of networks have tens of trials, not thousands.
_POPULATION = 12
# On a trial: which process drives it, what was measured, why it failed. On a study: what it searches, for warm starts, and how.
OWNER, METRICS, WHY = "mlflow_opt.owner", "mlflow_opt.metrics", "mlflow_opt.why"
SUBJECT, SEARCH = "mlflow_opt.subject", "mlflow_opt.search"
# Trials taken over from each earlier study, and at most in all.
FROM_EACH, FROM_ALL = 3, 8


@dataclass(frozen=True)
class Plan:
    """What a study is.

    Args:
        name: of the study.
        storage: a path (journal file) or a database URL, as `storage_of` gives it.
        directions: `maximize` or `minimize`, one an objective.
        pruner: stops bad trials; only where there is one objective.
        seed: of the proposals.
        steps: reports that a whole trial makes, such as folds.
        workers: trials at the same time.
        subject: what is searched; studies with the same subject warm each other.
        sampler: makes the proposals: `tpe`, `nsga2` (Deb et al. 2002, for several objectives), or `random` to compare with.
        search: all that makes its trials comparable: rows, ranges, folds; a study of another search is not gone on with.
    """

    name: str
    storage: str
    directions: tuple[str, ...]
    pruner: Pruner
    seed: int
    steps: int
    workers: int
    subject: str
    sampler: Sampler = "tpe"
    search: str = ""

    @property
    def is_file(self) -> bool:
        """Tell whether the study lives in a journal file."""
        return "://" not in self.storage


def open_study(plan: Plan, seed: int) -> Study:
    """Open a study, made if it is new.

    Args:
        plan: what it is.
        seed: of the next proposal; a study that goes on must not repeat its first random ones.

    Raises:
        ValueError: the storage does not answer, or the study has other objectives.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = storage_at(plan.storage)
    study = optuna.create_study(
        storage=storage,
        study_name=plan.name,
        directions=[optuna.study.StudyDirection[one.upper()] for one in plan.directions],
        load_if_exists=True,
        sampler=_sampler(plan, seed % 2**32),
        pruner=_pruner(plan),
    )
    wanted = [one.upper() for one in plan.directions]
    if [one.name for one in study.directions] != wanted:
        raise ValueError(
            f"study '{plan.name}' has the objectives {study.directions}, not {wanted}; give another study=, or leave it empty."
        )
    _claim(plan, study)
    return study


@contextmanager
def owned(plan: Plan) -> Iterator[None]:
    """Be the only process that drives a study of a journal file; a database may be shared.

    Raises:
        ValueError: another process drives it.
    """
    if not plan.is_file:
        yield
        return
    with file_locks.alone(Path(f"{plan.storage}.{plan.name}.owner")) as free:
        if not free:
            raise ValueError(f"study '{plan.name}' is being run by another process; wait for it, or give study=ANOTHER_NAME.")
        yield


def close_stale(plan: Plan, study: Study) -> int:
    """Fail the trials that a dead process left running, and propose again what they were told to try.

    A journal's study has one owner at a time, so whoever owns it may close all. In a database a trial is closed if the
    process that drove it ran on this machine and is gone, or is this one. Not to be called while a search runs.

    Returns:
        how many were closed.
    """
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    stale = [trial for trial in running if plan.is_file or trial.user_attrs.get(OWNER) == owner() or _is_dead(trial)]
    for trial in stale:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        told = trial.system_attrs.get("fixed_params")
        if told:
            study.enqueue_trial(told)
    return len(stale)


def is_done(trial: FrozenTrial) -> bool:
    """Tell whether a trial counts: finished, pruned, or refused by the estimator; one that its process took along does not."""
    return trial.state.is_finished() and (trial.state.name != "FAIL" or WHY in trial.user_attrs)


def warm(plan: Plan, study: Study, own: Sequence[Mapping[str, Any]], distributions: Mapping[str, Any]) -> int:
    """Propose first what is known: the model's own parameters, and the best of earlier studies of the same subject.

    What the study has tried already is not proposed again, so that a search that goes on may call it too.

    Args:
        plan: of the study.
        study: it.
        own: parameters of the model, in the space's names.
        distributions: of the space; what lies outside is moved in.

    Returns:
        how many proposals came from earlier studies.
    """
    earlier = [within(params, distributions) for params in _best_of_earlier(plan)]
    for params in (*(within(one, distributions) for one in own), *earlier):
        if params:
            study.enqueue_trial(params, skip_if_exists=True)
    return len(earlier)


def owner() -> str:
    """Name this process so that it can be told from a later one with the same number."""
    return f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}"


def started(pid: int) -> str:
    """Give when a process started, in the kernel's own ticks since it booted, `""` if there is none."""
    try:
        # The name, in parentheses, may itself hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _claim(plan: Plan, study: Study) -> None:
    known = study.user_attrs
    if known.get(SEARCH, plan.search) != plan.search:
        raise ValueError(
            f"study '{plan.name}' was another search (of other rows, ranges, folds or goals), whose trials cannot be compared; "
            "give another study=, or leave it empty."
        )
    for name, value in ((SUBJECT, plan.subject), (SEARCH, plan.search)):
        if name not in known:
            study.set_user_attr(name, value)


def _best_of_earlier(plan: Plan) -> list[dict[str, Any]]:
    import optuna
    from optuna.trial import TrialState

    storage = storage_at(plan.storage)
    found: list[dict[str, Any]] = []
    for summary in reversed(optuna.get_all_study_summaries(storage)):
        if summary.study_name == plan.name or summary.user_attrs.get(SUBJECT) != plan.subject:
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
        found += [dict(trial.params) for trial in sorted(trials, key=lambda one: sign * one.values[0])[:FROM_EACH]]
    return found[:FROM_ALL]


def _is_dead(trial: FrozenTrial) -> bool:
    host, _, rest = str(trial.user_attrs.get(OWNER, "::")).partition(":")
    pid, _, since = rest.partition(":")
    return host == socket.gethostname() and pid.isdigit() and started(int(pid)) != since


def _sampler(plan: Plan, seed: int) -> Any:
    from optuna import samplers

    if plan.sampler == "nsga2":
        return samplers.NSGAIISampler(population_size=_POPULATION, seed=seed)
    if plan.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=plan.workers > 1)


def _pruner(plan: Plan) -> Any:
    from optuna import pruners

    if plan.pruner == "none" or len(plan.directions) > 1:
        return pruners.NopPruner()
    if plan.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(plan.steps, 1), reduction_factor=3)
    return pruners.MedianPruner(n_startup_trials=5)
