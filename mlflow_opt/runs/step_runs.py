"""Runs that a chain opens for recipes in other processes, and finds again."""

from __future__ import annotations

import time
from collections.abc import Mapping

import mlflow
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from mlflow_opt.runs.tracking import experiment

# On the run of a chain's step: what it was given, and the chain's own run.
STEP_KEY, PIPELINE = "mlflow_opt.step_key", "mlflow_opt.pipeline_run_id"
# On the run of the model that a chain trained to begin with, where no recipe did.
FIRST_KEY, _FIRST_SECONDS = "mlflow_opt.first_key", "mlflow_opt.first_seconds"


def open_step(recipe: str, tags: Mapping[str, str]) -> str:
    """Create the run that a recipe in another process will join; returns its id."""
    name = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = MlflowClient().create_run(experiment(), tags=resolve_tags(dict(tags)), run_name=name)
    return str(run.info.run_id)


def finished_run(tag: str, value: str) -> str:
    """Find the newest finished run of the experiment that carries a tag; `""` if there is none."""
    found = MlflowClient().search_runs([experiment()], f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def why_it_failed(run_id: str) -> str:
    """Give the message with which a run failed, `""` if it left none."""
    return str(MlflowClient().get_run(run_id).data.tags.get("mlflow_opt.error", "")).partition("\n")[0]


def end_open(run_id: str) -> None:
    """End a run, and its children, whose process is gone and did not do it."""
    client, found = MlflowClient(), [MlflowClient().get_run(run_id)]
    found += client.search_runs([found[0].info.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'", max_results=1000)
    for run in found:
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def mark(run_id: str, tag: str, value: str) -> None:
    """Set a tag by which a later chain finds the run again."""
    MlflowClient().set_tag(run_id, tag, value)


def mark_first(run_id: str, key: str, seconds: float) -> None:
    """Mark the run of the model that a chain begins with, and what training it took."""
    MlflowClient().log_batch(run_id, tags=[RunTag(FIRST_KEY, key), RunTag(_FIRST_SECONDS, f"{seconds:.2f}")])


def first_model(key: str) -> tuple[str, float]:
    """Find the logged model that an earlier chain with this key began with, whatever became of that chain, and what training it took.

    Returns:
        Its id and seconds; `""` and 0 if there is none.
    """
    found = MlflowClient().search_runs([experiment()], f"tags.`{FIRST_KEY}` = '{key}'", max_results=1)
    made = found[0].outputs.model_outputs if found and found[0].outputs else []
    return (str(made[0].model_id), float(found[0].data.tags.get(_FIRST_SECONDS, 0))) if made else ("", 0.0)


def link(run_id: str) -> str:
    """Give the address of a run within MLflow's pages."""
    return f"#/experiments/{MlflowClient().get_run(run_id).info.experiment_id}/runs/{run_id}"


def add_note(run_id: str, text: str) -> None:
    """Add a paragraph to a run's description."""
    note = MlflowClient().get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    MlflowClient().set_tag(run_id, MLFLOW_RUN_NOTE, f"{note}\n\n{text}".strip())


def read_run(run_id: str) -> tuple[dict[str, float], dict[str, str]]:
    """Give a run's metrics and tags."""
    data = MlflowClient().get_run(run_id).data
    return dict(data.metrics), dict(data.tags)


def environment() -> dict[str, str]:
    """Give the variables by which another process writes to the same experiment of the same stores."""
    uris = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    return uris | {"MLFLOW_EXPERIMENT_ID": experiment()}
