from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from benchmarks import false_promotion
from mlflow_opt.commands.selftest import rates, selftest, table
from mlflow_opt.measurement.calibrated import Calibrated, rows
from mlflow_opt.measurement.trials import CASES, Trial, pass_rate
from mlflow_opt.records import Outcome, Quantity


def _trials(case: str, passed: int, undecided: int, failed: int) -> list[Trial]:
    outcomes = [Outcome.PASS] * passed + [Outcome.INCONCLUSIVE] * undecided + [Outcome.FAIL] * failed
    return [Trial(case, outcome, Quantity(1.0, 0.9, 1.1, 100), 4, 2.0, "") for outcome in outcomes]


def test_selftest_writes_rates_and_a_plot_when_run_quickly(tracking_uri: str) -> None:
    assert selftest(gates=1, gate_s=1.0, seed=3) is None
    (run,) = mlflow.MlflowClient().search_runs([_experiment()])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["selftest_passed_null"] == 0
    assert run.data.metrics["selftest_passed_gain_20_n"] == 1
    assert run.data.metrics["selftest_passed_null_hi"] == pytest.approx(0.95)
    assert run.data.params["gates"] == "1"
    assert run.data.tags["mlflow_opt.verdict"] == "INCONCLUSIVE"
    assert "more rows" in run.data.tags["mlflow.note.content"] or "undecided" in run.data.tags["mlflow.note.content"]
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {"selftest.md", "selftest.png"}


def test_selftest_refuses_when_there_is_nothing_to_try() -> None:
    with pytest.raises(ValueError, match="gates must be at least 1"):
        selftest(gates=0)


def test_selftest_ends_as_failed_when_it_dies(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker that cannot find numpy dies at once.
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="timing session"):
        selftest(gates=1, gate_s=1.0)
    (run,) = mlflow.MlflowClient().search_runs([_experiment()])
    assert run.info.status == "FAILED"


def test_pass_rate_counts_only_passes_when_some_are_undecided() -> None:
    rate = pass_rate(_trials("null", 0, 5, 295), "null")
    assert (rate.value, rate.lo, rate.n) == (0.0, 0.0, 300)
    # The rule of three: no pass in 300 gates shows a rate below 1%.
    assert 0.0095 < rate.hi < 0.01
    assert pass_rate([], "null").hi == 1.0


def test_table_names_every_case_when_written() -> None:
    trials = [trial for case in CASES for trial in _trials(case, 3, 2, 1)]
    written = table(trials)
    assert written.count("| 50.0% | ") == len(CASES)
    assert "exactly the bound" in written
    assert set(rates(trials)) == {f"passed_{case}" for case in CASES}


def test_calibrated_models_differ_by_exactly_what_they_say_when_counted() -> None:
    assert CASES["bound"] / CASES["null"] == 1.05
    assert [CASES[case] / CASES["bound"] for case in ("gain_5", "gain_10", "gain_20")] == pytest.approx([1.05, 1.1, 1.2])
    model = Calibrated(3)
    row = model.prepare(rows(2))
    assert model.call(row) == pytest.approx(row)


def test_neighbour_is_gone_when_its_parent_is_killed() -> None:
    code = (
        "import os, subprocess, sys\nfrom mlflow_opt.measurement.trials import neighbour\n"
        "with neighbour(True):\n"
        "    children = open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split()\n"
        "    print(children[0], flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    child = Path("/proc") / subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    assert child.name.isdigit()
    deadline = time.monotonic() + 20
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists()


def test_benchmark_keeps_its_tries_when_written_and_read(tmp_path: Path) -> None:
    tries = false_promotion.Tries(tuple(_trials("null", 1, 1, 1) + _trials("bound", 1, 0, 0)), (1.2, 0.9, 1.0))
    false_promotion.write(tmp_path / "results.json", tries)
    assert false_promotion.read(tmp_path / "results.json") == tries
    written = (tmp_path / "results.md").read_text()
    assert "| unpaired mean of 20 | 33.3% |" in written
    assert false_promotion.next_case(tries) == "gain_5"
    assert false_promotion.resume(tmp_path / "results.json") == tries
    assert false_promotion.resume(tmp_path / "nothing.json") == false_promotion.Tries()
    full = false_promotion.Tries(tuple(trial for case, count in false_promotion.WANTED.items() for trial in _trials(case, count, 0, 0)))
    assert false_promotion.next_case(full) == ""
    false_promotion.write(tmp_path / "results.json", full)
    assert false_promotion.resume(tmp_path / "results.json") == false_promotion.Tries()


def _experiment() -> str:
    import os

    return os.environ["MLFLOW_EXPERIMENT_ID"]
