"""A chain of recipes: each in a process of its own, on the model that the one before left, kept only if it passed its verdict.

A step is an ordinary run of its recipe, with its own children, so that it can be read and repeated alone. A step that has
finished is found again by its key (recipe, parameters, model, data) and not redone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow_opt.declaration.entries import Entry, entries
from mlflow_opt.declaration.parameter import to_text
from mlflow_opt.records import Param
from mlflow_opt.runs import step_runs, tracking

_logger = logging.getLogger(__name__)

Standing = Literal["kept", "not kept", "skipped", "failed", "out of time"]
# How long a step that was told to stop may take to keep its best so far.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Step:
    """What became of a step.

    Args:
        recipe: its name.
        standing: whether its result goes on.
        reason: in words.
        run_id: of its own run, `""` if it did not run.
        model_id: what it chose, `""` if nothing.
        seconds: that it took, 0 if it had been done before.
        metrics: of its run.
    """

    recipe: str
    standing: Standing
    reason: str
    run_id: str = ""
    model_id: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None


def run_step(recipe: str, params: Mapping[str, Param], seconds: float, pipeline_run: str) -> Step:
    """Run a recipe on what it is given, or find its earlier run.

    Args:
        recipe: name of it.
        params: those of its parameters that are not its defaults; what it does not take is left out.
        seconds: after which it is told to stop.
        pipeline_run: the run that asks, for the link.

    Returns:
        What became of it; a step whose verdict is no PASS is `not kept`.
    """
    entry = next(one for one in entries() if one.name == recipe)
    known = entry.signature().names
    given = {name: value for name, value in params.items() if name in known}
    key = _key(recipe, given)
    run_id = step_runs.finished_run(step_runs.STEP_KEY, key)
    taken = 0.0
    if run_id:
        _logger.info("%s: done before, see run %s.", recipe, run_id)
    else:
        run_id = step_runs.open_step(recipe, {step_runs.STEP_KEY: key, step_runs.PIPELINE: pipeline_run})
        started = time.monotonic()
        trouble = _run(entry, given, seconds, run_id)
        taken = time.monotonic() - started
        if trouble:
            return Step(recipe, "out of time" if "told to stop" in trouble else "failed", trouble, run_id, "", taken)
    return _result(recipe, run_id, taken)


def _result(recipe: str, run_id: str, seconds: float) -> Step:
    metrics, tags = step_runs.read_run(run_id)
    model_id = tags.get(tracking.CHOSEN, "")
    if recipe in ("baseline", "serve"):
        return Step(recipe, "kept", "measured, not judged", run_id, model_id, seconds, metrics)
    if not model_id:
        return Step(recipe, "not kept", "no variant met the policy on the selection rows", run_id, "", seconds, metrics)
    outcome = tags.get("mlflow_opt.runs.outcome", "")
    if metrics.get("gate_passed") == 1.0:
        return Step(recipe, "kept", "its verdict is PASS", run_id, model_id, seconds, metrics)
    return Step(recipe, "not kept", f"its verdict is no PASS{outcome and f' but {outcome}'}", run_id, model_id, seconds, metrics)


def _run(entry: Entry, given: Mapping[str, Param], seconds: float, run_id: str) -> str:
    """Run a recipe's module; returns what went wrong, `""` if nothing."""
    flags = [word for name, value in given.items() for word in (f"--{name}", to_text(value))]
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"MLFLOW_RUN_ID": run_id, "PYTHONPATH": os.pathsep.join(filter(None, paths))} | step_runs.environment()
    # The module of an entry point of this package, one word an argument, no shell.
    process = subprocess.Popen([sys.executable, "-m", f"{entry.package}.{entry.name}", *flags], env=environment)  # noqa: S603
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return f"told to stop after {seconds:.0f} s, its share of the time budget"
    except BaseException:
        _stop(process)
        raise
    return "" if code == 0 else f"it ended with exit code {code}; its run has the message and the traceback"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _key(recipe: str, given: Mapping[str, Param]) -> str:
    said = json.dumps([recipe, sorted((name, to_text(value)) for name, value in given.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:32]
