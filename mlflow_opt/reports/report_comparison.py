"""What a comparison of runs says in text: groups of runs, the table of techniques, the recommendation, the csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlflow_opt.declaration.entries import entries, helps
from mlflow_opt.records import Policy, Quantity
from mlflow_opt.reports.literature import CLAIMS
from mlflow_opt.reports.report import show, text_table
from mlflow_opt.runs.stored_runs import BASELINE, Result

COST = "latency_p50_ms"
# MLflow cuts a run's description there; what does not fit is on the page and in the csv.
_MOST_CHARACTERS = 7_800
_MOST_LINES = (25, 12, 6, 3)
_COLUMNS = ("recipe", "variant", "standing", "verdict", "speedup", COST, "quality", "drop", "size_mb", "minutes", "core_hours")


@dataclass(frozen=True)
class Recommendation:
    """What to take.

    Args:
        run_id: of the variant, `""` if none meets the policy.
        name: of the variant.
        proven: whether its evidence passes; else it only looks good on the selection rows.
        binding: the constraint that keeps faster variants out, in words.
    """

    run_id: str
    name: str
    proven: bool
    binding: str

    @property
    def text(self) -> str:
        """Say it in a sentence or two."""
        if not self.run_id:
            return self.binding
        how = (
            "its evidence passes this policy"
            if self.proven
            else "by its figures on the selection rows, which prove nothing yet: judge it first"
        )
        return f"Take {self.name} ({how}). {self.binding}"


@dataclass(frozen=True)
class Group:
    """Runs that may be compared with each other.

    Args:
        name: the task and the rows.
        members: baselines and variants.
        front: ids of the runs that no other beats.
        recommended: what to take.
        policy: what it meets.
    """

    name: str
    members: tuple[Result, ...]
    front: set[str]
    recommended: Recommendation
    policy: Policy

    @property
    def headline(self) -> str:
        """Name the metric that stands for quality."""
        return self.members[0].headline

    @property
    def title(self) -> str:
        """Name the data and the task, without the digest."""
        task, _, rows = self.name.partition(" on ")
        return f"{rows.split('.selection')[0]} ({task})"

    @property
    def ordered(self) -> list[Result]:
        """Return the members, baselines first, then the fastest first."""
        return sorted(self.members, key=lambda one: (one.name != BASELINE, one.values.get(COST, math.inf)))


def description(groups: Sequence[Group], left_out: Sequence[str]) -> str:
    """Write the comparison as Markdown that also reads well as plain text, as many lines as a run's description holds.

    Args:
        groups: runs that may be compared with each other.
        left_out: what was left out, with the reason.
    """
    texts = (_described(groups, left_out, most) for most in _MOST_LINES)
    return next((text for text in texts if len(text) <= _MOST_CHARACTERS), _described(groups[:3], left_out, _MOST_LINES[-1]))


def _described(groups: Sequence[Group], left_out: Sequence[str], most: int) -> str:
    parts: list[str] = []
    for group in groups:
        head = ["technique", "speed-up", "ms a row", group.headline, "change", "MB", "minutes", "core-hours", ""]
        # What is on the front, or taken, comes before what is only fast.
        kept = sorted(group.ordered, key=lambda one: not _matters(group, one))[:most]
        body = [_line(group, one) for one in group.ordered if one in kept]
        more = len(group.members) - most
        parts += [f"### {group.title}", text_table(head, body)]
        parts += [f"{more} more are in comparison.html and comparison.csv."] if more > 0 else []
        parts += [group.recommended.text, *cautions(group)]
    parts.append(f"{NOTES} A change is a gain if it is positive.")
    made = sorted({one.recipe for group in groups for one in group.members})
    parts += ["### What each suits", *(f"- {name}: {words}" for name, words in suits(made).items() if words)]
    claims = [claim for claim in CLAIMS if claim.recipe in made]
    parts += ["### What the literature claims", *(f"- {claim.recipe}: {claim.says} ({claim.source})" for claim in claims)] if claims else []
    parts += ["### Left out", *(f"- {why}" for why in left_out[:most])] if left_out else []
    return "\n\n".join(parts)


def _matters(group: Group, one: Result) -> bool:
    return one.run_id in group.front or one.run_id == group.recommended.run_id or one.name == BASELINE


NOTES = (
    "Brackets are 95% intervals on the gate rows; a figure without one is from the selection rows, and flatters what was chosen by "
    "them. Core-hours are at most: all cores for as long as the recipe ran."
)


def suits(recipes: Iterable[str]) -> dict[str, str]:
    """Say of recipes what each suits, in the words of its own documentation."""
    wanted = set(recipes)
    return {entry.name: helps(entry.signature()) for entry in entries() if entry.kind == "recipe" and entry.name in wanted}


def csv_of(groups: Sequence[Group]) -> str:
    """Write every figure as a table for other programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("speedup_lo", "speedup_hi", "drop_lo", "drop_hi")
    writer.writerow(["group", *_COLUMNS, *ends, "headline", "pareto", "recommended", "run_id", "parent_run_id"])
    for group in groups:
        for one in group.ordered:
            faster, drop = one.quantity("speedup"), one.quantity(f"drop_{group.headline}")
            figures = [
                faster.value if faster else "",
                one.values.get(COST, ""),
                one.values.get(group.headline, ""),
                drop.value if drop else "",
                one.values.get("size_mb", ""),
                round(one.minutes, 3),
                round(one.core_hours, 4),
            ]
            limits = [end for found in (faster, drop) for end in (ends_of(found) or ("", ""))]
            marks = [group.headline, one.run_id in group.front, one.run_id == group.recommended.run_id, one.run_id, one.parent_id]
            writer.writerow([group.name, one.recipe, one.name, one.standing, one.verdict, *figures, *limits, *marks])
    return out.getvalue()


def _line(group: Group, one: Result) -> list[str]:
    """Write one line of the description's table."""
    lost = one.quantity(f"drop_{group.headline}")
    change = Quantity(0.0 - lost.value, 0.0 - lost.hi, 0.0 - lost.lo, lost.n) if lost else None
    marks = [word for word, true in (("Pareto", one.run_id in group.front), ("take", one.run_id == group.recommended.run_id)) if true]
    return [
        f"{one.recipe}: {one.name}",
        plain_text("speedup", one.quantity("speedup")),
        plain_text(COST, one.quantity(COST)),
        plain_text(group.headline, one.quantity(group.headline)),
        plain_text("drop_", change),
        plain_text("size_mb", one.quantity("size_mb")),
        "-" if one.name == BASELINE else f"{one.minutes:.1f}",
        "-" if one.name == BASELINE else f"{one.core_hours:.2f}",
        ", ".join(marks),
    ]


def plain_text(name: str, found: Quantity | None) -> str:
    """Write a quantity with its interval, without HTML."""
    if found is None:
        return "-"
    limits = ends_of(found)
    return show(name, found.value) + (f" [{show(name, limits[0])}, {show(name, limits[1])}]" if limits else "")


def ends_of(found: Quantity | None) -> tuple[float, float] | None:
    """Give a quantity's interval, None if it has none."""
    return (found.lo, found.hi) if found and found.hi > found.lo else None


def cautions(group: Group) -> list[str]:
    """Say what to mind when reading a group's figures."""
    told = []
    if len({one.machine for one in group.members}) > 1:
        told.append("These runs were on different machines or runtimes: compare the speed-ups, not the milliseconds.")
    if sum(1 for one in group.members if one.name == BASELINE) > 1:
        told.append("These runs started from different models, so each speed-up is over its own baseline.")
    return told
