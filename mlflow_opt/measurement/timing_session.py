"""One timing session: a fresh Python process that loads the models, warms them up and times them against each other.

The parent (`mlflow_opt.measurement.stopwatch`) starts it as `python -m mlflow_opt.measurement.timing_session spec.json` with
the thread counts already in the environment, because OpenMP and BLAS read them once, at import. It answers with one `.npz`: the
latencies of every model and what the machine did meanwhile.

Within a session the models take turns in short bursts, in an order drawn anew for every round, so that whatever the
machine does hits all of them alike. Each burst starts with a call that is not timed: in service a model finds the
caches as its own last call left them, not as its rival's did. Between processes the noise is larger than within one
(Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time"), which is why sessions are many and short.

Start cost: numpy and what the loader imports; nothing here imports mlflow, torch or onnxruntime by itself.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

BURST = 4
# Above this a call evicts any cache itself, so that a lead-in call would only cost time.
LEAD_IN_BELOW_NS = 5e6
# Thread pools go on spinning for about a millisecond after a call and would steal the next model's core.
SPIN_DOWN_S = 0.002
WARM_TOLERANCE, WARM_BLOCK, WARM_BLOCKS, WARM_SECONDS = 0.03, 6, 40, 2.0
CALIBRATE_EVERY_NS = 20_000_000
MEGABYTE = 2.0**20


@dataclass(frozen=True)
class Phase:
    """What to time: calls on `batch` rows, at least `min_calls` of them and `seconds` long, never beyond the limits."""

    batch: int
    min_calls: int
    max_calls: int
    seconds: float
    limit_s: float
    distinct: int


@dataclass(frozen=True)
class Reading:
    """What the machine did while a session was timed; shares are of the elapsed time, 0 where the system does not tell.

    Args:
        steal: share of CPU time that the hypervisor gave to others.
        foreign: cores' worth of work done by other processes.
        off_cpu: share of the time that the timing thread was runnable or waiting but not running.
        switches: how often a second it was taken off its core against its will.
        drift: slowest over fastest tenth of a fixed loop's own CPU time, taken throughout.
        settled: whether warm-up reached stable medians.
    """

    steal: float
    foreign: float
    off_cpu: float
    switches: float
    drift: float
    settled: bool


def load_pyfunc(uri: str, _threads: int) -> Any:
    """Load a model as MLflow serves it, so that its calls include MLflow's schema check; threads come from the environment."""
    import mlflow.pyfunc

    return _Pyfunc(mlflow.pyfunc.load_model(uri))


class _Pyfunc:
    def __init__(self, model: Any) -> None:
        self.call = model.predict

    def prepare(self, batch: Any) -> Any:
        return batch


def main(spec_path: str) -> None:
    """Run the session that a spec file describes and write its answer beside it."""
    started = time.perf_counter()
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    # The file is written by our own parent process into a folder that only this user can read: pickle keeps dtypes exactly.
    rows = pickle.loads(Path(spec["rows"]).read_bytes())  # noqa: S301
    before_mb = _resident_mb()
    rng = np.random.default_rng(spec["seed"])
    models = _load_all(spec, rows, rng)
    phases = [Phase(**phase) for phase in spec["phases"]]
    gc.collect()
    gc.freeze()
    gc.disable()
    times: dict[str, Any] = {}
    readings = []
    for number, phase in enumerate(phases):
        taken, reading = _run_phase(models, rows, phase, rng, spec["threads"])
        readings.append(asdict(reading))
        times |= {f"phase{number}_model{index}": values for index, values in enumerate(taken)}
    told = {"readings": readings, "memory_mb": _peak_mb() - before_mb, "seconds": time.perf_counter() - started}
    np.savez(spec["out"], told=np.array(json.dumps(told)), **times)


def _load_all(spec: dict[str, Any], rows: Any, rng: np.random.Generator) -> list[Any]:
    """Load the models in random order and at random places in memory.

    Where a model's arrays happen to lie changes its speed by half a per cent, in every process alike if the order of loading
    is the same (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!"). Drawn
    anew, this becomes noise between sessions, which the interval counts.
    """
    models: list[Any] = [None] * len(spec["entries"])
    one, padding = _take(rows, np.zeros(1, dtype=int)), []
    for index in rng.permutation(len(models)):
        padding.append(np.ones(int(rng.integers(1, 4096))))
        module, _, function = spec["entries"][index]["loader"].partition(":")
        models[index] = getattr(importlib.import_module(module), function)(spec["entries"][index]["uri"], spec["threads"])
        # Models load themselves when first used.
        models[index].prepare(one)
    return models


def _run_phase(models: Sequence[Any], rows: Any, phase: Phase, rng: np.random.Generator, threads: int) -> tuple[list[np.ndarray], Reading]:
    batches = [_take(rows, index) for index in _draw(rows, phase, rng)]
    inputs = [[model.prepare(batch) for batch in batches] for model in models]
    _pin_torch(threads)
    calls = [model.call for model in models]
    settled, typical_ns = _warm_up(calls, inputs, rng)
    watch = Watch()
    times = _time_rounds(calls, inputs, phase, rng, _Rhythm(typical_ns < LEAD_IN_BELOW_NS, threads > 1, watch))
    return times, watch.read(settled, single=threads == 1)


def _draw(rows: Any, phase: Phase, rng: np.random.Generator) -> list[np.ndarray]:
    total = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)
    if phase.batch == 1:
        return [np.array([index]) for index in rng.permutation(total)[: phase.distinct]]
    size = min(phase.batch, total)
    return [np.sort(rng.choice(total, size=size, replace=False)) for _ in range(phase.distinct)]


def _take(rows: Any, index: np.ndarray) -> Any:
    # As data.take does, without importing it: the session's start cost is part of every measurement's budget.
    return {name: values[index] for name, values in rows.items()} if isinstance(rows, dict) else rows.iloc[index]


def _pin_torch(threads: int) -> None:
    # torch has one setting for the whole process, which loading a model leaves alone; here the process is ours.
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _warm_up(calls: Sequence[Callable[[Any], Any]], inputs: Sequence[list[Any]], rng: np.random.Generator) -> tuple[bool, float]:
    """Call until two successive blocks' medians agree twice running for every model; tell whether they did, and the slowest median."""
    deadline = time.perf_counter() + WARM_SECONDS
    previous, agreed = np.full(len(calls), np.inf), 0
    for block in range(WARM_BLOCKS):
        medians = np.empty(len(calls))
        for model, call in enumerate(calls):
            # One call first, then as many as a fifth of a second holds: a model may take seconds a call.
            size = int(np.clip(0.2e9 / previous[model], 1, WARM_BLOCK))
            picks = rng.integers(len(inputs[model]), size=size)
            medians[model] = np.median([_timed(call, inputs[model][pick]) for pick in picks])
        agreed = agreed + 1 if np.all(np.abs(medians / previous - 1) < WARM_TOLERANCE) else 0
        previous = medians
        if agreed == 2:
            return True, float(medians.max())
        if block > 0 and time.perf_counter() > deadline:
            break
    return False, float(previous.max())


def _timed(call: Callable[[Any], Any], prepared: Any) -> int:
    began = time.perf_counter_ns()
    call(prepared)
    return time.perf_counter_ns() - began


@dataclass(frozen=True)
class _Rhythm:
    lead_in: bool
    spin_down: bool
    watch: Watch


def _time_rounds(
    calls: Sequence[Callable[[Any], Any]], inputs: Sequence[list[Any]], phase: Phase, rng: np.random.Generator, rhythm: _Rhythm
) -> list[np.ndarray]:
    burst = BURST if rhythm.lead_in else 1
    times: list[list[int]] = [[] for _ in calls]
    began = time.perf_counter()
    while not _enough(len(times[0]), time.perf_counter() - began, phase):
        picks = rng.integers(len(inputs[0]), size=burst + 1)
        for model in rng.permutation(len(calls)):
            call, prepared = calls[model], inputs[model]
            if rhythm.spin_down:
                time.sleep(SPIN_DOWN_S)
            if rhythm.lead_in:
                call(prepared[picks[-1]])
            times[model] += [_timed(call, prepared[pick]) for pick in picks[:burst]]
        rhythm.watch.calibrate()
    return [np.array(values, dtype=np.int64) for values in times]


def _enough(calls: int, elapsed: float, phase: Phase) -> bool:
    if calls >= phase.max_calls or (elapsed >= phase.limit_s and calls > 0):
        return True
    return elapsed >= phase.seconds and calls >= phase.min_calls


class Watch:
    """Reads the machine's counters over a timed stretch, and times a fixed loop between rounds."""

    def __init__(self) -> None:
        self._began = self._counters()
        self._loops: list[int] = []
        self._next_ns = 0

    def calibrate(self) -> None:
        """Time the fixed loop, if that was not done just now."""
        now = time.perf_counter_ns()
        if now >= self._next_ns:
            # In the thread's own time: what a neighbour takes of the core is told by off_cpu, not by this.
            began = time.thread_time_ns()
            _fixed_work(2_000)
            self._loops.append(max(time.thread_time_ns() - began, 1))
            self._next_ns = now + CALIBRATE_EVERY_NS

    def read(self, settled: bool, *, single: bool) -> Reading:
        """Say what happened since the watch was made; `single` if the thread that made it did all the work."""
        wall, thread, own, busy, steal, switches = (after - before for after, before in zip(self._counters(), self._began, strict=True))
        wall = max(wall, 1e-9)
        slow, fast = np.quantile(self._loops, [0.9, 0.1])
        return Reading(
            steal=steal / wall / (os.cpu_count() or 1),
            foreign=max(0.0, busy - own) / wall,
            # With several threads the main one waits for the others, which says nothing about the machine.
            off_cpu=max(0.0, 1 - thread / wall) if single else 0.0,
            switches=switches / wall,
            drift=float(slow / fast),
            settled=settled,
        )

    def _counters(self) -> tuple[float, float, float, float, float, float]:
        busy, steal = _machine_seconds()
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return time.perf_counter(), time.thread_time(), time.process_time(), busy, steal, float(switches)


def _fixed_work(turns: int) -> int:
    total = 0
    for turn in range(turns):
        total += turn
    return total


def _machine_seconds() -> tuple[float, float]:
    """Return the CPU seconds that all processes used and that the hypervisor stole since boot; zeros where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, _, _, irq, soft, steal = (
        float(x) / os.sysconf("SC_CLK_TCK") for x in stat.read_text().split("\n", 1)[0].split()[1:9]
    )
    return user + nice + system + irq + soft, steal


def _resident_mb() -> float:
    statm = Path("/proc/self/statm")
    return float(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE if statm.exists() else _peak_mb()


def _peak_mb() -> float:
    # What getrusage reports on Linux was inherited from the parent's memory when it forked.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024 / MEGABYTE
    # Elsewhere it is the process's own: macOS counts bytes, other systems kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MEGABYTE


if __name__ == "__main__":
    main(sys.argv[1])
