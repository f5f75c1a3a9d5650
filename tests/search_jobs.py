"""Cheap things to search, in a module of their own so that worker processes find them; run as a program it is a search to kill."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from mlflow_opt.search import executors, searching, studies
from mlflow_opt.search.searching import Budget, Ticket, Tried
from mlflow_opt.search.studies import Plan


def plan(folder: Path, **changed: Any) -> Plan:
    given: dict[str, Any] = {"name": "parabola", "storage": str(folder / "studies.journal"), "directions": ("maximize",)}
    given |= {"pruner": "none", "seed": 0, "steps": 1, "workers": 1, "subject": "parabola"}
    return Plan(**{**given, **changed})


@dataclass(frozen=True)
class Parabola:
    """The best x is 0.3. Every trial takes so many seconds and leaves a line: its number, its process, when it began and ended."""

    diary: Path
    seconds: float = 0.0

    def __call__(self, trial: optuna.Trial, ticket: Ticket) -> tuple[float, ...]:
        x, began = trial.suggest_float("x", -1.0, 1.0), time.time()
        until = began + self.seconds
        while time.time() < until:
            ticket.check()
            time.sleep(0.01)
        searching.keep(trial, {"loss": (x - 0.3) ** 2})
        self.note(trial.number, began)
        return (1 - (x - 0.3) ** 2,)

    def note(self, number: int, began: float) -> None:
        with self.diary.open("a") as diary:
            diary.write(f"{number} {os.getpid()} {began} {time.time()} {os.environ.get('MLFLOW_RUN_ID', '-')}\n")

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()] if self.diary.exists() else []


def search(what: Plan, evaluate: searching.Evaluate, budget: Budget, executor: executors.Executor = "local") -> Iterator[Tried]:
    with studies.owned(what), executors.pool(executor, what.workers) as crew:
        yield from searching.search(what, evaluate, budget, crew)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    for tried in search(plan(where, workers=int(sys.argv[2])), Parabola(where / "diary", 0.1), Budget(40)):
        sys.stdout.write(f"{tried.number}\n")
        sys.stdout.flush()
