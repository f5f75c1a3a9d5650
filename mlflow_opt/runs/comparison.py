"""One run of the recipe `compare`: what it found, the groups that it compares, and what it leaves behind."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_opt import policy
from mlflow_opt.records import Policy
from mlflow_opt.reports import report_comparison, report_comparison_page
from mlflow_opt.reports.report_comparison import Group, Recommendation
from mlflow_opt.runs import aftermath, stored_runs, tracking

__all__ = ["Comparison", "Group", "Recommendation", "start"]

_logger = logging.getLogger(__name__)
# What the default policy asks where quality is looked for: at most 1.4 times as slow, as in the recipes.
_QUALITY_SPEEDUP = 0.7


@dataclass
class Comparison:
    """A comparison that is under way; `start` makes it."""

    params: Mapping[str, Any]
    parent: tracking.Parent
    found: stored_runs.Found
    groups: list[Group]

    def policy(self, task: str, aim: str) -> Policy:
        """Give the policy that a recommendation must meet: the user's, else the default of the task."""
        if self.params["policy"]:
            return policy.read_policy(str(self.params["policy"]))
        return policy.default_policy(task, _QUALITY_SPEEDUP) if aim == "quality" else policy.default_policy(task)

    def add(self, group: Group) -> None:
        """Take a group of runs that may be compared with each other."""
        self.groups.append(group)

    def conclude(self, *, tag: bool) -> None:
        """Write description, page and table on the run, and tag the runs that were compared.

        Raises:
            ValueError: there is nothing to compare.
        """
        if not self.groups:
            reasons = " ".join(self.found.left_out[:10]) or "The selection holds no run of a recipe."
            raise ValueError(f"a comparison needs variants of a finished recipe, got none. {reasons}")
        note = report_comparison.description(self.groups, self.found.left_out)
        with tempfile.TemporaryDirectory(prefix="mlflow-opt-compare-") as name:
            page, table = Path(name) / "comparison.html", Path(name) / "comparison.csv"
            page.write_text(report_comparison_page.page_of(self.groups, self.found.left_out), encoding="utf-8")
            table.write_text(report_comparison.csv_of(self.groups), encoding="utf-8")
            stored_runs.publish(self.parent, note, self._figures(), (page, table))
        if tag:
            for group in self.groups:
                stored_runs.tag_front(group.members, group.front)
        _logger.info("\n%s\n", note)

    def _figures(self) -> dict[str, float]:
        """Give the recommended variant's figures under their own names, so that the run lines up with the recipes' runs."""
        if len(self.groups) != 1:
            return {}
        (group,) = self.groups
        taken = next((one for one in group.members if one.run_id == group.recommended.run_id), None)
        names = (group.headline, f"drop_{group.headline}", "speedup", "latency_p50_ms", "size_mb")
        return {name: taken.values[name] for name in names if name in taken.values} if taken else {}


@contextmanager
def start(recipe: str, params: Mapping[str, Any]) -> Iterator[Comparison]:
    """Open the run of the recipe, find the runs to compare, and end it properly however the recipe ends.

    Args:
        recipe: its name.
        params: all of its parameters: `locals()` as the recipe's first statement.

    Raises:
        ConnectionError: the tracking server does not answer.
        ValueError: the selection names nothing in the tracking store.
    """
    tracking.require_store()
    given = dict(params)
    parent = tracking.open_parent(recipe, given, {"mlflow_opt.recipe": recipe})
    try:
        yield Comparison(given, parent, stored_runs.find(str(given["runs"])), [])
    except BaseException as error:
        aftermath.end_badly(parent, None, error)
        raise
    tracking.close(parent.run_id, "FINISHED")
