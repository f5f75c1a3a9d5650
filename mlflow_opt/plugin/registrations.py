"""What the registry's own tables say: which logged model a version is, who holds an alias, what is only a prompt.

All of it is read within the caller's transaction, after `lock`, so that what is judged is what is moved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS as PROMPT_SOURCES
from mlflow.store.artifact.utils.models import _parse_model_uri
from sqlalchemy.orm import Session

from mlflow_opt.evidence import PREFIX
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.tables import ALIASES, MODEL_TAGS, MODELS, VERSIONS, rows

OWN_POLICY = PREFIX + "policy"
PRODUCTION = "Production"
STAGE = "stage:Production"
_LOGGED_MODEL = re.compile(r"models:/+(m-[\w-]+)")
# A copy of a copy of a copy is followed this far; a longer chain is no model that evidence could be found for.
_COPIES = 10


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and the logged model it is (empty if it is none, and then it has no evidence)."""

    name: str
    number: int
    model_id: str

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
    query = sa.select(VERSIONS.c.name, VERSIONS.c.version, VERSIONS.c.source).where(VERSIONS.c.name == name, *where)
    live = query.where(VERSIONS.c.current_stage != STAGE_DELETED_INTERNAL).order_by(VERSIONS.c.version.desc()).limit(limit)
    return [Version(found, number, _model_id(session, source or "")) for found, number, source in rows(session, live)]


def live_version(session: Session, name: str, number: int) -> Version | None:
    """Find a version that is not deleted."""
    return next(iter(live_versions(session, name, VERSIONS.c.version == number)), None)


def in_production(session: Session, name: str) -> Version | None:
    """Find the newest version in stage Production."""
    return next(iter(live_versions(session, name, VERSIONS.c.current_stage == PRODUCTION)), None)


def aliases(session: Session, name: str) -> dict[str, int]:
    """Return every alias of a registered model as it is spelled, with the version it points to."""
    found = rows(session, sa.select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name == name))
    return {str(alias): int(version) for alias, version in found}


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
    real = source.where(VERSIONS.c.current_stage != STAGE_DELETED_INTERNAL, VERSIONS.c.source.not_in(PROMPT_SOURCES)).limit(1)
    return not rows(session, real)


def is_copy(source: str) -> bool:
    """Tell whether a version's source is another registered version (`models:/name/3`) rather than a logged model."""
    return source.startswith("models:/") and not _LOGGED_MODEL.fullmatch(source)


def own_policy(session: Session, name: str) -> str:
    """Return the text of the policy kept with a registered model, empty if there is none."""
    query = sa.select(MODEL_TAGS.c.value).where(MODEL_TAGS.c.name == name, MODEL_TAGS.c.key == OWN_POLICY)
    return "".join(value or "" for (value,) in rows(session, query))


def _model_id(session: Session, source: str) -> str:
    """Follow the versions that a version was copied from to the logged model, empty if there is none."""
    for _ in range(_COPIES):
        if found := _LOGGED_MODEL.fullmatch(source):
            return found.group(1)
        original = _original(session, source)
        if not original:
            return ""
        source = original[0][0] or ""
    return ""


def _original(session: Session, source: str) -> list[tuple[Any, ...]]:
    if not source.startswith("models:/"):
        return []
    try:
        parsed = _parse_model_uri(source)
    except MlflowException:
        return []
    query = sa.select(VERSIONS.c.source).where(VERSIONS.c.name == parsed.name, VERSIONS.c.version == int(parsed.version or 0))
    return rows(session, query)
