"""Try the gate on this machine with pairs whose true speed-up is known, so that nobody has to believe what it says of itself.

The rates are exact binomial ones (Clopper & Pearson 1934, "The use of confidence or fiducial limits").
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow_opt.gate import judge
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.measurement.trials import BASE_UNITS, BOUND, CASES, Trial, neighbour, pass_rate, try_gate
from mlflow_opt.policy import make_policy
from mlflow_opt.records import Criterion, Measurement, Outcome, Quantity, Verdict
from mlflow_opt.runs import tracking
from mlflow_opt.signature import run

_logger = logging.getLogger(__name__)

# What the gate must keep to on any machine: the share of gates that let each case through.
TARGETS = (
    Criterion("passed_null", "max", 0.01, "passed_null"),
    Criterion("passed_bound", "max", 0.05, "passed_bound"),
    Criterion("passed_gain_10", "min", 0.95, "passed_gain_10"),
)
_WORDS = {
    "null": "no gain: a model against itself",
    "bound": "exactly the bound",
    "gain_5": "5% over the bound",
    "gain_10": "10% over the bound",
    "gain_20": "20% over the bound",
}


def run_trials(gates: int, gate_s: float, time_budget_s: float, seed: int) -> list[Trial]:
    """Try every case in turns until each had its tries or the time is up."""
    began, trials = time.monotonic(), list[Trial]()
    for turn in range(gates):
        for number, case in enumerate(CASES):
            trials.append(try_gate(case, gate_s, seed + turn * len(CASES) + number))
        elapsed = time.monotonic() - began
        _logger.info("%d of %d rounds, %.0f s: %s", turn + 1, gates, elapsed, _short(trials))
        if time_budget_s and elapsed * (turn + 2) / (turn + 1) > time_budget_s:
            break
    return trials


def rates(trials: Sequence[Trial]) -> dict[str, Quantity]:
    """Give the share of gates that let each case through."""
    return {f"passed_{case}": pass_rate(trials, case) for case in CASES}


def table(trials: Sequence[Trial]) -> str:
    """Write the rates as a Markdown table."""
    lines = [
        f"| true speed-up (bound {BOUND:g}) | let through | 95% limits | refused | undecided | gates | seconds a gate |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, units in CASES.items():
        mine = [trial for trial in trials if trial.case == case]
        rate = pass_rate(trials, case)
        refused = sum(trial.outcome is Outcome.FAIL for trial in mine)
        undecided = sum(trial.outcome is Outcome.INCONCLUSIVE for trial in mine)
        seconds = sum(trial.seconds for trial in mine) / max(len(mine), 1)
        lines.append(
            f"| {units / BASE_UNITS:.4g} ({_WORDS[case]}) | {rate.value:.1%} | {rate.lo:.1%} to {rate.hi:.1%} "
            f"| {refused} | {undecided} | {rate.n} | {seconds:.1f} |"
        )
    return "\n".join(lines)


def selftest(
    *, gates: int = 20, gate_s: float = 5.0, time_budget_s: float = 280.0, busy: bool = False, seed: int = 0, strict: bool = False
) -> Verdict | None:
    """Try the gate on pairs of known speed-up and report how often it let each through, with intervals and a plot.

    Helps to see, before trusting a verdict, what this machine's noise does to it. It does not help to compare machines or
    models, and a quick run is sure of little: a false promotion rate below 1% takes 300 gates to show.

    Example:
        mlflow run . -e selftest -P busy=true

    Args:
        gates: tries of each of the five cases, at most.
        gate_s: seconds that one gate may take.
        time_budget_s: seconds for all, 0 for no limit.
        busy: keep another process working meanwhile.
        seed: of the sessions' random order.
        strict: end with an exit code: 0 if the rates are shown to be good, 1 if shown to be bad, 2 if too few gates were tried.

    Raises:
        ValueError: fewer than one gate.

    References:
        Clopper & Pearson 1934; the protocol is `mlflow_opt.measurement.sequential`'s.
    """
    if gates < 1:
        raise ValueError(f"gates must be at least 1, got {gates}; 20 is quick, 300 shows a rate below 1%.")
    given = dict(locals())
    tracking.require_store()
    parent = tracking.open_parent("selftest", given, {"mlflow_opt.fingerprint": fingerprint(1)})
    try:
        with neighbour(busy):
            trials = run_trials(gates, gate_s, time_budget_s, seed)
        verdict = judge(Measurement(rates(trials)), make_policy(TARGETS))
        _write(parent.run_id, trials, verdict)
    except BaseException:
        tracking.close(parent.run_id, "FAILED")
        raise
    if not parent.joined:
        tracking.close(parent.run_id, "FINISHED")
    return verdict if strict else None


def _write(run_id: str, trials: Sequence[Trial], verdict: Verdict) -> None:
    found = rates(trials)
    values = {f"selftest_{name}{end}": value for name, q in found.items() for end, value in _ends(q)}
    lines = [table(trials), "", f"{verdict.outcome.value}:", *(f"- {reason.text}" for reason in verdict.reasons)]
    text = "\n".join([*lines, "", f"Measured on: {fingerprint(1)}"])
    tracking.log_values(run_id, values, {"mlflow.note.content": text, "mlflow_opt.verdict": verdict.outcome.value})
    tracking.log_text(run_id, "selftest.md", text)
    with tempfile.TemporaryDirectory() as folder:
        tracking.log_file(run_id, _plot(trials, Path(folder) / "selftest.png"))
    _logger.info("%s", text)


def _ends(rate: Quantity) -> list[tuple[str, float]]:
    return [("", rate.value), ("_lo", rate.lo), ("_hi", rate.hi), ("_n", float(rate.n))]


def _short(trials: Sequence[Trial]) -> str:
    return ", ".join(f"{case} {pass_rate(trials, case).value:.0%}" for case in CASES)


def _plot(trials: Sequence[Trial], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    truths = [units / BASE_UNITS for units in CASES.values()]
    found = [pass_rate(trials, case) for case in CASES]
    spans = [[rate.value - rate.lo for rate in found], [rate.hi - rate.value for rate in found]]
    axes.errorbar(truths, [rate.value for rate in found], yerr=spans, fmt="o-", capsize=4)
    axes.axvline(BOUND, color="grey", linestyle="--", label=f"bound {BOUND:g}")
    axes.set(
        xlabel="true speed-up", ylabel="share of gates that let it through", ylim=(-0.03, 1.03), title="The gate on pairs of known speed-up"
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    run(selftest)
