"""Read what a logged model offers as evidence: its tags, the run that it names, and every value that was ever logged there.

The hook reads the run's metric *history*, never the latest value alone and never the logged model's metrics, where
MLflow turns NaN into 0. All models of a question are read at once, in five queries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from mlflow.entities import LoggedModelStatus, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as SqlTrackingStore
from sqlalchemy.orm import Session

from mlflow_opt.plugin.tables import LOGGED_MODEL_TAGS, LOGGED_MODELS, METRICS, RUN_TAGS, RUNS, rows
from mlflow_opt.verdicts.evidence import EVIDENCE_RUN, PREFIX

SOURCE_MODEL = PREFIX + "source_model_id"


@dataclass(frozen=True)
class Trial:
    """What is known of a logged model's evidence; `problem` says what stands in the way of judging it.

    Args:
        model_id: the logged model.
        source_model_id: the logged model it was made from, by its own tag.
        run_id: the run it names as its evidence.
        tags: the run's tags.
        values: metric name -> all values ever logged, in order.
        experiment_id: the experiment that holds the run.
        location: where the logged model's files are.
        problem: why this is no evidence, empty if it may be judged.

    """

    model_id: str
    source_model_id: str = ""
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    problem: str = ""
    experiment_id: str = ""
    location: str = ""

    @property
    def latest(self) -> dict[str, float]:
        """Return the last value of every metric, as a client sees it."""
        return {key: logged[-1] for key, logged in self.values.items()}


def tracking_store() -> Any:
    """Return the tracking store of this server, or, outside a server, the one this process uses."""
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

    if os.environ.get(BACKEND_STORE_URI_ENV_VAR):
        from mlflow.server.handlers import _get_tracking_store

        return _get_tracking_store()
    from mlflow import MlflowClient

    return MlflowClient()._tracking_client.store


def read_trials(model_ids: Sequence[str], session: Session, registry_uri: str) -> dict[str, Trial]:
    """Read the evidence of logged models.

    Args:
        model_ids: logged models, `m-...`.
        session: the registry's open transaction; used for reading as well where tracking lives in the same database.
        registry_uri: database of that session.

    """
    store = tracking_store()
    if isinstance(store, SqlTrackingStore):
        with _reading(store, session, registry_uri) as reader:
            return dict(_by_sql(reader, list(model_ids)))
    return {model_id: _by_api(store, model_id) for model_id in model_ids}


def read_trial(model_id: str) -> Trial:
    """Read the evidence of one logged model as a client sees it, through the tracking store that this process uses."""
    return _by_api(tracking_store(), model_id)


@contextmanager
def _reading(store: SqlTrackingStore, session: Session, registry_uri: str) -> Iterator[Session]:
    if store.db_uri == registry_uri:
        yield session
        return
    # read_only=False: a read replica may lag behind and show evidence that was withdrawn.
    with store.ManagedSessionMaker(read_only=False) as reader:
        yield reader


def _by_sql(session: Session, model_ids: list[str]) -> Iterator[tuple[str, Trial]]:
    model, tag, run = LOGGED_MODELS.c, LOGGED_MODEL_TAGS.c, RUNS.c
    found = sa.select(model.model_id, model.status, model.lifecycle_stage, model.artifact_location).where(model.model_id.in_(model_ids))
    models = {model_id: (LoggedModelStatus.from_int(status), stage, where) for model_id, status, stage, where in rows(session, found)}
    named = sa.select(tag.model_id, tag.tag_key, tag.tag_value).where(tag.model_id.in_(model_ids), tag.tag_key.startswith(PREFIX))
    model_tags = _grouped(rows(session, named))
    run_ids = [run_id for tags in model_tags.values() if (run_id := tags.get(EVIDENCE_RUN, ""))]
    ended = sa.select(run.run_uuid, run.status, run.lifecycle_stage, run.experiment_id).where(run.run_uuid.in_(run_ids))
    runs = {run_id: (status, stage, str(where)) for run_id, status, stage, where in rows(session, ended)}
    bound = sa.select(RUN_TAGS.c.run_uuid, RUN_TAGS.c.key, RUN_TAGS.c.value)
    run_tags = _grouped(rows(session, bound.where(RUN_TAGS.c.run_uuid.in_(run_ids), RUN_TAGS.c.key.startswith(PREFIX))))
    values = _values(session, run_ids)
    for model_id in model_ids:
        tags = model_tags.get(model_id, {})
        run_id = tags.get(EVIDENCE_RUN, "")
        yield (
            model_id,
            Trial(
                model_id,
                source_model_id=tags.get(SOURCE_MODEL, ""),
                run_id=run_id,
                tags=run_tags.get(run_id, {}),
                values=values.get(run_id, {}),
                problem=_model_problem(model_id, models.get(model_id), run_id) or _run_problem(run_id, runs.get(run_id)),
                experiment_id=runs.get(run_id, ("", "", ""))[2],
                location=models.get(model_id, ("", "", ""))[2],
            ),
        )


def _values(session: Session, run_ids: list[str]) -> dict[str, dict[str, tuple[float, ...]]]:
    metric = METRICS.c
    query = sa.select(metric.run_uuid, metric.key, metric.value, metric.is_nan).order_by(metric.timestamp, metric.step)
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for run_id, key, value, is_nan in rows(session, query.where(metric.run_uuid.in_(run_ids), metric.key.startswith("gate"))):
        of_run = found.setdefault(run_id, {})
        of_run[key] = (*of_run.get(key, ()), math.nan if is_nan else float(value))
    return found


def _by_api(store: Any, model_id: str) -> Trial:
    """Read the evidence through a tracking store that is not a database, such as a remote server's."""
    try:
        model = store.get_logged_model(model_id)
    except MlflowException as error:
        return Trial(model_id, problem=_model_problem(model_id, None, "") + f" ({error})")
    run_id = model.tags.get(EVIDENCE_RUN, "")
    if problem := _model_problem(model_id, (model.status, "active", ""), run_id):
        return Trial(model_id, problem=problem)
    try:
        run = store.get_run(run_id)
    except MlflowException as error:
        return Trial(model_id, run_id=run_id, problem=_run_problem(run_id, None) + f" ({error})")
    keys = [key for key in run.data.metrics if key.startswith("gate")]
    values = {key: tuple(metric.value for metric in store.get_metric_history(run_id, key)) for key in keys}
    return Trial(
        model_id,
        source_model_id=model.tags.get(SOURCE_MODEL, ""),
        run_id=run_id,
        tags=dict(run.data.tags),
        values=values,
        problem=_run_problem(run_id, (run.info.status, run.info.lifecycle_stage, "")),
        experiment_id=str(run.info.experiment_id),
        location=str(model.artifact_location),
    )


def _model_problem(model_id: str, found: tuple[LoggedModelStatus, str, str] | None, run_id: str) -> str:
    if not found:
        return f"a version needs a logged model that exists, and '{model_id}' does not"
    status, stage, _ = found
    if stage == "deleted":
        return f"logged model '{model_id}' is deleted"
    if status != LoggedModelStatus.READY:
        return f"logged model '{model_id}' must be READY, it is {status}; its upload did not finish"
    if not run_id:
        return f"logged model '{model_id}' has no evidence: its tag {EVIDENCE_RUN} must name the run that measured it"
    return ""


def _run_problem(run_id: str, found: tuple[str, str, str] | None) -> str:
    if not found:
        return f"the evidence run '{run_id}' does not exist"
    status, stage, _ = found
    if stage != "active":
        return f"the evidence run '{run_id}' is deleted"
    if status != RunStatus.to_string(RunStatus.FINISHED):
        return f"the evidence run '{run_id}' must be FINISHED, it is {status}"
    return ""


def _grouped(rows: Iterable[Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for owner, key, value in rows:
        found.setdefault(owner, {})[key] = value
    return found
