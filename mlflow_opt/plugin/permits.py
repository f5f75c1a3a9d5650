"""Waivers on the server: who may grant one, how it is recorded, and which of them hold today.

A client asks by setting the version tag `mlflow_opt.waiver`; the tag is never stored. What counts is the line in the hook's
own table, with the user whom the server authenticated. A waiver is for one version as it is now, one guarded alias and one
criterion: the number of a deleted version that is used again inherits nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from mlflow_opt.plugin import history, reigning
from mlflow_opt.plugin.history import Entry, entries
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.registrations import Version
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.verdicts import waivers
from mlflow_opt.verdicts.waivers import Waiver

ACTION = "waiver"


def granted(version: Version, text: str, cover: Cover, user: str, now_ms: int) -> Entry:
    """Turn a request for a waiver into the line that grants it.

    Raises:
        ValueError: the policy forbids it to this user, or it is not a complete waiver of one criterion.

    """
    allowed = cover.any.waivers
    if not allowed:
        raise ValueError("the policy forbids waivers (`waivers: false`, the default); the server's owner may allow them to named users.")
    if not waivers.may_waive(user, allowed):
        raise ValueError(f"the policy lets {', '.join(allowed)} waive a criterion, and '{user}' is none of them.")
    asked = waivers.read_waiver(text)
    waivers.check(asked, now_ms)
    criteria = [criterion for policy in cover.by_task.values() for criterion in policy.criteria]
    alias = folded(asked.alias)
    if alias not in cover.guards:
        raise ValueError(f"alias must be a guarded one ({', '.join(sorted(cover.guards))}), got '{asked.alias}'.")
    waiver = replace(asked, metric=waivers.named_quantity(asked.metric, criteria), alias=alias, granted_by=user)
    return Entry(version.name, ACTION, version.number, version.identity, alias, reasons=(f"{waiver.text}.",), evidence=waiver.to_json())


def in_force(session: Session, version: Version, alias: str, cover: Cover, now_ms: int) -> list[Waiver]:
    """Read the waivers of a version that hold today under today's policy; a later one takes the place of an earlier one."""
    if not cover.any.waivers:
        return []
    listed = entries(session.connection(), version.name, alias=alias, actions=(ACTION,), version=version.number)
    newest = {waiver.metric: waiver for waiver in _waivers(session, version, listed)}
    return waivers.in_force(newest.values(), cover.any.waivers, now_ms)


def readable(session: Session, version: Version, listed: Sequence[Entry], now_ms: int) -> list[Waiver]:
    """Return a version's waivers that have not expired, for people to read."""
    return [waiver for waiver in _waivers(session, version, listed) if waiver.expires_ms > now_ms]


def _waivers(session: Session, version: Version, listed: Sequence[Entry]) -> list[Waiver]:
    connection = session.connection()
    texts = [history.evidence_of(connection, entry.sequence) for entry in reigning.about(session, version, listed)]
    return [Waiver(**json.loads(text)) for text in texts]
