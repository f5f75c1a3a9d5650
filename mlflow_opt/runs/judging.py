"""Judge a logged model outside a recipe: find its reference, measure both, and write the evidence as a child run of its own.

Under `mlflow run` a command's own run ends as FAILED when the verdict is no PASS, and evidence must come from a FINISHED
run; so the evidence is a child, and the parent is the record of the command.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow_opt import data, measure, models
from mlflow_opt.data import Split
from mlflow_opt.models import Model
from mlflow_opt.records import Policy
from mlflow_opt.runs import aftermath, outcome, proof, tracking
from mlflow_opt.runs.proof import Proof
from mlflow_opt.verdicts import evidence, signing

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Which model is judged, against which (`""` to find out), for which alias."""

    model: str
    reference: str
    alias: str


@dataclass(frozen=True)
class Setting:
    """On which rows, by which policy and under which conditions."""

    data: str
    target: str
    policy: str
    threads: int
    batch_size: int
    budget_s: float
    seed: int
    metric: str


@dataclass(frozen=True)
class Judged:
    """A proof, the policy it was judged by, the model it compares with and the run that holds it."""

    proof: Proof
    policy: Policy
    reference: str
    run_id: str


def judge_with_run(command: str, request: Request, setting: Setting, params: Mapping[str, Any]) -> Judged:
    """Measure and judge a model, and make the run that holds the result its evidence.

    Args:
        command: name of the entry point, for the run.
        request: what is judged.
        setting: how.
        params: the command's parameters, for the record.

    Raises:
        ValueError: model, reference, data or policy cannot be used.

    """
    if not request.model:
        raise ValueError("model must name the version to judge, got nothing; for example model=models:/churn/4.")
    tracking.require_store()
    logged = {key: value for key, value in params.items() if isinstance(value, str | int | float | bool)}
    parent = tracking.open_parent(command, logged, {"mlflow_opt.recipe": command})
    try:
        judged = _judge(command, parent, request, setting)
    except BaseException as error:
        aftermath.end_badly(parent, None, error)
        raise
    tracking.close(parent.run_id, "FINISHED")
    return judged


def reference_of(candidate: Model, name: str, alias: str) -> str:
    """Find what a candidate would replace: the alias's version, or its last one, else the model it was made from.

    Raises:
        ValueError: there is neither, or the last one is gone.

    """
    champion = proof.model_behind(name, alias) if name else ""
    if champion and champion != candidate.model_id:
        return f"models:/{champion}"
    source = tracking.model_tags(candidate.model_id).get(evidence.PREFIX + "source_model_id", "")
    if source:
        return f"models:/{source}"
    raise ValueError(
        f"a verdict compares with the version that would be replaced, but {name or candidate.uri} has no other version as '{alias}' "
        "and no record of what it was made from; name it, for example reference=models:/churn/1."
    )


def registered_name(uri: str) -> str:
    """Return the registered model that a URI names, `""` if it names none.

    Example:
        >>> registered_name("models:/churn/3"), registered_name("models:/churn@champion"), registered_name("models:/m-1f")
        ('churn', 'churn', '')
    """
    if not uri.startswith("models:/"):
        return ""
    rest = uri.removeprefix("models:/").strip("/")
    return rest.rpartition("@")[0] if "@" in rest else rest.rpartition("/")[0]


def _judge(command: str, parent: tracking.Parent, request: Request, setting: Setting) -> Judged:
    name = registered_name(request.model)
    candidate = _candidate(request.model, setting.threads)
    reference = models.load(pinned(request.reference or reference_of(candidate, name, request.alias)), setting.threads)
    split = _read(candidate, setting)
    rules = proof.policy_for(name, setting.policy, split.task)
    if advice := unsigned_advice(rules):
        _logger.warning("The server will not accept this evidence: %s", advice)
    conditions = measure.Conditions(setting.threads, setting.batch_size, setting.budget_s, setting.seed, measure.own_metric(setting.metric))
    _logger.info("Judging %s against %s on %d gate rows.", request.model, reference.uri, data.n_rows(split.gate.rows))
    proved = proof.prove(candidate, reference, split, rules, conditions)
    run_id = _record(command, parent, candidate, split, proved, rules)
    lines = "\n".join(f"  {line}" for line in outcome.verdict_lines(proved.verdict))
    _logger.info("%s against %s: %s\n%s", request.model, reference.uri, proved.verdict.outcome.value, lines)
    return Judged(proved, rules, reference.uri, run_id)


def pinned(uri: str) -> str:
    """Replace an alias in a URI by the version that it names now: it may move while it is measured."""
    name, alias, number = uri.removeprefix("models:/").strip("/").rpartition("@")[0], "@" in uri, ""
    if uri.startswith("models:/") and alias:
        number = tracking.alias_version(name, uri.rpartition("@")[2])
    return f"models:/{name}/{number}" if number else uri


def unsigned_advice(rules: Policy) -> str:
    """Say why evidence measured here would not be trusted, empty if it would."""
    if not rules.trusted_keys or signing.own_public_key() in rules.trusted_keys:
        return ""
    trusted = ", ".join(signing.key_id(key) for key in rules.trusted_keys)
    return f"its policy asks for evidence signed by {trusted}; measure where {signing.VARIABLE} names that private key."


def _record(command: str, parent: tracking.Parent, candidate: Model, split: Split, proved: Proof, rules: Policy) -> str:
    values = {name: quantity.value for name, quantity in proved.measured.quantities.items()}
    run_id = tracking.open_child(parent, f"{command}-evidence", {"model_id": candidate.model_id}, {"mlflow_opt.recipe": command})
    tracking.log_inputs(run_id, [proof.dataset_inputs(split)["gate"]])
    tracking.log_values(run_id, values)
    proof.write(proved, rules, run_id)
    tracking.log_text(run_id, "verdict.json", proof.verdict_document(proved, rules))
    tracking.close(run_id, "FINISHED")
    proof.point_to(candidate.model_id, run_id)
    shown = values | evidence.to_metrics(proved.measured, rules, proved.verdict)
    tracking.log_values(parent.run_id, shown, {"mlflow_opt.evidence_run": run_id})
    return run_id


def _candidate(uri: str, threads: int) -> Model:
    model = models.load(uri, threads)
    if not model.model_id:
        raise ValueError(
            f"evidence names logged models, and '{uri}' is none; log it with MLflow 3 and use models:/NAME/VERSION or models:/m-...."
        )
    return replace(model, uri=uri)


def _read(candidate: Model, setting: Setting) -> Split:
    """Read the rows; a candidate that a recipe made remembers which data it was made on."""
    tags = tracking.model_tags(candidate.model_id)
    source = setting.data or tags.get(evidence.PREFIX + "data", "")
    if not source:
        raise ValueError(
            f"data must name rows with labels, got nothing, and {candidate.uri} has no record of its data; give data=holdout.parquet."
        )
    target = setting.target if setting.data else tags.get(evidence.PREFIX + "target", setting.target)
    split = data.split(data.read(source, target))
    known = tags.get(evidence.PREFIX + "split_digest", split.digest)
    if known != split.digest:
        _logger.warning("This data is not what %s was made on: make sure that none of these rows were used to fit it.", candidate.uri)
    return split
