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
from mlflow_opt.runs import step_runs, stored_runs, tracking
from mlflow_opt.verdicts import evidence

_logger = logging.getLogger(__name__)

Standing = Literal["kept", "not kept", "skipped", "failed", "out of time"]
# How long a step that was told to stop may take to keep its best so far.
_GRACE_S = 30.0
# What ends without a verdict, and what it is kept for.
UNJUDGED: Mapping[str, str] = {
    "baseline": "the first model, with which all else is compared",
    "serve": "its settings are stored with the model",
}
# What recipes call the model as it was, in ONNX Runtime.
UNCHANGED = ("runtime_only", "fp32")


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
        variant: name of what it chose.
    """

    recipe: str
    standing: Standing
    reason: str
    run_id: str = ""
    model_id: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None
    variant: str = ""


def run_step(recipe: str, params: Mapping[str, Param], aside: Mapping[str, Param], seconds: float, pipeline_run: str) -> Step:
    """Run a recipe on what it is given, or find its earlier run.

    Args:
        recipe: name of it.
        params: what tells this step from others; what the recipe does not take only tells it apart.
        aside: more of its parameters, such as the time that is left and paths of files: they do not make it another step.
        seconds: after which it is told to stop.
        pipeline_run: the run that asks, for the link; `""` if it is not open yet.

    Returns:
        What became of it; a step whose verdict is no PASS is `not kept`.
    """
    entry = next(one for one in entries() if one.name == recipe)
    key = key_of(recipe, params)
    run_id = step_runs.finished_run(step_runs.STEP_KEY, key)
    if run_id:
        _logger.info("%s: done before, see run %s.", recipe, run_id)
        return _result(recipe, run_id, 0.0)
    known = entry.signature().names
    given = {name: value for name, value in {**params, **aside}.items() if name in known}
    run_id = step_runs.open_step(recipe, {step_runs.STEP_KEY: key, step_runs.PIPELINE: pipeline_run})
    started = time.monotonic()
    stopped, code = _run(entry, given, seconds, run_id)
    taken = time.monotonic() - started
    # A search that is told to stop ends with the best that it has, if it can do so in time.
    if code == 0:
        return _result(recipe, run_id, taken)
    step_runs.end_open(run_id)
    if stopped:
        return Step(recipe, "out of time", f"it was stopped after {seconds:.0f} s, its share of the time budget", run_id, "", taken)
    return Step(recipe, "failed", step_runs.why_it_failed(run_id) or f"it ended with exit code {code}", run_id, "", taken)


def _result(recipe: str, run_id: str, seconds: float) -> Step:
    metrics, tags = step_runs.read_run(run_id)
    model_id = tags.get(tracking.CHOSEN, "")
    if recipe in UNJUDGED:
        return Step(recipe, "kept", UNJUDGED[recipe], run_id, model_id, seconds, metrics)
    if not model_id:
        return Step(recipe, "not kept", "no variant met the policy on the selection rows", run_id, "", seconds, metrics)
    chosen = step_runs.read_run(tags.get(tracking.CHOSEN_RUN, run_id))[1]
    if metrics.get(evidence.PASSED) == 1.0:
        name = chosen.get(stored_runs.VARIANT, "")
        return Step(recipe, "kept", f"its verdict on {name} is PASS", run_id, model_id, seconds, metrics, name)
    outcome = chosen.get(evidence.VERDICT, "")
    return Step(recipe, "not kept", f"its verdict is {outcome or 'no PASS'}", run_id, model_id, seconds, metrics)


def _run(entry: Entry, given: Mapping[str, Param], seconds: float, run_id: str) -> tuple[bool, int]:
    """Run a recipe's module; returns whether it was told to stop, and its exit code."""
    flags = [word for name, value in given.items() for word in (f"--{name}", to_text(value))]
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"MLFLOW_RUN_ID": run_id, "PYTHONPATH": os.pathsep.join(filter(None, paths))} | step_runs.environment()
    # Begun in the background of a script a process ignores interrupts, and so would its children: the step must hear them.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The module of an entry point of this package, one word an argument, no shell.
    process = subprocess.Popen([sys.executable, "-m", f"{entry.package}.{entry.name}", *flags], env=environment)  # noqa: S603
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return False, process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True, _stop(process)
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def key_of(recipe: str, given: Mapping[str, Param]) -> str:
    """Give the key by which a run of these parameters is found again."""
    said = json.dumps([recipe, sorted((name, to_text(value)) for name, value in given.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:32]
