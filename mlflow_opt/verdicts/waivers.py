"""A waiver: someone answers, by name and until a date, for one criterion that a version misses.

It covers a criterion that was measured and is not met, or not decided. It never covers a doubt about the evidence itself:
what was not measured, is not finite, or belongs to another model, reference, data set or policy cannot be answered for.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlflow_opt.gate import worst
from mlflow_opt.records import Criterion, Outcome, Reason, Verdict
from mlflow_opt.verdicts.evidence import PREFIX

# The channel: a version tag that the hook takes as a request, records in its history, and never stores.
TAG = PREFIX + "waiver"
# What is to hold for longer than this is a change of the policy.
LONGEST_DAYS = 90
# It is read with every look at the history.
_LONGEST_TEXT = 500
_DAY_MS = 86_400_000
_FIELDS = ("metric", "owner", "reason", "until", "alias")


@dataclass(frozen=True)
class Waiver:
    """One criterion of one version, waived.

    Args:
        metric: the judged quantity (`speedup`, `drop_f1`, `slice/two_year/drop_f1`).
        owner: who answers for it.
        reason: why.
        until: last day on which it holds, `2026-12-31`, in UTC.
        alias: the guarded alias that it is for.
        granted_by: the user whom the server authenticated, empty before the server has seen it.

    """

    metric: str
    owner: str
    reason: str
    until: str
    alias: str
    granted_by: str = ""

    @property
    def expires_ms(self) -> int:
        """Return the end of its last day, milliseconds since the epoch."""
        day = dt.date.fromisoformat(self.until)
        start = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
        return int(start.timestamp() * 1000) + _DAY_MS

    @property
    def text(self) -> str:
        """Say it in one line."""
        by = f", granted to '{self.granted_by}'" if self.granted_by else ""
        return f"{self.metric} is WAIVED until {self.until} by {self.owner}{by}: {self.reason}"

    def to_json(self) -> str:
        """Write it for the tag and the history."""
        return json.dumps(asdict(self))


def read_waiver(text: str) -> Waiver:
    """Read a waiver from the text of its tag; who granted it is for the server to say.

    Raises:
        ValueError: a part is missing, empty or of another kind, or the date is none.

    """
    try:
        said = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a waiver must be JSON with {', '.join(_FIELDS)}, got '{text[:80]}' ({error}).") from None
    given = said if isinstance(said, dict) else {}
    missing = [name for name in _FIELDS if not isinstance(given.get(name), str) or not given[name].strip()]
    if missing:
        raise ValueError(
            f"a waiver must say {', '.join(_FIELDS)}, and {', '.join(missing)} is missing; an anonymous waiver waives nothing."
        )
    if long := [name for name in _FIELDS if len(given[name]) > _LONGEST_TEXT]:
        raise ValueError(f"a waiver must say what it has to in {_LONGEST_TEXT} characters, {', '.join(long)} is longer; link to the rest.")
    waiver = Waiver(**{name: given[name].strip() for name in _FIELDS})
    _day(waiver.until)
    return waiver


def check(waiver: Waiver, now_ms: int) -> None:
    """Check that a waiver is good for some time from now, and not for too long.

    Raises:
        ValueError: its last day is over, or too far away.

    """
    left = (waiver.expires_ms - now_ms) / _DAY_MS
    if not 0 < left <= LONGEST_DAYS + 1:
        raise ValueError(
            f"until must be a day from today to {LONGEST_DAYS} days ahead, got {waiver.until}; what holds for longer is a change of policy."
        )


def named_quantity(metric: str, criteria: Iterable[Criterion]) -> str:
    """Find the judged quantity that a waiver means: by its own name, or by a metric that only one criterion is about.

    Example:
        >>> named_quantity("f1", [Criterion("drop_f1", "max", 0.01, "f1"), Criterion("speedup", "min", 1.2, "speedup")])
        'drop_f1'

    Raises:
        ValueError: no criterion is meant, or more than one.

    """
    listed = list(criteria)
    quantities = sorted({criterion.quantity for criterion in listed})
    if metric in quantities:
        return metric
    meant = sorted({criterion.quantity for criterion in listed if criterion.metric == metric})
    if len(meant) == 1:
        return meant[0]
    told = "means " + " and ".join(meant) if meant else "names no criterion"
    raise ValueError(f"waive must name one criterion of the policy, '{metric}' {told}; choose one of {', '.join(quantities)}.")


def in_force(waivers: Iterable[Waiver], allowed: Sequence[str], now_ms: int) -> list[Waiver]:
    """Keep the waivers that hold today, granted to users whom the policy allows to waive today."""
    return [waiver for waiver in waivers if waiver.expires_ms > now_ms and may_waive(waiver.granted_by, allowed)]


def may_waive(user: str, allowed: Sequence[str]) -> bool:
    """Tell whether a policy lets a user waive a criterion.

    Example:
        >>> may_waive("ann", ("ann",)), may_waive("bob", ("ann",)), may_waive("bob", ("*",)), may_waive("bob", ())
        (True, False, True, False)
    """
    return "*" in allowed or user in allowed


def apply(verdict: Verdict, waivers: Iterable[Waiver]) -> tuple[Verdict, tuple[Waiver, ...]]:
    """Mark the reasons of a verdict that waivers cover.

    Returns:
        The verdict with those reasons as PASS, each saying that it is waived and what it was, and the waivers that were needed.

    """
    by_metric = {waiver.metric: waiver for waiver in waivers}
    marked = [_marked(reason, by_metric) for reason in verdict.reasons]
    used = {waiver.metric: waiver for _, waiver in marked if waiver}
    if not used:
        return verdict, ()
    reasons = tuple(reason for reason, _ in marked)
    left = worst(reasons)
    # A doubt about the evidence has made the verdict INCONCLUSIVE whatever failed; no waiver changes that.
    outcome = left if left is Outcome.PASS or verdict.outcome is Outcome.FAIL else verdict.outcome
    return Verdict(outcome, reasons), tuple(used.values())


def waivable(reason: Reason) -> bool:
    """Tell whether a reason is about a criterion that was measured and not met, which is all that a waiver can cover."""
    measured = reason.measured is not None and reason.measured.usable
    return reason.criterion is not None and measured and reason.outcome is not Outcome.PASS


def _marked(reason: Reason, by_metric: Mapping[str, Waiver]) -> tuple[Reason, Waiver | None]:
    waiver = by_metric.get(reason.criterion.quantity) if reason.criterion else None
    if waiver is None or not waivable(reason):
        return reason, None
    return replace(reason, outcome=Outcome.PASS, text=f"{waiver.text} (it is {reason.outcome.value}: {reason.text})"), waiver


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"until must be a day such as 2026-12-31, got '{text}'.") from None


def public(waivers: Iterable[Waiver]) -> list[dict[str, Any]]:
    """Return waivers as plain values, for JSON."""
    return [asdict(waiver) for waiver in waivers]
