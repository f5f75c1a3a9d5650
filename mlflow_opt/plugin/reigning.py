"""Who held a guarded alias by right: which version may return to it without new evidence, and what evidence compares with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy.orm import Session

from mlflow_opt.plugin import history, registrations
from mlflow_opt.plugin.history import HELD, PROVEN, Entry, entries
from mlflow_opt.plugin.registrations import Version
from mlflow_opt.verdicts.waivers import Waiver

_PLACE = "models:/"


def may_return(session: Session, version: Version, past: Sequence[Entry], now_ms: int) -> bool:
    """Tell whether a version held the alias by right; one that was waived only while all of its waivers hold.

    Args:
        session: the open transaction.
        version: that is to return.
        past: who held the alias, oldest first.
        now_ms: today, milliseconds since the epoch.

    """
    own = about(session, version, past)
    if any(entry.action in PROVEN for entry in own):
        return True
    waived = [entry for entry in own if entry.action == "waived"]
    return bool(waived) and _still_waived(session, waived[-1], now_ms)


def about(session: Session, version: Version, listed: Sequence[Entry]) -> list[Entry]:
    """Keep the entries that are about this very version, and not about one that had its name and number before.

    A model that was deleted, or renamed, gives its name and its numbers free for others, which inherit nothing.
    """
    lost = history.lost(session.connection(), version.name, version.number)
    return [entry for entry in listed if (entry.version, entry.model_id) == (version.number, version.identity) and entry.sequence > lost]


def reference(session: Session, held: Version | None, past: Sequence[Entry]) -> str:
    """Say which model evidence must compare with: the one that holds the alias, or held it last; empty if none ever did.

    Deleting the alias does not reset it. A model that only its place named and that is gone cannot be compared with any
    more; then the answer is an identity that no evidence can have.
    """
    if held:
        return held.identity
    if not past:
        return ""
    last = past[-1]
    if not last.model_id.startswith(_PLACE):
        return last.model_id
    there = registrations.live_version(session, last.name, last.version)
    return last.model_id if there and about(session, there, [last]) else f"{last.model_id}, which is deleted"


def reference_for(session: Session, name: str, alias: str) -> str:
    """Say which model evidence for a guarded alias must compare with."""
    return reference(session, registrations.holder(session, name, alias), entries(session.connection(), name, alias=alias, actions=HELD))


def _still_waived(session: Session, entry: Entry, now_ms: int) -> bool:
    said = json.loads(history.evidence_of(session.connection(), entry.sequence)).get("waivers", [])
    return bool(said) and all(Waiver(**waiver).expires_ms > now_ms for waiver in said)
