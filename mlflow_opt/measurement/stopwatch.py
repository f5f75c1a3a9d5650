"""The only stopwatch: models timed against each other in fresh processes, for a choice among many or for a verdict.

Every number that this project states about speed comes from here. One session is one fresh process in which all models
take turns (`mlflow_opt.measurement.timing_session`); sessions are what an interval counts. A session costs its process's start: about
0.3 s for ONNX models on arrays, 0.8 s where rows are a table (pandas), 2 to 4 s where scikit-learn or torch must load.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from mlflow_opt.measurement.intervals import median_log_sd, t_interval
from mlflow_opt.measurement.timing_session import Phase, Reading
from mlflow_opt.records import Quantity

MODELS_LOADER = "mlflow_opt.models:load"
PYFUNC_LOADER = "mlflow_opt.measurement.timing_session:load_pyfunc"
# Read once, when a library loads: they must be in the environment before the process starts.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Below these many calls in a session its own quantile is the luck of its few largest values.
CALLS_FOR = {0.5: 5, 0.95: 40, 0.99: 100}
P99_SAMPLES = 200
# A session that takes this much longer than it should hangs.
PATIENCE_S = 600.0


@runtime_checkable
class Located(Protocol):
    """A model that another process can load again from its path."""

    @property
    def path(self) -> Path:
        """Return the model's folder or file."""


@dataclass(frozen=True)
class Entry:
    """A model to time and who loads it: `module:function`, called with (uri, threads), giving something with prepare and call."""

    uri: str
    loader: str = MODELS_LOADER


@dataclass(frozen=True)
class Sitting:
    """What one fresh process answered: `times[phase][model]` in nanoseconds a call, and what the machine did meanwhile."""

    times: tuple[tuple[npt.NDArray[np.int64], ...], ...]
    readings: tuple[Reading, ...]
    memory_mb: float
    seconds: float


@dataclass(frozen=True)
class Timings:
    """Latencies of several models, timed in turns in the same fresh processes.

    Args:
        sittings: one a process.
        batches: rows a call, one a phase; phase 0 is the one that `latency` and `speedup` speak of by default.
        threads: threads that one call may use.
        level: two-sided confidence of the intervals.
    """

    sittings: tuple[Sitting, ...]
    batches: tuple[int, ...]
    threads: int
    level: float = 0.95

    def latency(self, model: int, share: float = 0.5, phase: int = 0) -> Quantity:
        """Give a quantile of one model's latency in milliseconds a call, with its two-level interval.

        The interval is Student's on the logs of the sessions' own quantiles. The value is their geometric mean.

        Raises:
            ValueError: sessions hold too few calls for this quantile.

        """
        samples = [sitting.times[phase][model] for sitting in self.sittings]
        total, fewest = sum(map(len, samples)), min(map(len, samples))
        if not self.resolves(model, share, phase):
            raise ValueError(
                f"the {share:.0%} quantile needs {CALLS_FOR[share]} calls a session, got {fewest} of {total}; time more calls."
            )
        # The plain estimate of a high quantile is too low in small samples; Weibull's position is not.
        logs = [math.log(float(np.quantile(sample, share, method="weibull")) / 1e6) for sample in samples]
        return _exp(t_interval(logs, self.level, _typical_sd(samples)), total)

    def resolves(self, model: int, share: float, phase: int = 0) -> bool:
        """Tell whether there are calls enough for a quantile: 0.5, 0.95 or 0.99."""
        counts = [len(sitting.times[phase][model]) for sitting in self.sittings]
        return min(counts) >= CALLS_FOR[share] and (share < 0.99 or sum(counts) >= P99_SAMPLES)

    def log_ratios(self, candidate: int, reference: int, phase: int = 0) -> list[float]:
        """Give the log of reference p50 over candidate p50 in each session."""
        pairs = [(np.median(s.times[phase][reference]), np.median(s.times[phase][candidate])) for s in self.sittings]
        return [math.log(float(slow) / float(fast)) for slow, fast in pairs]

    def speedup(self, candidate: int, reference: int, phase: int = 0) -> Quantity:
        """Give how many times faster the candidate's median call is than the reference's; phase 1 is the throughput ratio."""
        within = math.hypot(*(_typical_sd([s.times[phase][model] for s in self.sittings]) for model in (candidate, reference)))
        calls = sum(len(s.times[phase][candidate]) for s in self.sittings)
        return _exp(t_interval(self.log_ratios(candidate, reference, phase), self.level, within), calls)

    def throughput(self, model: int, phase: int = 1) -> Quantity:
        """Give rows a second at the phase's batch size."""
        slow = self.latency(model, 0.5, phase)
        rows = self.batches[phase] * 1e3
        return Quantity(rows / slow.value, rows / slow.hi, rows / slow.lo, slow.n)


def time_models(
    models: Sequence[Located | Entry], rows: Any, *, sessions: int = 3, threads: int = 1, batches: Sequence[int] = (1,), calls: int = 200
) -> Timings:
    """Time many models in turns, to choose among them; the chosen one is timed anew for its verdict.

    Good for a ranking. Not for a verdict: it does not look for how many sessions are needed, and picking the best of
    many timings flatters the one picked.

    Args:
        models: at least one; the same process loads all of them.
        rows: distinct rows to answer, a table or one array per input.
        sessions: fresh processes, at least 2.
        threads: threads that one call may use.
        batches: rows a call, one phase of each session for each; the first is the one that ratios speak of.
        calls: single-row calls a model and session, at least; a larger batch gets a tenth.

    """
    if sessions < 2:
        raise ValueError(f"sessions must be at least 2, got {sessions}; the spread between processes is what an interval rests on.")
    entries = [as_entry(model) for model in models]
    with Bench(rows, threads) as bench:
        sizes = tuple(min(size, bench.rows) for size in batches)
        phases = [_ranking_phase(size, calls, len(models)) for size in sizes]
        sittings = tuple(bench.sit(entries, phases, seed) for seed in range(sessions))
    return Timings(sittings, sizes, threads)


def memory_mb(model: Located | Entry, rows: Any, threads: int = 1) -> float:
    """Measure what a process needs at its peak to load the model and answer rows, above a bare Python that holds the rows.

    The runtime's own libraries are counted: they are what a server pays for choosing it.
    """
    with Bench(rows, threads) as bench:
        return bench.sit([as_entry(model)], [Phase(1, 20, 20, 0.0, 5.0, 20)], 0).memory_mb


class Bench:
    """Rows laid out once for the sessions that will time models on them; a context, because they lie in a private folder."""

    def __init__(self, rows: Any, threads: int) -> None:
        self.rows = len(next(iter(rows.values()))) if isinstance(rows, Mapping) else len(rows)
        if self.rows == 0:
            raise ValueError("timing needs at least one row, got none.")
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-opt-timing-")
        self._threads = threads
        self._path = Path(self._folder.name) / "rows.pickle"
        self._path.write_bytes(pickle.dumps(rows, protocol=5))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def sit(self, entries: Sequence[Entry], phases: Sequence[Phase], seed: int) -> Sitting:
        """Run one fresh process over all phases.

        Raises:
            RuntimeError: the process died or hung; the message ends with what it wrote.

        """
        folder = Path(self._folder.name)
        spec, out = folder / f"spec{seed}.json", folder / f"out{seed}.npz"
        told: dict[str, Any] = {"entries": [asdict(entry) for entry in entries], "rows": str(self._path), "out": str(out)}
        told |= {"threads": self._threads, "seed": seed, "phases": [asdict(phase) for phase in phases]}
        spec.write_text(json.dumps(told), encoding="utf-8")
        began = time.perf_counter()
        _start(spec, self._threads)
        return _read(out, len(phases), len(entries), time.perf_counter() - began)


def _ranking_phase(size: int, calls: int, models: int) -> Phase:
    least, distinct = (calls, 256) if size == 1 else (max(calls // 10, 5), 16)
    return Phase(size, least, 20 * least, 0.1 * models, 4.0 * models, distinct)


def as_entry(model: Located | Entry) -> Entry:
    """Name a model so that another process can load it."""
    return model if isinstance(model, Entry) else Entry(str(model.path))


def _start(spec: Path, threads: int) -> None:
    command = [sys.executable, "-m", "mlflow_opt.measurement.timing_session", str(spec)]
    # The worker must find what this process finds: a user's module, a checkout that is not installed.
    found = os.pathsep.join(path for path in (str(Path.cwd()), *sys.path) if path)
    environment = os.environ | {"PYTHONPATH": found} | ({name: str(threads) for name in THREAD_VARIABLES} if threads else {})
    # A worker must not join the run that `mlflow run` opened.
    environment.pop("MLFLOW_RUN_ID", None)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"a timing session must end within {PATIENCE_S:g} s and did not; the model hangs or is far too slow.") from None
    if done.returncode:
        raise RuntimeError(f"a timing session must end by itself, got exit code {done.returncode}: {done.stderr.strip()[-2000:]}")


def _read(out: Path, phases: int, models: int, seconds: float) -> Sitting:
    with np.load(out) as answer:
        told = json.loads(str(answer["told"]))
        times = tuple(tuple(answer[f"phase{phase}_model{model}"] for model in range(models)) for phase in range(phases))
    return Sitting(times, tuple(Reading(**reading) for reading in told["readings"]), told["memory_mb"], seconds)


def _typical_sd(samples: Sequence[npt.NDArray[np.int64]]) -> float:
    return math.sqrt(float(np.mean([median_log_sd(sample.astype(float)) ** 2 for sample in samples])))


def _exp(interval: tuple[float, float, float], n: int) -> Quantity:
    value, lo, hi = (math.exp(min(end, 700.0)) for end in interval)
    return Quantity(value, lo, hi, n)
