"""Every write to MLflow's tracking store and registry, as the fewest calls that do it.

On sqlite each call is a transaction and the disk's fsync is its price, so a child run is created with its tags, filled
by one batch and ended: three calls, however many values it has. Values are written through the client with the run's id,
never through the fluent API's active run, because `mlflow run` sets `MLFLOW_RUN_ID` and a nested `start_run` would then
overwrite the parent (mlflow#15713).
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from mlflow_opt.declaration.parameter import to_text

PARAM_LENGTH = 6000
_HEALTH_TIMEOUT_S = 5
_KIND = (("mlflow.experimentKind", "custom_model_development"),)
# The most metrics that MLflow takes in one call.
_BATCH = 1000
_NOT_ALLOWED = re.compile(r"[/:.%\"']")

# On a recipe's parent run: the logged model that was chosen, and its child run.
CHOSEN, CHOSEN_RUN = "mlflow_opt.chosen_model_id", "mlflow_opt.chosen_run_id"


@dataclass(frozen=True)
class Parent:
    """The run that a recipe belongs to; `joined` if `mlflow run` had opened it, who then also ends it."""

    run_id: str
    experiment_id: str
    joined: bool


def require_store() -> None:
    """Fail at once if the tracking server does not answer, instead of after minutes of retries.

    Raises:
        ConnectionError: the server at the tracking URI does not answer.

    """
    # A server that goes away in the middle should cost seconds, not MLflow's default of several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        answered = requests.get(f"{uri.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S)
    except requests.RequestException as error:
        raise ConnectionError(
            f"the tracking server must answer before work starts, but {uri} does not ({type(error).__name__}); "
            "start it, or set MLFLOW_TRACKING_URI (sqlite:///mlflow.db needs no server)."
        ) from error
    if answered.status_code >= 500:
        raise ConnectionError(f"the tracking server at {uri} answers {answered.status_code}; look at its log, then run again.")


def open_parent(recipe: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Parent:
    """Join the run that `mlflow run` opened, or create one, and log the parameters that it does not have yet.

    The environment's run id is cleared once joined: a process or worker started later must not take it for its own.
    """
    client = MlflowClient()
    joined_id = os.environ.pop("MLFLOW_RUN_ID", "")
    if joined_id:
        run = client.get_run(joined_id)
        client.log_batch(joined_id, tags=[RunTag(key, value) for key, value in tags.items()])
    else:
        name = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = client.create_run(experiment(), tags=resolve_tags(dict(tags)), run_name=name)
    missing = {key: value for key, value in params.items() if key not in run.data.params}
    client.log_batch(run.info.run_id, params=_params(missing))
    return Parent(run.info.run_id, run.info.experiment_id, bool(joined_id))


def open_child(parent: Parent, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Create a child run with its parameters and tags; returns its id."""
    client = MlflowClient()
    all_tags = resolve_tags({**tags, MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_RUN_NAME: name})
    run = client.create_run(parent.experiment_id, tags=all_tags, run_name=name)
    if params:
        client.log_batch(run.info.run_id, params=_params(params))
    return str(run.info.run_id)


def log_finished_child(parent: Parent, name: str, metrics: Mapping[str, float], params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Write a child run whose values are all known, in three calls; for searches with many trials."""
    client = MlflowClient()
    all_tags = resolve_tags({**tags, MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_RUN_NAME: name})
    run = client.create_run(parent.experiment_id, tags=all_tags, run_name=name)
    client.log_batch(run.info.run_id, metrics=_metrics(metrics), params=_params(params))
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def log_values(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None, *, model_id: str = "") -> None:
    """Write metrics and tags of a run in one batch; with a model id the metrics also show on the logged model.

    A value that is not finite is written on the run alone: MLflow would store it on the model as 0 or 1.8e308.
    """
    plain = {key: value for key, value in metrics.items() if not (model_id and math.isfinite(value))}
    linked = {key: value for key, value in metrics.items() if key not in plain}
    entries = _metrics(plain) + _metrics(linked, model_id)
    MlflowClient().log_batch(run_id, metrics=entries, tags=[RunTag(k, v) for k, v in (tags or {}).items()])


def log_steps(run_id: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Write metrics that have a value for each step, epochs say, in as few batches as MLflow takes."""
    now = int(time.time() * 1000)
    entries = [Metric(name, float(value), now, step) for name, points in series.items() for step, value in points]
    for at in range(0, len(entries), _BATCH):
        MlflowClient().log_batch(run_id, metrics=entries[at : at + _BATCH])


def log_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run in one batch."""
    MlflowClient().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_text(run_id: str, name: str, text: str) -> None:
    """Write a text artifact of a run."""
    MlflowClient().log_text(run_id, text, name)


def log_file(run_id: str, path: Path) -> None:
    """Upload a file as an artifact of a run."""
    MlflowClient().log_artifact(run_id, str(path))


def close(run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    MlflowClient().set_terminated(run_id, status)


def dataset_input(name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> DatasetInput:
    """Describe rows as an MLflow dataset input; the digest is shortened to MLflow's 36 characters."""
    dataset = Dataset(
        name=name[:500],
        digest=digest[:36],
        source_type="local" if "://" not in source else "uri",
        source=json.dumps({"uri": source}),
        profile=json.dumps(dict(profile)),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])


def log_inputs(run_id: str, inputs: list[DatasetInput]) -> None:
    """Link data sets to a run."""
    MlflowClient().log_inputs(run_id, inputs)


def create_model(parent: Parent, run_id: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Create a logged model that belongs to a run and return its id; its files follow with `upload_model`.

    MLflow allows no dot and no slash in a model's name, which a variant named by a number (`l1_0.0001`) has; its run keeps the name.
    """
    client, allowed = MlflowClient(), _NOT_ALLOWED.sub("_", name)
    text = {key: str(value)[:PARAM_LENGTH] for key, value in params.items()}
    made = client.create_logged_model(parent.experiment_id, name=allowed, source_run_id=run_id, tags=dict(tags), params=text)
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    return str(made.model_id)


def upload_model(model_id: str, folder: Path) -> None:
    """Upload a model's folder and mark the logged model ready."""
    client = MlflowClient()
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")


def upload_part(model_id: str, folder: Path, name: str) -> None:
    """Add a folder to a logged model's files."""
    MlflowClient().log_model_artifacts(model_id, str(folder), name)


def count_runs(tag: str, value: str, experiment_id: str) -> int:
    """Count the runs of an experiment that carry a tag, as far as one page of them goes."""
    return len(MlflowClient().search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000))


def tag_model(model_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a logged model."""
    MlflowClient().set_logged_model_tags(model_id, dict(tags))


def model_tags(model_id: str) -> dict[str, str]:
    """Return the tags of a logged model, none for an empty id."""
    return dict(MlflowClient().get_logged_model(model_id).tags) if model_id else {}


def register(name: str, model_id: str, run_id: str, description: str) -> str:
    """Add a logged model to a registered model as a new version; returns the version."""
    made = MlflowClient().create_model_version(name, f"models:/{model_id}", run_id=run_id, description=description, model_id=model_id)
    return str(made.version)


def create_registered(name: str) -> None:
    """Create a registered model without versions."""
    MlflowClient().create_registered_model(name)


def delete_registered(name: str) -> None:
    """Delete a registered model; for one that was created and got no version."""
    MlflowClient().delete_registered_model(name)


def is_registered(name: str) -> bool:
    """Tell whether a registered model of this name exists."""
    try:
        MlflowClient().get_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; on a guarded alias this is where the hook answers."""
    MlflowClient().set_registered_model_alias(name, alias, version)


def client() -> MlflowClient:
    """Return a client of the tracking store and registry in use."""
    return MlflowClient()


def model_id_of(name: str, version: str) -> str:
    """Return the logged model behind a version, or `""`: created with `registered_model_name` only the source names it."""
    found = MlflowClient().get_model_version(name, version)
    source = str(found.source or "")
    return str(found.model_id or "") or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")


def has_version(name: str, version: str) -> bool:
    """Tell whether a registered model has a version of this number."""
    try:
        MlflowClient().get_model_version(name, version)
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def alias_version(name: str, alias: str) -> str:
    """Return the version an alias points to, or `""`."""
    aliases = MlflowClient().get_registered_model(name).aliases if is_registered(name) else {}
    return str(aliases.get(alias, ""))


def experiment() -> str:
    """Return the experiment that runs go to: MLflow's environment variables decide, else `mlflow-opt`, made if missing."""
    named = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    if named:
        return named
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mlflow-opt")
    found = MlflowClient().get_experiment_by_name(name)
    # The tag makes MLflow's page open on the table of runs instead of on traces of agents.
    return str(found.experiment_id) if found else str(MlflowClient().create_experiment(name, tags=dict(_KIND)))


def _params(params: Mapping[str, Any]) -> list[Param]:
    # The spelling that `-P` and `--flag` use: MLflow refuses a parameter logged twice in different spellings.
    return [Param(key, to_text(value)[:PARAM_LENGTH]) for key, value in params.items()]


def _metrics(metrics: Mapping[str, float], model_id: str = "") -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, 0, model_id=model_id or None) for key, value in metrics.items()]
