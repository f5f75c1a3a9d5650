"""Run many small jobs one after the other, in processes of this machine, or on a Dask cluster, by one call.

All three go through joblib, so that a job is the same function everywhere: it takes a payload, which travels once, and a
ticket, which is its own. Jobs are handed out only as workers become free, so that a budget of time can end the work.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

logger = logging.getLogger(__name__)

Executor = Literal["local", "dask", "ray"]
Result = TypeVar("Result")
Ticket = TypeVar("Ticket")
# A cluster that has no worker after this long has none.
PATIENCE_S = 60


def check(executor: str, workers: int) -> None:
    """Refuse what cannot be run before anything is begun.

    Raises:
        ValueError: no such number of workers, or an executor that is not there yet.
        ModuleNotFoundError: Dask is not installed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; workers=1 runs one trial after the other.")
    if executor == "ray":
        raise ValueError("executor must be local or dask, got 'ray', which comes later; executor=dask runs on a cluster today.")
    if executor == "dask":
        from importlib.util import find_spec

        if find_spec("distributed") is None:
            raise ModuleNotFoundError("executor=dask needs Dask: pip install 'dask' 'distributed'")


@contextmanager
def pool(executor: Executor, workers: int) -> Iterator[Pool]:
    """Open what runs the jobs, and end its processes afterwards.

    Args:
        executor: `local`: processes of this machine (joblib's loky), or this process itself for one worker; `dask`: the
            cluster at `DASK_SCHEDULER_ADDRESS`, or one of so many processes started here.
        workers: jobs at the same time.
    """
    check(executor, workers)
    with tempfile.TemporaryDirectory(prefix="mlflow-opt-jobs-") as folder:
        if executor == "dask":
            with _dask_client(workers) as client:
                yield Pool("dask", workers, Path(folder), client)
        else:
            yield Pool("loky" if workers > 1 else "sequential", workers, Path(folder), None)


class Pool:
    """Workers that are ready; `pool` makes it."""

    def __init__(self, backend: str, workers: int, folder: Path, client: Any) -> None:
        """Remember where jobs run.

        Args:
            backend: joblib's name for it.
            workers: jobs at the same time.
            folder: scratch folder of this machine.
            client: of the Dask cluster, None elsewhere.
        """
        self.backend, self.workers, self.folder, self.client = backend, workers, folder, client

    @property
    def is_here(self) -> bool:
        """Tell whether every worker runs on this machine and so sees its files."""
        if self.client is None:
            return True
        hosts = {str(one["host"]) for one in self.client.scheduler_info(n_workers=-1)["workers"].values()}
        return hosts <= _own_addresses()

    def run(self, job: Callable[[Any, Ticket], Result], payload: object, tickets: Iterable[Ticket]) -> Iterator[Result]:
        """Run a job for every ticket and give the results as they come, in any order.

        Args:
            job: a function of a module, called with payload and ticket.
            payload: what all jobs share; it is sent to a worker once.
            tickets: taken one by one as workers become free; whoever makes them can stop early.

        Raises:
            RuntimeError: a worker died.
        """
        if self.backend == "sequential":
            yield from (job(payload, ticket) for ticket in tickets)
            return
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        shared = _Kept(str(self._kept(payload))) if self.client is None else _Sent(payload)
        options: dict[str, Any] = {} if self.client is None else {"client": self.client, "scatter": [shared]}
        with parallel_config(self.backend, **options):
            # Jobs are long and few: batches of them would outlive the budget.
            parallel = Parallel(n_jobs=self.workers, batch_size=1, pre_dispatch=self.workers, return_as="generator_unordered")
            results = parallel(delayed(_run)(job, shared, ticket) for ticket in tickets)
        try:
            yield from results
        except TerminatedWorkerError as error:
            raise RuntimeError(
                f"a worker must live as long as its work, and one was killed, most often for want of memory ({self.workers} at the same "
                "time); give fewer workers. What was finished is kept: run the same command again to go on."
            ) from error
        finally:
            results.close()

    def _kept(self, payload: object) -> Path:
        # It comes with mlflow and joblib, and has no types.
        cloudpickle: Any = import_module("cloudpickle")
        path = self.folder / "payload.pickle"
        path.write_bytes(cloudpickle.dumps(payload))
        return path


class _Kept:
    """A payload in a file of this machine: every worker reads it once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def value(self) -> Any:
        return _read(self.path)


class _Sent:
    """A payload that Dask sends to its workers."""

    def __init__(self, payload: object) -> None:
        self.payload = payload

    def value(self) -> Any:
        return self.payload


@lru_cache(maxsize=1)
def _read(path: str) -> Any:
    import pickle

    # Our own file, written a moment ago into a private folder.
    return pickle.loads(Path(path).read_bytes())  # noqa: S301


def _run(job: Callable[[Any, Any], Any], shared: _Kept | _Sent, ticket: Any) -> Any:
    # A worker must not join the run that `mlflow run` opened.
    os.environ.pop("MLFLOW_RUN_ID", None)
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches all processes of a terminal; the one that started the workers decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return job(shared.value(), ticket)


@contextmanager
def _dask_client(workers: int) -> Iterator[Any]:
    import dask
    import distributed

    # Its functions have no types.
    untyped: Any = distributed
    address = dask.config.get("scheduler-address", None)
    if address:
        try:
            client = untyped.Client(address, timeout=PATIENCE_S / 2, set_as_default=False)
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except OSError as error:
            raise ConnectionError(
                f"the Dask scheduler at DASK_SCHEDULER_ADDRESS={address} must answer and have workers: {error}"
            ) from error
        with client:
            yield client
        return
    # One thread a process: a trial's own threads are the estimator's.
    options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with untyped.LocalCluster(**options) as cluster, untyped.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=PATIENCE_S)
        yield client


def _own_addresses() -> set[str]:
    import socket

    named = {"127.0.0.1", "::1", "localhost", socket.gethostname()}
    try:
        return named | {str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None)}
    except socket.gaierror:
        return named
