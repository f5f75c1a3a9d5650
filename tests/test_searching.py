from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from mlflow_opt.search import executors, file_locks, searching, studies
from mlflow_opt.search.searching import Budget, Ticket, Tried
from tests.search_jobs import Parabola, plan, search

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Steps:
    """A trial of five steps whose quality shows at the first one."""

    def __call__(self, trial: optuna.Trial, ticket: Ticket) -> tuple[float, ...]:
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(1, 5):
            trial.report(x, step)
            if trial.should_prune():
                searching.keep(trial, {"steps": step})
                raise optuna.TrialPruned
        return (x,)


@dataclass(frozen=True)
class Refusing:
    """Refuses every second trial, or all."""

    every: int

    def __call__(self, trial: optuna.Trial, ticket: Ticket) -> tuple[float, ...]:
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.number % self.every == 0:
            raise ValueError("x must be something else")
        return (x,)


def two_goals(trial: optuna.Trial, ticket: Ticket) -> tuple[float, ...]:
    x = trial.suggest_float("x", 0.0, 1.0)
    return x, x**2


def mistaken(trial: optuna.Trial, ticket: Ticket) -> tuple[float, ...]:
    raise KeyError("a mistake of ours")


def test_search_finds_the_best_and_keeps_every_trial_when_run(tmp_path: Path) -> None:
    found = list(search(plan(tmp_path), Parabola(tmp_path / "diary"), Budget(25)))
    assert [one.number for one in found] == list(range(25))
    best = searching.best(found, ("maximize",), 1)[0]
    assert best.params["x"] == pytest.approx(0.3, abs=0.1)
    assert best.metrics["loss"] == pytest.approx(1 - best.values[0])
    assert searching.finished(studies.open_study(plan(tmp_path), 0)) == found


def test_search_proposes_the_same_when_the_seed_is_the_same(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append([one.params for one in search(plan(tmp_path / name), Parabola(tmp_path / name / "diary"), Budget(12))])
    assert runs[0] == runs[1]
    assert len({one["x"] for one in runs[0]}) == 12


def test_search_goes_on_without_repeating_itself_when_called_again(tmp_path: Path) -> None:
    first = list(search(plan(tmp_path), Parabola(tmp_path / "diary"), Budget(5)))
    again = list(search(plan(tmp_path), Parabola(tmp_path / "diary"), Budget(9)))
    assert [one.number for one in again] == [5, 6, 7, 8]
    assert not {one.params["x"] for one in first} & {one.params["x"] for one in again}
    assert not list(search(plan(tmp_path), Parabola(tmp_path / "diary"), Budget(9)))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["alone", "two_workers"])
def test_search_redoes_nothing_when_its_process_was_killed(tmp_path: Path, workers: int) -> None:
    command = [sys.executable, "-m", "tests.search_jobs", str(tmp_path), str(workers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(6)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all(said)
    what, diary = plan(tmp_path, workers=workers), Parabola(tmp_path / "diary")
    # Workers of a dead process end after the trial that they are at.
    time.sleep(0.5 * (workers - 1))
    with studies.owned(what):
        study = studies.open_study(what, 0)
        kept = {one.number for one in searching.finished(study)}
        running = len(study.get_trials(states=(optuna.trial.TrialState.RUNNING,)))
        assert studies.close_stale(what, study) == running
    rest = list(search(what, diary, Budget(12)))
    every = searching.finished(studies.open_study(what, 0))
    assert len(kept) >= 6
    assert len(every) == 12
    assert not kept & {one.number for one in rest}
    written = [int(line[0]) for line in diary.lines()]
    assert len(written) == len(set(written))
    assert not studies.open_study(what, 0).get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_search_ends_within_a_trial_when_time_is_over(tmp_path: Path) -> None:
    began = time.monotonic()
    found = list(search(plan(tmp_path), Parabola(tmp_path / "diary", 0.3), Budget(50, 0.5)))
    assert time.monotonic() - began < 5
    assert [one.state for one in found] == ["complete", "pruned"]
    assert "time" in found[-1].why


def test_search_completes_one_trial_when_there_is_no_time_at_all(tmp_path: Path) -> None:
    found = list(search(plan(tmp_path), Parabola(tmp_path / "diary", 0.3), Budget(50, 0.001)))
    assert [one.state for one in found] == ["complete"]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_search_stops_bad_trials_when_a_pruner_is_asked_for(tmp_path: Path, pruner: studies.Pruner) -> None:
    found = list(search(plan(tmp_path, pruner=pruner, steps=5), Steps(), Budget(40)))
    pruned = [one for one in found if one.state == "pruned"]
    assert len(pruned) >= 5
    assert all(not one.values and one.metrics["steps"] >= 1 for one in pruned)
    assert max(one.params["x"] for one in found) == searching.best(found, ("maximize",), 1)[0].params["x"]


def test_search_goes_on_when_some_trials_are_refused(tmp_path: Path) -> None:
    found = list(search(plan(tmp_path), Refusing(2), Budget(8)))
    assert [one.state for one in found] == ["failed", "complete"] * 4
    assert found[0].why == "x must be something else"


def test_search_gives_up_when_all_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first 5 trials were all refused, the last because: x must be something else"):
        list(search(plan(tmp_path), Refusing(1), Budget(50)))


def test_search_raises_and_does_not_count_the_trial_when_the_evaluation_is_mistaken(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        list(search(plan(tmp_path), mistaken, Budget(3)))
    assert searching.finished(studies.open_study(plan(tmp_path), 0)) == []


def test_search_gives_the_front_when_there_are_two_objectives(tmp_path: Path) -> None:
    what = plan(tmp_path, directions=("maximize", "minimize"), pruner="median")
    found = list(search(what, two_goals, Budget(15)))
    front = searching.best(found, what.directions, 3)
    assert len(front) == 3
    assert front[0].values[0] == max(one.values[0] for one in found)
    assert front[-1].values[1] == min(one.values[1] for one in found)


def test_best_drops_what_another_beats_in_both_when_there_are_two_objectives() -> None:
    points = [(0.9, 5.0), (0.8, 4.0), (0.7, 4.5), (0.6, 1.0)]
    trials = [Tried(number, "complete", point, {}) for number, point in enumerate(points)]
    assert [one.number for one in searching.best(trials, ("maximize", "minimize"), 5)] == [0, 1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "dask"])
def test_search_uses_both_workers_and_the_whole_budget_when_there_are_two(
    tmp_path: Path, executor: executors.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "not-for-workers")
    what = plan(tmp_path, workers=2)
    diary = Parabola(tmp_path / "diary", 0.3)
    found = list(search(what, diary, Budget(14), executor))
    assert sorted(one.number for one in found) == list(range(14))
    processes = {line[1] for line in diary.lines()}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert {line[4] for line in diary.lines()} == {"-"}
    assert len({one.params["x"] for one in found}) == 14, "workers must not propose the same"


@pytest.mark.slow
def test_search_shares_a_postgresql_storage_when_workers_are_on_a_cluster(tmp_path: Path, postgres_uri: str) -> None:
    what = plan(tmp_path, storage=postgres_uri, workers=2)
    found = list(search(what, Parabola(tmp_path / "diary", 0.1), Budget(8), "dask"))
    assert len(found) == 8
    # A trial of a dead process of this machine is closed, one that another process may still drive is left.
    study = studies.open_study(what, 0)
    host = studies.owner().partition(":")[0]
    for owner in (f"{host}:999999999:7", f"{host}:{os.getppid()}:{studies.started(os.getppid())}"):
        study.ask().set_user_attr(studies.OWNER, owner)
    assert studies.close_stale(what, study) == 1
    assert [one.number for one in search(what, Parabola(tmp_path / "diary"), Budget(9))] == [10]


def test_executor_is_refused_when_it_cannot_run() -> None:
    with pytest.raises(ValueError, match="'ray', which comes later"):
        executors.check("ray", 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        executors.check("local", 0)


@pytest.mark.parametrize(("trials", "seconds"), [(0, 0.0), (1, -1.0)])
def test_budget_is_refused_when_nothing_could_run(trials: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must"):
        Budget(trials, seconds)


def test_study_is_refused_when_another_process_drives_it(tmp_path: Path) -> None:
    with studies.owned(plan(tmp_path)), pytest.raises(ValueError, match="being run by another process"), studies.owned(plan(tmp_path)):
        pass


def test_study_is_refused_when_it_was_another_search(tmp_path: Path) -> None:
    list(search(plan(tmp_path, search="five folds"), Parabola(tmp_path / "diary"), Budget(1)))
    with pytest.raises(ValueError, match="was another search"):
        list(search(plan(tmp_path, search="three folds"), Parabola(tmp_path / "diary"), Budget(2)))


def test_warm_proposes_own_and_earlier_parameters_first_when_there_are_any(tmp_path: Path) -> None:
    list(search(plan(tmp_path, name="last month"), Parabola(tmp_path / "diary"), Budget(20)))
    list(search(plan(tmp_path, name="other", subject="something else"), Parabola(tmp_path / "diary"), Budget(3)))
    what = plan(tmp_path, name="today")
    study = studies.open_study(what, 0)
    distributions = {"x": optuna.distributions.FloatDistribution(-1.0, 1.0)}
    assert studies.warm(what, study, [{"x": 5.0, "unknown": 1}], distributions) == 3
    found = list(search(what, Parabola(tmp_path / "diary"), Budget(6)))
    assert found[0].params["x"] == 1.0
    assert all(abs(one.params["x"] - 0.3) < 0.2 for one in found[1:4])
    assert studies.warm(what, study, [{"x": 5.0}], distributions) == 3
    assert [one.number for one in search(what, Parabola(tmp_path / "diary"), Budget(7))] == [6]


def test_journal_is_read_when_its_last_line_was_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(search(plan(tmp_path), Parabola(tmp_path / "diary"), Budget(3)))
    journal = tmp_path / "studies.journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    copied = tmp_path / "copy.journal"
    journal.rename(copied)
    with caplog.at_level(logging.WARNING):
        found = list(search(plan(tmp_path, storage=str(copied)), Parabola(tmp_path / "diary"), Budget(4)))
    assert "cut off" in caplog.text
    assert len(found) >= 1
    assert len(searching.finished(studies.open_study(plan(tmp_path, storage=str(copied)), 0))) == 4


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("postgresql://me:secret@host/db", "must hold no password"),
        ("env:NOT_SET_ANYWHERE", "must name a variable that is set"),
        ("/no/such/folder/x.journal", "a folder that exists"),
    ],
    ids=["password", "variable", "folder"],
)
def test_storage_is_refused_when_it_cannot_be_used(given: str, rule: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rule) as refused:
        studies.storage_of(given, tmp_path / "default")
    assert "secret" not in str(refused.value)


def test_storage_is_read_from_the_environment_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_STUDIES", "postgresql://me:secret@host/db")
    assert studies.storage_of("env:OUR_STUDIES", tmp_path) == "postgresql://me:secret@host/db"


def test_storage_says_so_without_the_password_when_the_database_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="does not") as refused:
        studies.open_study(plan(tmp_path, storage="postgresql+psycopg2://me:secret@127.0.0.1:1/db"), 0)
    assert "secret" not in str(refused.value)


def test_timing_waits_for_those_who_work_and_keeps_out_the_next_when_it_has_come(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from mlflow_opt.search import file_locks
folder, kind, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with getattr(file_locks, kind)(folder):
    began = time.time()
    print(f"{kind} {began}", flush=True)
    time.sleep(seconds)
    print(f"{kind} {time.time()}", flush=True)
"""

    def start(kind: str, seconds: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), kind, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    with file_locks.working(tmp_path):
        timer = start("timing", 0.3)
        time.sleep(0.5)
        late = [start("working", 0.1), start("timing", 0.1)]
        released = time.time()
    said = [process.communicate(timeout=30)[0].split() for process in (timer, *late)]
    spans = [(float(one[1]), float(one[3])) for one in said]
    assert all(begin >= released for begin, _ in spans)
    timings = sorted([spans[0], spans[2]])
    assert timings[0][1] <= timings[1][0]
    assert all(spans[1][1] <= begin or spans[1][0] >= end for begin, end in timings), "nobody works while a model is timed"
