"""How often a gate lets through what it must not: ours, and a mean of 20 unpaired calls, on the same busy machine in the same run.

    python -m benchmarks.false_promotion --minutes 30

Pairs of models of known speed-up (`mlflow_opt.measurement.trials`) are judged under `speedup >= 1.05`, with a second process working all
the while. Beside each gate on a model against itself runs the protocol of Olive's latency metric: every model by itself, 10
warm-up calls, 20 repeats, their mean. Tries are kept in `benchmarks/results/false_promotion.json`; on the same machine a later run
adds to them until all are there, so that they can be spread over a day. The table goes to `benchmarks/results/false_promotion.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow_opt.commands.selftest import table
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.measurement.intervals import clopper_pearson
from mlflow_opt.measurement.trials import BASE_UNITS, BOUND, CASES, Trial, neighbour, try_gate
from mlflow_opt.records import Outcome, Quantity

RESULTS = Path(__file__).parent / "results"
# Wanted tries by case: what the rates need to show 1% (none of 299), 5% (at most 2 of 130) and 95% (at most 1 miss of 93).
WANTED = {"null": 320, "bound": 130, "gain_5": 40, "gain_10": 96, "gain_20": 40}
# One model by itself in a process of its own: 10 warm-up calls, 20 repeats, the mean in nanoseconds.
UNPAIRED = """
import sys, time
from mlflow_opt.measurement import calibrated
model = calibrated.Calibrated(int(sys.argv[1]))
row = model.prepare(calibrated.rows(1))
for _ in range(10):
    model.call(row)
began = time.perf_counter_ns()
for _ in range(20):
    model.call(row)
print((time.perf_counter_ns() - began) / 20)
"""


@dataclass(frozen=True)
class Tries:
    """All tries so far: our gates, and the ratios that the unpaired means gave on a model against itself."""

    gates: tuple[Trial, ...] = ()
    unpaired: tuple[float, ...] = ()


def main() -> None:
    """Run until the minutes are over or every case has its tries, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--gate_s", type=float, default=5.0, help="seconds that one gate may take")
    parser.add_argument("--cases", default=",".join(CASES), help="which to try now, by commas; the others may wait for another hour")
    parser.add_argument("--fresh", action="store_true", help="forget earlier tries")
    asked = parser.parse_args()
    path = RESULTS / "false_promotion.json"
    tries = Tries() if asked.fresh else resume(path)
    RESULTS.mkdir(exist_ok=True)
    until, among = time.monotonic() + 60 * asked.minutes, asked.cases.split(",")
    with neighbour(working=True):
        while time.monotonic() < until and (case := next_case(tries, among)):
            seed = 10_000 + len(tries.gates)
            trial = try_gate(case, asked.gate_s, seed)
            unpaired = (*tries.unpaired, unpaired_ratio()) if case == "null" else tries.unpaired
            tries = Tries((*tries.gates, trial), unpaired)
            if len(tries.gates) % 25 == 0:
                write(path, tries)
                print(f"{len(tries.gates)} of {sum(WANTED.values())} gates", flush=True)
    write(path, tries)
    print(report(tries))


def next_case(tries: Tries, among: Collection[str] = tuple(CASES)) -> str:
    """Name the case that is furthest from the tries wanted, `""` when all are there."""
    had = {case: sum(trial.case == case for trial in tries.gates) for case in among}
    missing = {case: had[case] / WANTED[case] for case in among if had[case] < WANTED[case]}
    return min(missing, key=lambda case: missing[case], default="")


def unpaired_ratio() -> float:
    """Give the speed-up of a model over itself by two unpaired means, baseline first."""
    means = [
        float(subprocess.run([sys.executable, "-c", UNPAIRED, str(BASE_UNITS)], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    return means[0] / means[1]


def report(tries: Tries) -> str:
    """Write the tables."""
    wrong = sum(ratio >= BOUND for ratio in tries.unpaired)
    count = len(tries.unpaired)
    lo, hi = clopper_pearson(wrong, count, 0.90)
    sessions = sorted(trial.sessions for trial in tries.gates)
    return "\n".join(
        [
            f"A gate under `speedup >= {BOUND:g}` on pairs of known speed-up, a second process working all the while:",
            "",
            table(tries.gates),
            "",
            "The same machine and minutes, a model against itself, Olive's latency protocol (10 warm-ups, 20 repeats, unpaired mean):",
            "",
            "| protocol | let through | 95% limits | tries |",
            "|---|---|---|---|",
            f"| unpaired mean of 20 | {wrong / max(count, 1):.1%} | {lo:.1%} to {hi:.1%} | {count} |",
            "",
            f"Limits are Clopper-Pearson's, each end holds at 95%. Fresh processes a gate: {sessions[len(sessions) // 2]} at the median.",
            f"Measured on: {fingerprint(1)}",
            "",
        ]
    )


def resume(path: Path) -> Tries:
    """Return earlier tries that may be added to: of this very machine and not yet complete."""
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["fingerprint"] != fingerprint(1):
        return Tries()
    tries = read(path)
    return tries if next_case(tries) else Tries()


def read(path: Path) -> Tries:
    """Read the tries of earlier runs."""
    held = json.loads(path.read_text(encoding="utf-8"))
    gates = [Trial(**{**each, "outcome": Outcome(each["outcome"]), "speedup": Quantity(**each["speedup"])}) for each in held["gates"]]
    return Tries(tuple(gates), tuple(held["unpaired"]))


def write(path: Path, tries: Tries) -> None:
    """Write the tries and the tables."""
    gates = [{**asdict(trial), "outcome": trial.outcome.value} for trial in tries.gates]
    path.write_text(json.dumps({"fingerprint": fingerprint(1), "gates": gates, "unpaired": tries.unpaired}), encoding="utf-8")
    path.with_suffix(".md").write_text(report(tries), encoding="utf-8")


if __name__ == "__main__":
    main()
