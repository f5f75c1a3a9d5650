"""Show who asked for which promotion, when, and what the registry hook answered."""

from __future__ import annotations

import sys
import time
from typing import Any

from mlflow_opt.commands._document import document
from mlflow_opt.plugin.discovery import active_gate, history_of
from mlflow_opt.runs import tracking
from mlflow_opt.signature import run

# It only reads, and what it writes is for a terminal or a script.
CLI_ONLY = True


def require_gate(name: str) -> None:
    """Insist on a registered model on a server that runs the hook.

    Raises:
        ValueError: there is none.

    """
    tracking.require_store()
    if not name or not tracking.is_registered(name):
        raise ValueError(f"name must be a registered model, got '{name}'; the MLflow UI lists them under Models.")
    if active_gate(tracking.client(), name) is None:
        raise ValueError(f"the registry that holds {name} runs no hook, so it has no history; start the server with gated+... (README).")


def history(*, name: str = "", json: bool = False) -> None:
    """List the promotions, refusals and rollbacks of a registered model that its server remembers.

    The list is the hook's own table, which survives the deletion of runs and versions. A server without the hook has none.

    Example:
        mlflow-opt history --name churn

    Args:
        name: registered model.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ValueError: there is no such model, or its server has no hook.

    References:
        mlflow#2169, where a history of stages was first asked for.
    """
    with document("history", wanted=json) as answer:
        require_gate(name)
        entries = history_of(tracking.client(), name)
        answer.update({"name": name, "entries": entries})
    if not json:
        sys.stdout.write("\n".join([_line(entry) for entry in entries] or [f"Nothing was ever asked of {name}."]) + "\n")


def _line(entry: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"] / 1000))
    asked = f"{entry['action']:<9} version {entry['version']}  {entry['alias']}  {entry['outcome']}"
    head = f"{entry['sequence']:>4}  {when}  {entry['user']}  {asked}"
    return "\n".join([head.rstrip(), *(f"        {reason}" for reason in entry["reasons"])])


if __name__ == "__main__":
    run(history)
