from __future__ import annotations

import itertools
import math
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mlflow_opt.measurement import sequential
from mlflow_opt.measurement.calibrated import rows
from mlflow_opt.measurement.noise import doubt_of
from mlflow_opt.measurement.sequential import (
    PRICE_CORE_HOUR_USD,
    Conditions,
    cost_of,
    decided,
    default_batch,
    plan_looks,
    plan_phases,
    time_pair,
)
from mlflow_opt.measurement.stopwatch import Entry, Sitting, Timings, memory_mb, time_models
from mlflow_opt.measurement.timing_session import Reading, Watch
from mlflow_opt.measurement.trials import entry
from mlflow_opt.policy import make_policy
from mlflow_opt.records import Criterion, Quantity

QUIET = Reading(steal=0.0, foreign=0.1, off_cpu=0.02, switches=5.0, drift=1.1, settled=True)
AT_LEAST = make_policy([Criterion("speedup", "min", 1.05, "speedup")])

# A loader that reports what the worker's process is like through how its calls fail.
PROBE = """
import os, sys

class Probe:
    def __init__(self, uri):
        self.kept = bytearray(100_000_000) if uri == "hungry" else None
        if self.kept:
            self.kept[::4096] = b"x" * len(self.kept[::4096])

    def prepare(self, batch):
        return batch

    def call(self, prepared):
        pass

def load(uri, threads):
    if uri == "pinned":
        assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == str(threads), "not pinned"
    if uri == "light":
        loaded = {"torch", "mlflow", "pandas", "scipy", "sklearn", "onnxruntime"} & set(sys.modules)
        assert not loaded, f"the worker imports {loaded}"
        assert "MLFLOW_RUN_ID" not in os.environ, "the worker would join a run"
    if uri == "broken":
        raise OSError("no such model on this shelf")
    return Probe(uri)
"""


def _timings(medians: list[tuple[float, float]], calls: int = 400, spread: float = 0.01) -> Timings:
    """Make timings of two models from the median milliseconds of each session."""
    rng = np.random.default_rng(0)
    sittings = []
    for pair in medians:
        times = tuple((median * 1e6 * np.exp(spread * rng.standard_normal(calls))).astype(np.int64) for median in pair)
        sittings.append(Sitting((times,), (QUIET,), 50.0, 0.4))
    return Timings(tuple(sittings), (1,), threads=2)


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "probe_loader.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    return "probe_loader:load"


def test_time_models_finds_the_ratio_when_it_is_known() -> None:
    found = time_models([entry(200), entry(400)], rows(), sessions=3, calls=100)
    ratio = found.speedup(0, 1)
    assert 1.9 < ratio.value < 2.1
    assert ratio.lo <= ratio.value <= ratio.hi
    assert ratio.n >= 300
    assert found.speedup(1, 0).value == pytest.approx(1 / ratio.value)
    assert len(found.sittings) == 3


@pytest.mark.parametrize("uri", ["pinned", "light"])
def test_worker_is_pinned_and_light_when_it_starts(uri: str, probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "a-run-of-the-parent")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    time_models([Entry(uri, probe)], rows(), sessions=2, threads=2, calls=5)


def test_worker_says_why_when_it_dies(probe: str) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*no such model on this shelf"):
        time_models([Entry("broken", probe)], rows(), sessions=2, calls=5)


@pytest.mark.parametrize(("sessions", "count"), [(1, 8), (3, 0)], ids=["one-session", "no-rows"])
def test_time_models_refuses_when_it_could_say_nothing(sessions: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        time_models([entry(1)], rows(count), sessions=sessions)


def test_memory_is_what_the_model_holds_when_it_is_large(probe: str) -> None:
    plain, hungry = (memory_mb(Entry(uri, probe), rows()) for uri in ("plain", "hungry"))
    assert 90 < hungry - plain < 110


def test_time_pair_stops_early_when_the_gain_is_plain() -> None:
    began = time.perf_counter()
    found = time_pair(entry(100), entry(300), rows(), AT_LEAST, Conditions(batch_size=1, budget_s=20))
    assert len(found.timings.sittings) == found.looks[-1] < found.planned
    assert found.quantities["speedup"].lo > 2
    assert found.timings.level > 0.95
    assert time.perf_counter() - began < 20


def test_time_pair_uses_its_sessions_when_nothing_decides() -> None:
    policy = make_policy([Criterion("latency_p99_ms", "max", 1e9, "latency_p99_ms"), Criterion("speedup", "min", 1.0, "speedup")])
    found = time_pair(entry(50), entry(50), rows(), policy, Conditions(batch_size=4, budget_s=3))
    assert len(found.timings.sittings) >= 4
    assert {"throughput_rows_per_s", "throughput_ratio", "cost_per_million", "latency_p50_ms", "latency_p95_ms"} <= set(found.quantities)
    assert found.timings.batches == (1, 4)
    assert 0.8 < found.quantities["speedup"].value < 1.25


def test_speedup_is_the_geometric_mean_of_sessions_when_they_differ() -> None:
    ratio = _timings([(1.0, 2.0), (1.0, 2.2), (1.0, 1.8)]).speedup(0, 1)
    assert ratio.value == pytest.approx((2.0 * 2.2 * 1.8) ** (1 / 3), rel=0.01)
    assert ratio.lo < 1.8
    assert ratio.hi > 2.2


def test_speedup_widens_when_the_level_rises() -> None:
    timings = _timings([(1.0, 2.0), (1.0, 2.1), (1.0, 1.9)])
    narrow, wide = (replace(timings, level=level).speedup(0, 1) for level in (0.9, 0.99))
    assert wide.lo < narrow.lo < narrow.hi < wide.hi


def test_latency_is_in_milliseconds_when_read() -> None:
    timings = _timings([(3.0, 6.0)] * 4, spread=0.1)
    assert timings.latency(0).value == pytest.approx(3.0, rel=0.02)
    assert timings.latency(1, 0.95).value == pytest.approx(6.0 * math.exp(1.645 * 0.1), rel=0.03)
    assert timings.latency(1, 0.99).n == 1600


@pytest.mark.parametrize(("share", "calls"), [(0.5, 4), (0.95, 39), (0.99, 99)])
def test_latency_refuses_when_calls_are_too_few_for_the_quantile(share: float, calls: int) -> None:
    assert _timings([(1.0, 1.0)] * 3, calls + 1).latency(0, share).usable
    with pytest.raises(ValueError, match="needs"):
        _timings([(1.0, 1.0)] * 3, calls).latency(0, share)


def test_cost_leaves_out_a_quantile_when_calls_are_too_few() -> None:
    found = cost_of(_timings([(2.0, 2.0)] * 3, calls=50), 0)
    assert "latency_p95_ms" in found
    assert "latency_p99_ms" not in found


def test_cost_leaves_throughput_out_when_a_small_budget_gave_too_few_calls() -> None:
    found = cost_of(_timings([(2.0, 2.0)] * 3, calls=4), 0)
    assert not {"throughput_rows_per_s", "cost_per_million"} & set(found)
    assert "throughput_rows_per_s" in cost_of(_timings([(2.0, 2.0)] * 3, calls=5), 0)


def test_cost_per_million_counts_the_threads_when_priced() -> None:
    found = cost_of(_timings([(3.6, 1.0)] * 3), 0)
    # 3.6 ms a row on two threads: a million rows are one hour of two cores.
    assert found["throughput_rows_per_s"].value == pytest.approx(1000 / 3.6, rel=0.01)
    assert found["cost_per_million"].value == pytest.approx(2 * PRICE_CORE_HOUR_USD, rel=0.01)
    assert all(quantity.usable for quantity in found.values())


@pytest.mark.parametrize(
    ("ends", "expected"), [((1.06, 1.2), True), ((0.9, 1.04), True), ((1.0, 1.1), False)], ids=["passes", "fails", "undecided"]
)
def test_decided_looks_at_the_whole_interval_when_asked(ends: tuple[float, float], expected: bool) -> None:
    assert decided(AT_LEAST.criteria, {"speedup": Quantity(sum(ends) / 2, *ends, 100)}) is expected
    assert not decided(AT_LEAST.criteria, {})


def test_last_look_takes_the_place_of_the_one_before_when_time_brought_no_new_session() -> None:
    assert sequential._level([4, 4], 24, 0.95, final=True) == pytest.approx(0.95)
    repeated, plain = (sequential._level(looks, 24, 0.95, final=True) for looks in ([4, 6, 6], [4, 6]))
    assert repeated == plain < sequential._level([4, 6], 24, 0.95, final=False)


@pytest.mark.parametrize("planned", range(3, 25))
def test_looks_rise_to_the_plan_when_planned(planned: int) -> None:
    looks = plan_looks(planned)
    assert looks[-1] == planned
    assert all(later > earlier for earlier, later in itertools.pairwise(looks))


def test_phases_give_slow_models_time_when_tails_are_judged() -> None:
    flat = rows()
    usual, patient = (plan_phases(flat, 256, Conditions(), tails=tails)[0] for tails in (False, True))
    assert patient.limit_s > 1.5 * usual.limit_s
    assert [phase.batch for phase in plan_phases(flat, 256, Conditions())] == [1, 256]
    assert default_batch({"image": np.zeros((4, 28, 28))}) == 32
    assert default_batch(flat) == 1000


@pytest.mark.parametrize(
    ("change", "judged", "told"),
    [
        ({}, "latency", ""),
        ({"off_cpu": 0.5}, "ratio", ""),
        ({"off_cpu": 0.5}, "latency", "off its core for 50%"),
        ({"off_cpu": 0.95}, "ratio", "off its core for 95%"),
        ({"steal": 0.6}, "ratio", "hypervisor withheld 60%"),
        ({"drift": 2.5}, "latency", "varied 2.5-fold"),
        ({"foreign": 1.0}, "latency", ""),
    ],
    ids=["quiet", "ratio-stands", "latency-does-not", "starved", "stolen", "throttled", "neighbour"],
)
def test_doubt_is_raised_when_the_machine_harms_what_is_judged(change: dict[str, float], judged: str, told: str) -> None:
    told_by_machine = {**asdict(QUIET), **change}
    reading = Reading(**told_by_machine)
    assert judged in ("ratio", "latency")
    found = doubt_of([reading] * 5, [0.1] * 5, "latency" if judged == "latency" else "ratio")
    assert told in found if told else found == ""


def test_doubt_is_raised_when_sessions_disagree() -> None:
    assert "differed by a factor" in doubt_of([QUIET] * 4, [0.0, 1.0, -1.0, 0.5], "ratio")
    # One bad session among many widens the interval and raises no doubt.
    assert doubt_of([QUIET] * 6 + [replace(QUIET, off_cpu=0.99)], [0.1] * 7, "ratio") == ""


@pytest.mark.parametrize(
    ("gain", "spread", "doubted"),
    [(0.0, 0.4, True), (0.05, 0.4, True), (2.7, 0.4, False), (2.7, 1.0, True)],
    ids=["equal_models", "small_gain", "large_gain", "large_gain_larger_spread"],
)
def test_doubt_of_dispersion_depends_on_the_gain_when_processes_differ(gain: float, spread: float, doubted: bool) -> None:
    ratios = [gain - spread, gain + spread, gain - spread, gain + spread]
    assert ("differed by a factor" in doubt_of([QUIET] * 4, ratios, "ratio")) is doubted


def test_watch_sees_no_drift_when_the_thread_only_has_to_wait() -> None:
    # A signal that makes the loop wait in its middle, as a neighbour on its core does.
    before = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.002))
    watch = Watch()
    try:
        for turn in range(16):
            time.sleep(0.021)
            signal.setitimer(signal.ITIMER_REAL, 3e-5 if turn >= 6 else 0)
            watch.calibrate()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    reading = watch.read(settled=True, single=True)
    assert reading.off_cpu > 0.5
    assert reading.drift < 6, "waiting for a core is not a slower core"
