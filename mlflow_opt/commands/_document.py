"""What a command answers to a machine: one JSON document on stdout, everything else on stderr, the same exit code."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

from mlflow_opt.records import Reason, Verdict
from mlflow_opt.signature import COULD_NOT_RUN, EXIT_CODES, INTERRUPTED


@contextlib.contextmanager
def document(command: str, *, wanted: bool) -> Iterator[dict[str, Any]]:
    """Collect what a command has to say and write it as JSON when it ends; an error is written as well, and raised.

    Args:
        command: its name.
        wanted: whether JSON was asked for; otherwise nothing is written and stdout is left alone.

    """
    said: dict[str, Any] = {"command": command, "exit_code": 0}
    if not wanted:
        yield said
        return
    stdout = sys.stdout
    try:
        # MLflow prints links to runs.
        with contextlib.redirect_stdout(sys.stderr):
            yield said
    except BaseException as error:
        said |= {"exit_code": INTERRUPTED if isinstance(error, KeyboardInterrupt) else COULD_NOT_RUN, "error": str(error)}
        raise
    finally:
        stdout.write(json.dumps(_finite(said), indent=2, allow_nan=False) + "\n")


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain values, with the exit code that goes with it."""
    reasons = [_reason_fields(reason) for reason in verdict.reasons]
    return {"outcome": verdict.outcome.value, "exit_code": EXIT_CODES[verdict.outcome], "reasons": reasons}


def _reason_fields(reason: Reason) -> dict[str, Any]:
    criterion, measured = reason.criterion, reason.measured
    return {
        "outcome": reason.outcome.value,
        "text": reason.text,
        "quantity": criterion.quantity if criterion else None,
        "side": criterion.side if criterion else None,
        "bound": criterion.bound if criterion else None,
        "value": measured.value if measured else None,
        "lo": measured.lo if measured else None,
        "hi": measured.hi if measured else None,
        "n": measured.n if measured else None,
    }


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, NaN and infinity, by null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
