"""What the registry's own tables say: which logged model a version is, who holds an alias, what is only a prompt.

All of it is read within the caller's transaction, after `lock`, so that what is judged is what is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS as PROMPT_SOURCES
from sqlalchemy.orm import Session

from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.tables import ALIASES, MODEL_TAGS, MODELS, VERSIONS, rows
from mlflow_opt.verdicts import evidence
from mlflow_opt.verdicts.evidence import PREFIX

OWN_POLICY = PREFIX + "policy"
PRODUCTION = "Production"
STAGE = "stage:Production"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Args:
        name: of the registered model, as it is stored.
        number: of the version.
        model_id: the logged model that it is, empty if it is none, and then it has no evidence.
        location: where its files are downloaded from.

    """

    name: str
    number: int
    model_id: str
    location: str = ""

    @property
    def identity(self) -> str:
        """Return what evidence calls this version as a reference: its logged model, else its place in the registry."""
        return self.model_id or f"models:/{self.name}/{self.number}"


def lock(session: Session, name: str) -> None:
    """Serialise decisions about one registered model across threads, workers and servers.

    A write that changes nothing is the one statement that takes the row's lock on PostgreSQL and MySQL and the whole
    database's write lock on SQLite, where it must come before the first read or the transaction could not be upgraded.
    """
    session.execute(sa.update(MODELS).where(MODELS.c.name == name).values(last_updated_time=MODELS.c.last_updated_time))


def live_versions(session: Session, name: str, *where: sa.ColumnElement[bool], limit: int = 1) -> list[Version]:
    """List versions that are not deleted, newest first."""
    column = VERSIONS.c
    query = sa.select(column.name, column.version, column.source, column.storage_location)
    live = query.where(column.name == name, *where, column.current_stage != STAGE_DELETED_INTERNAL)
    return [_version(*row) for row in rows(session, live.order_by(column.version.desc()).limit(limit))]


def live_version(session: Session, name: str, number: int) -> Version | None:
    """Find a version that is not deleted."""
    return next(iter(live_versions(session, name, VERSIONS.c.version == number)), None)


def in_production(session: Session, name: str) -> Version | None:
    """Find the newest version in stage Production."""
    return next(iter(live_versions(session, name, VERSIONS.c.current_stage == PRODUCTION)), None)


def stored_name(session: Session, name: str) -> str:
    """Return a registered model's name as it is stored, or the name given where there is none: MySQL finds `churn` for `CHURN`."""
    found = rows(session, sa.select(MODELS.c.name).where(MODELS.c.name == name))
    return str(found[0][0]) if found else name


def aliases(session: Session, name: str) -> dict[str, int]:
    """Return every alias of a registered model as it is spelled, with the version it points to."""
    found = rows(session, sa.select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name == name))
    return {str(alias): int(version) for alias, version in found}


def pointed(session: Session, name: str, guards: Iterable[str]) -> dict[str, int]:
    """Return what readers of the guarded aliases get, by the database's own idea of equality.

    A collation may hold letters for equal that our folding does not know; then a write to one alias moves another.
    """
    query = sa.select(ALIASES.c.version).where(ALIASES.c.name == name)
    found = {guard: rows(session, query.where(ALIASES.c.alias == guard)) for guard in guards}
    return {guard: int(hit[0][0]) for guard, hit in found.items() if hit}


def spelled(session: Session, name: str, alias: str) -> dict[str, int]:
    """Return the stored aliases that the database takes for this one, as they are spelled, with their versions."""
    query = sa.select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name == name, ALIASES.c.alias == alias)
    return {str(found): int(version) for found, version in rows(session, query)}


def holder(session: Session, name: str, guard: str) -> Version | None:
    """Find the version that a guarded alias points to, whatever letter case the alias was set in."""
    spelled = {alias: number for alias, number in aliases(session, name).items() if folded(alias) == guard}
    if not spelled:
        return None
    return live_version(session, name, spelled.get(guard, spelled[min(spelled)]))


def is_prompt(session: Session, name: str, number: int) -> bool:
    """Tell whether a version is a prompt's: by the sources of all versions of its name, never by a tag that anyone may set.

    A single placeholder among real versions is no prompt: moving `champion` onto it would take a model out of production.
    """
    source = sa.select(VERSIONS.c.source).where(VERSIONS.c.name == name)
    if not rows(session, source.where(VERSIONS.c.version == number, VERSIONS.c.source.in_(PROMPT_SOURCES))):
        return False
    return not _has_real_versions(session, name)


def is_prompt_name(session: Session, name: str) -> bool:
    """Tell whether a name that is tagged as a prompt's has no version that is a model."""
    return not _has_real_versions(session, name)


def is_copy(source: str) -> bool:
    """Tell whether a version's source is another registered version (`models:/name/3`) rather than a logged model."""
    return source.startswith("models:/") and not evidence.model_behind(source, "")


def own_policy(session: Session, name: str) -> str:
    """Return the text of the policy kept with a registered model, empty if there is none."""
    query = sa.select(MODEL_TAGS.c.value).where(MODEL_TAGS.c.name == name, MODEL_TAGS.c.key == OWN_POLICY)
    return "".join(value or "" for (value,) in rows(session, query))


def _has_real_versions(session: Session, name: str) -> bool:
    source = sa.func.coalesce(VERSIONS.c.source, "")
    live = sa.select(VERSIONS.c.version).where(VERSIONS.c.name == name, VERSIONS.c.current_stage != STAGE_DELETED_INTERNAL)
    return bool(rows(session, live.where(source.not_in(PROMPT_SOURCES)).limit(1)))


def _version(name: str, number: int, source: str | None, location: str | None) -> Version:
    # As MLflow's own download does it: versions of old releases have no location of their own.
    where = location or source or ""
    return Version(name, number, evidence.model_behind(source or "", where), where)
