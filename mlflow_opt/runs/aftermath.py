"""End a run that died: FAILED with its traceback, or KILLED, and nothing that was measured lost even if the server is gone."""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mlflow_opt.runs import tracking

if TYPE_CHECKING:
    from mlflow_opt.session import Session

_logger = logging.getLogger(__name__)

# What a tracking store that is gone can raise: the client's error, a broken connection, the database itself.
_GONE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)


def end_badly(parent: tracking.Parent, session: Session | None, error: BaseException) -> None:
    """End parent and children after an error or an interruption.

    If the store does not take it, what was measured goes into a file beside the user, whose name is logged. The error
    itself is the caller's to raise.

    Args:
        parent: the parent run.
        session: the session as far as it came, None if it did not open.
        error: what ended it.
    """
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    try:
        if session is not None:
            session.end_open_runs(status)
        tracking.log_tags(parent.run_id, {"mlflow_opt.error": f"{type(error).__name__}: {error}"[:5000]})
        tracking.log_text(parent.run_id, "traceback.txt", "".join(traceback.format_exception(error)))
        tracking.close(parent.run_id, status)
    except _GONE as gone:
        path = rescue(parent.run_id, session, error)
        _logger.error("The tracking store no longer takes anything (%s). What was measured is kept in %s.", type(gone).__name__, path)


def rescue(run_id: str, session: Session | None, error: BaseException) -> Path:
    """Write what was measured to `mlflow-opt-rescue-RUN.json` in the working folder and return its path."""
    path = Path(f"mlflow-opt-rescue-{run_id}.json").resolve()
    candidates = session.recorded if session is not None else []
    measured = [{"variant": c.variant.name, "run_id": c.run_id, "params": dict(c.variant.params), "metrics": c.plain} for c in candidates]
    path.write_text(json.dumps({"run_id": run_id, "error": str(error), "measured": measured}, indent=2, default=str), encoding="utf-8")
    return path
