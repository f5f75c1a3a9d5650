"""Runs that a chain opens for recipes in other processes, and finds again."""

from __future__ import annotations

import time
from collections.abc import Mapping

import mlflow
from mlflow import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from mlflow_opt.runs.tracking import experiment

# On the run of a chain's step: what it was given, and the chain's own run.
STEP_KEY, PIPELINE = "mlflow_opt.step_key", "mlflow_opt.pipeline_run_id"


def open_step(recipe: str, tags: Mapping[str, str]) -> str:
    """Create the run that a recipe in another process will join; returns its id."""
    name = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = MlflowClient().create_run(experiment(), tags=resolve_tags(dict(tags)), run_name=name)
    return str(run.info.run_id)


def finished_run(tag: str, value: str) -> str:
    """Find the newest finished run of the experiment that carries a tag; `""` if there is none."""
    found = MlflowClient().search_runs([experiment()], f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def read_run(run_id: str) -> tuple[dict[str, float], dict[str, str]]:
    """Give a run's metrics and tags."""
    data = MlflowClient().get_run(run_id).data
    return dict(data.metrics), dict(data.tags)


def environment() -> dict[str, str]:
    """Give the variables by which another process writes to the same experiment of the same stores."""
    uris = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    return uris | {"MLFLOW_EXPERIMENT_ID": experiment()}
