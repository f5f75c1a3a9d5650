"""MLflow's own tables that the gate reads, as plain SQL tables: a decision needs rows, not objects that load more rows."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel, SqlRegisteredModelAlias, SqlRegisteredModelTag
from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlLoggedModelTag, SqlMetric, SqlRun, SqlTag
from sqlalchemy.orm import Session


def _table(model: Any) -> sa.Table:
    table: sa.Table = model.__table__
    return table


MODELS = _table(SqlRegisteredModel)
MODEL_TAGS = _table(SqlRegisteredModelTag)
ALIASES = _table(SqlRegisteredModelAlias)
VERSIONS = _table(SqlModelVersion)
LOGGED_MODELS = _table(SqlLoggedModel)
LOGGED_MODEL_TAGS = _table(SqlLoggedModelTag)
RUNS = _table(SqlRun)
RUN_TAGS = _table(SqlTag)
METRICS = _table(SqlMetric)


def rows(session: Session, query: sa.Select[Any]) -> list[tuple[Any, ...]]:
    """Run a query within the session's transaction, after what MLflow's own methods left pending there."""
    session.flush()
    return [tuple(row) for row in session.execute(query)]
