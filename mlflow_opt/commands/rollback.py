"""Return an alias to the version that held it before, without new evidence: it was proven once."""

from __future__ import annotations

import logging

from mlflow_opt.commands._document import document
from mlflow_opt.commands.history import require_gate
from mlflow_opt.plugin.discovery import history_of
from mlflow_opt.plugin.history import HELD, RIGHTFUL, Entry, reigns
from mlflow_opt.runs import tracking
from mlflow_opt.signature import run

_logger = logging.getLogger(__name__)


def previous_version(name: str, alias: str) -> int:
    """Find the last version that held an alias before today's and still exists, by the history.

    Raises:
        ValueError: nobody did.

    """
    fields = [
        Entry(name, entry["action"], entry["version"], entry["model_id"], entry["alias"])
        for entry in history_of(tracking.client(), name)
        if entry["alias"] == alias.lower() and entry["action"] in HELD
    ]
    today = tracking.alias_version(name, alias)
    held = [entry.version for entry in reigns(fields) if entry.action in RIGHTFUL and str(entry.version) != today]
    there = next((version for version in reversed(held) if tracking.has_version(name, str(version))), 0)
    if not there:
        raise ValueError(f"'{alias}' of {name} has no former version to return to; see `mlflow-opt history --name {name}`.")
    return there


def rollback(*, name: str = "", alias: str = "champion", version: int = 0, json: bool = False) -> None:
    """Return an alias to its last good version in one step, also when newer runs are damaged or gone.

    Use it first and look for the reason afterwards. It helps only on a server with the hook, whose history says which
    versions were champion by right; elsewhere move the alias by hand.

    Example:
        mlflow run . -e rollback -P name=churn

    Args:
        name: registered model.
        alias: alias to return.
        version: former champion to return to; 0 takes the last one before today's that still exists.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ValueError: there is no former champion to return to.

    References:
        DESIGN: a guarded alias may return to a version that the history shows as a former champion.
    """
    with document("rollback", wanted=json) as answer:
        require_gate(name)
        target = version or previous_version(name, alias)
        before = tracking.alias_version(name, alias)
        tracking.set_alias(name, alias, str(target))
        answer.update({"name": name, "alias": alias, "version": str(target), "version_before": before})
    _logger.info("'%s' of %s is back at version %d (it was %s).", alias, name, target, before or "not set")


if __name__ == "__main__":
    run(rollback)
