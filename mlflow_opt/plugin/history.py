"""The hook's own table in the registry database: who asked for what, when, what was answered and on which evidence.

It is append-only, written in the transaction that moves an alias, and outlives runs, versions and `mlflow gc`. The
"who" is the user that the server authenticated, never what a client says about itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

_TEXT = sa.Text().with_variant(sa.Text(length=2**24 - 1), "mysql")
TABLE = sa.Table(
    "mlflow_opt_history",
    sa.MetaData(),
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("user", sa.String(256), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("model_id", sa.String(512), nullable=False),
    sa.Column("alias", sa.String(256), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reasons", _TEXT, nullable=False),
    sa.Column("policy_digest", sa.String(64), nullable=False),
    sa.Column("evidence_run", sa.String(64), nullable=False),
    sa.Column("evidence", _TEXT, nullable=False),
    sa.Index("mlflow_opt_history_by_name", "name", "sequence"),
)

# Actions after which the version was what the alias pointed to, whoever allowed it.
HELD = ("accepted", "waived", "rollback", "adopted", "dry_run", "off", "deleted")
# Actions after which a version counts as a former champion that the alias may return to without new evidence; one that was
# `waived` may as long as its waivers hold.
PROVEN = ("accepted", "adopted")
# Actions by which a version came to hold the alias by right.
RIGHTFUL = (*PROVEN, "waived", "rollback")


@dataclass(frozen=True)
class Entry:
    """One line of the history.

    Args:
        name: registered model.
        action: `accepted`, `waived` (somebody answers for what it misses), `refused`, `rollback`, `unchanged`; `adopted` (was
            champion before the hook came, recorded when it is first replaced); `dry_run` and `off` (let through only because
            of the mode); `waiver` (one was granted); `deleted`, `renamed`, `policy`.
        version: 0 where the entry is about the whole model.
        model_id: identity of the version: its logged model, else `models:/name/version`.
        alias: guarded alias in folded spelling, or `stage:Production`.
        outcome: PASS, FAIL, INCONCLUSIVE by the evidence alone, or empty where nothing was judged.
        reasons: one sentence per criterion.
        policy_digest: of the policy that decided.
        evidence_run: the run whose metrics decided.
        evidence: copy of the evidence's metrics and tags as JSON, so that it outlives the run.
        user: whom the server authenticated, else `unauthenticated`.
        at: milliseconds since the epoch.
        sequence: number in the table, 0 before it is written.

    """

    name: str
    action: str
    version: int = 0
    model_id: str = ""
    alias: str = ""
    outcome: str = ""
    reasons: tuple[str, ...] = ()
    policy_digest: str = ""
    evidence_run: str = ""
    evidence: str = "{}"
    user: str = "unauthenticated"
    at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    sequence: int = 0

    def public(self) -> dict[str, Any]:
        """Return what a client may list: everything but the copy of the evidence."""
        return {name: value for name, value in asdict(self).items() if name != "evidence"}


def create_table(engine: Engine) -> None:
    """Create the table where it is missing; several server workers may start at once."""
    if sa.inspect(engine).has_table(TABLE.name):
        return
    try:
        TABLE.create(engine)
    except sa.exc.SQLAlchemyError:
        # Another worker was quicker. If it was not, the error stands.
        if not sa.inspect(engine).has_table(TABLE.name):
            raise


def write(connection: Connection, entry: Entry) -> None:
    """Append an entry within the caller's transaction."""
    row = asdict(entry) | {"reasons": json.dumps(list(entry.reasons)), "alias": entry.alias[:256]}
    del row["sequence"]
    connection.execute(TABLE.insert().values(row))


def read_history(engine: Engine, name: str, limit: int = 0) -> list[Entry]:
    """Read a model's history from the database, oldest first; `limit` keeps the newest (0 = all)."""
    with engine.connect() as connection:
        return _selected(connection, list(TABLE.c), _where(name, "", (), 0), limit)


def entries(
    connection: Connection, name: str, *, alias: str = "", actions: Sequence[str] = (), version: int = 0, limit: int = 0
) -> list[Entry]:
    """Read entries within the caller's transaction, oldest first, without the copies of the evidence; `limit` keeps the newest."""
    return _selected(connection, [column for column in TABLE.c if column.name != "evidence"], _where(name, alias, actions, version), limit)


def evidence_of(connection: Connection, sequence: int) -> str:
    """Read the copy of the evidence of one entry, as JSON."""
    return str(connection.execute(sa.select(TABLE.c.evidence).where(TABLE.c.sequence == sequence)).scalar_one())


def lost(connection: Connection, name: str, version: int) -> int:
    """Return the sequence number of the last entry that says that a version is gone or not what it was, 0 if there is none."""
    gone = sa.and_(TABLE.c.action == "deleted", TABLE.c.alias == "", TABLE.c.version.in_((0, version)))
    last = sa.select(sa.func.max(TABLE.c.sequence)).where(TABLE.c.name == name, sa.or_(TABLE.c.action == "renamed", gone))
    return int(connection.execute(last).scalar() or 0)


def newest(connection: Connection, name: str, limit: int) -> list[Entry]:
    """Read the newest entries and the newest that moved an alias: refusals, however many, never hide who was champion."""
    listed = entries(connection, name, limit=limit) + entries(connection, name, actions=HELD, limit=limit)
    return [entry for _, entry in sorted({entry.sequence: entry for entry in listed}.items())]


def _where(name: str, alias: str, actions: Sequence[str], version: int) -> list[sa.ColumnElement[bool]]:
    given = [TABLE.c.name == name]
    given += [TABLE.c.alias == alias] if alias else []
    given += [TABLE.c.action.in_(actions)] if actions else []
    return given + ([TABLE.c.version == version] if version else [])


def _selected(
    connection: Connection, columns: Sequence[sa.Column[Any]], where: Sequence[sa.ColumnElement[bool]], limit: int
) -> list[Entry]:
    query = sa.select(*columns).where(*where).order_by(TABLE.c.sequence.desc())
    rows = connection.execute(query.limit(limit) if limit else query).all()
    return [_entry(row) for row in reversed(rows)]


def reigns(past: Sequence[Entry]) -> list[Entry]:
    """List who held an alias one after the other, as a stack: a rollback takes away what came after the version it returns to.

    The last element holds the alias, the one before it is what a rollback returns to.
    """
    stack: list[Entry] = []
    for entry in past:
        same = [index for index, held in enumerate(stack) if (held.version, held.model_id) == (entry.version, entry.model_id)]
        if entry.action == "rollback" and same:
            stack = stack[: same[-1]]
        if stack and (stack[-1].version, stack[-1].model_id) == (entry.version, entry.model_id):
            stack.pop()
        stack.append(entry)
    return stack


def _entry(row: Row[Any]) -> Entry:
    values = dict(row._mapping)
    return Entry(**{**values, "reasons": tuple(json.loads(values["reasons"]))})
