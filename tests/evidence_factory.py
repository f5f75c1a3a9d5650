"""Evidence as a recipe leaves it, made in a moment: a logged model, and a finished run whose metrics say that it was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlflow_opt.gate import judge
from mlflow_opt.policy import default_policy
from mlflow_opt.records import Binding, Measurement, Policy, Quantity
from mlflow_opt.verdicts.evidence import EVIDENCE_RUN, PREFIX, to_metrics, to_tags
from mlflow_opt.verdicts.signing import signature_tag

FINGERPRINT = "cpu=AMD EPYC;avx512=1;vnni=1;cores=2"
GOOD = {"speedup": Quantity(1.8, 1.7, 1.9, 900), "drop_roc_auc": Quantity(0.001, -0.002, 0.004, 4000)}
SLOW = GOOD | {"speedup": Quantity(0.98, 0.95, 1.01, 900)}
WRONG = GOOD | {"drop_roc_auc": Quantity(0.3, 0.28, 0.32, 4000)}
UNSURE = GOOD | {"speedup": Quantity(1.2, 1.0, 1.4, 30)}


@dataclass(frozen=True)
class Evidence:
    """What to write; the defaults are evidence that passes the default policy of a binary task."""

    reference: str
    quantities: Mapping[str, Quantity] = field(default_factory=lambda: dict(GOOD))
    policy: Policy = field(default_factory=lambda: default_policy("binary"))
    task: str = "binary"
    fingerprint: str = FINGERPRINT
    doubt: str = ""
    age_days: float = 0.0
    status: str = "FINISHED"
    tags: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[tuple[str, float], ...] = ()
    experiment_id: str = ""


def experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("evidence")
    return str(found.experiment_id if found else client.create_experiment("evidence"))


def logged_model(client: MlflowClient, source: str = "", *, ready: bool = True) -> str:
    tags = {PREFIX + "source_model_id": source} if source else {}
    model = client.create_logged_model(experiment(client), name="variant", tags=tags)
    if ready:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def write_evidence(client: MlflowClient, model_id: str, given: Evidence) -> str:
    """Log a run that measured `model_id`, and point the logged model to it."""
    measured = Measurement(given.quantities, given.reference, "rows", given.fingerprint, given.doubt)
    verdict = judge(measured, given.policy)
    binding = Binding(
        model_id=model_id,
        model_digest="files",
        data_digest="rows",
        split_digest="split",
        policy_digest=given.policy.digest,
        reference_model_id=given.reference,
        fingerprint=given.fingerprint,
        task=given.task,
        measured_at=int((time.time() - given.age_days * 86_400) * 1000),
    )
    run = client.create_run(given.experiment_id or experiment(client), run_name="variant")
    values, tags = to_metrics(measured, given.policy, verdict), to_tags(binding, verdict.outcome, given.doubt)
    # As `proof.write` does: signed where the environment names a key.
    tags |= signature_tag(run.info.run_id, values, tags) | dict(given.tags)
    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in values.items()]
    metrics += [Metric(key, value, now + 1 + index, 0) for index, (key, value) in enumerate(given.extra)]
    client.log_batch(run.info.run_id, metrics, [Param("technique", "test")], [RunTag(key, value) for key, value in tags.items()])
    if given.status != "RUNNING":
        client.set_terminated(run.info.run_id, given.status)
    client.set_logged_model_tags(model_id, {EVIDENCE_RUN: run.info.run_id})
    return str(run.info.run_id)


def register(client: MlflowClient, name: str, model_id: str) -> str:
    """Register a logged model and return the version's number."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, f"models:/{model_id}", model_id=model_id).version)


def candidate(client: MlflowClient, name: str, given: Evidence) -> str:
    """Make a logged model with evidence, register it, and return the version's number; its source is the evidence's reference."""
    model_id = logged_model(client, source=given.reference)
    write_evidence(client, model_id, given)
    return register(client, name, model_id)


def good(client: MlflowClient, name: str, reference: str = "", **changed: Any) -> str:
    """Register a version that passes the default policy against `reference`, or against a source that never was registered."""
    return candidate(client, name, replace(Evidence(reference or logged_model(client)), **changed))


def model_id_of(client: MlflowClient, name: str, version: str) -> str:
    return str(client.get_model_version(name, version).source).removeprefix("models:/")


def registry(client: MlflowClient) -> Any:
    """Reach below the client, for what it would complete or forbid by itself."""
    inner: Any = client
    return inner._get_registry_client()


def refused(ask: Callable[[], Any]) -> str:
    """Ask for something that must be refused with 403, and return what was said."""
    with pytest.raises(MlflowException) as caught:
        ask()
    assert caught.value.error_code == "PERMISSION_DENIED", caught.value
    return str(caught.value.message)


def pointed(client: MlflowClient, alias: str, name: str = "churn") -> str:
    """Return the version that an alias points to, empty if there is no such alias."""
    return str(client.get_registered_model(name).aliases.get(alias, ""))


def champion(client: MlflowClient, name: str = "churn") -> str:
    return pointed(client, "champion", name)
