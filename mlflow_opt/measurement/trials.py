"""Gates tried on pairs of models whose true speed-up is known: how often is each let through?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow_opt.gate import judge
from mlflow_opt.measurement.calibrated import rows
from mlflow_opt.measurement.intervals import clopper_pearson
from mlflow_opt.measurement.sequential import Conditions, time_pair
from mlflow_opt.measurement.stopwatch import THREAD_VARIABLES, Entry
from mlflow_opt.policy import make_policy
from mlflow_opt.records import Criterion, Measurement, Outcome, Policy, Quantity

BASE_UNITS = 400
BOUND = 1.05
# True speed-up of the candidate -> units of its reference: none, exactly the bound, and 5, 10 and 20% over the bound.
CASES = {"null": 400, "bound": 420, "gain_5": 441, "gain_10": 462, "gain_20": 504}
# A process that does nothing but work, as a neighbour on a shared machine would. It ends when its parent is gone, however that died.
_WORK = """
import numpy, os, sys
m = numpy.ones((300, 300))
while os.getppid() == int(sys.argv[1]):
    m @ m, sorted(range(20000), key=lambda x: -x)
"""


@dataclass(frozen=True)
class Trial:
    """One gate on a pair of known speed-up: how it ended, the speed-up that it found, sessions run and seconds taken."""

    case: str
    outcome: Outcome
    speedup: Quantity
    sessions: int
    seconds: float
    doubt: str


def entry(units: int) -> Entry:
    """Name a model of so many units for the stopwatch."""
    return Entry(str(units), "mlflow_opt.measurement.calibrated:load")


def bound_policy() -> Policy:
    """Return the policy that the trials judge by: at least 5% faster."""
    return make_policy([Criterion("speedup", "min", BOUND, "speedup")])


def try_gate(case: str, budget_s: float, seed: int) -> Trial:
    """Let the gate judge a pair of known speed-up, as it judges any pair.

    Args:
        case: one of `CASES`.
        budget_s: seconds that the gate may take.
        seed: of the sessions' random order.

    """
    policy = bound_policy()
    found = time_pair(entry(BASE_UNITS), entry(CASES[case]), rows(), policy, Conditions(batch_size=1, budget_s=budget_s, seed=seed))
    verdict = judge(Measurement(found.quantities, doubt=found.doubt), policy)
    sittings = found.timings.sittings
    seconds = sum(sitting.seconds for sitting in sittings)
    return Trial(case, verdict.outcome, found.quantities["speedup"], len(sittings), seconds, found.doubt)


def pass_rate(trials: Sequence[Trial], case: str) -> Quantity:
    """Give how often a case was let through, with the exact interval whose ends each hold at 95%."""
    outcomes = [trial.outcome for trial in trials if trial.case == case]
    passed = sum(outcome is Outcome.PASS for outcome in outcomes)
    lo, hi = clopper_pearson(passed, len(outcomes), 0.90)
    return Quantity(passed / max(len(outcomes), 1), lo, hi, len(outcomes))


@contextmanager
def neighbour(working: bool) -> Iterator[None]:
    """Keep another process working meanwhile, if asked."""
    if not working:
        yield
        return
    # One process is meant, not one a core.
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    process = subprocess.Popen([sys.executable, "-c", _WORK, str(os.getpid())], env=environment)  # noqa: S603
    try:
        yield
    finally:
        process.kill()
        process.wait()
