"""Measure a candidate for its verdict and write the evidence where the registry hook looks for it.

Recipes, `gate` and `promote` all come through here, so that evidence means the same whoever made it: a run of its own that
holds the intervals and names what they are bound to, and a tag on the logged model that points to that run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import DatasetInput

from mlflow_opt import data, measure, policy
from mlflow_opt.data import Part, Split
from mlflow_opt.gate import judge
from mlflow_opt.models import Model
from mlflow_opt.plugin.discovery import active_gate
from mlflow_opt.records import Binding, Measurement, Policy, Task, Verdict
from mlflow_opt.reports import report
from mlflow_opt.runs import tracking
from mlflow_opt.verdicts import evidence, signing

CHAMPION = "champion"
CHALLENGER = "challenger"
_REGISTRY = "models:/"


@dataclass(frozen=True)
class Proof:
    """A verdict with what it rests on."""

    verdict: Verdict
    measured: Measurement
    reference: Measurement
    binding: Binding


def prove(candidate: Model, reference: Model, split: Split, rules: Policy, conditions: measure.Conditions) -> Proof:
    """Measure a candidate beside its reference on the gate rows and judge it; nothing is written.

    Args:
        candidate: the model to be judged; it must be a logged model.
        reference: the model that it would replace.
        split: whose gate rows nothing before has seen.
        rules: the policy.
        conditions: threads, batch size, time budget, seed, own metric.

    Raises:
        ValueError: the candidate is not a logged model, so that no evidence could name it.

    """
    if not candidate.model_id:
        raise ValueError(f"evidence must name a logged model, '{candidate.uri}' is none; log it with MLflow first (models:/m-...).")
    # A key that cannot be read is better known before the measurement than after it.
    signing.own_key()
    found = measure.evidence(candidate, reference, split.gate, split.task, rules, conditions)
    verdict = judge(found.candidate, rules)
    binding = Binding(
        model_id=candidate.model_id,
        model_digest=candidate.digest,
        data_digest=split.gate.digest,
        split_digest=split.digest,
        policy_digest=rules.digest,
        reference_model_id=identity_of(reference),
        fingerprint=found.candidate.fingerprint,
        task=split.task.kind,
        measured_at=int(time.time() * 1000),
    )
    return Proof(verdict, found.candidate, found.reference, binding)


def write(proof: Proof, rules: Policy, run_id: str) -> None:
    """Write a proof as metrics and tags of its run.

    The metrics carry no model id: on a logged model MLflow would turn what is not finite into a number. They are signed
    where the environment names a key.
    """
    metrics = evidence.to_metrics(proof.measured, rules, proof.verdict)
    tags = evidence.to_tags(proof.binding, proof.verdict.outcome, proof.measured.doubt)
    tracking.log_values(run_id, metrics, tags | signing.signature_tag(run_id, metrics, tags))


def point_to(model_id: str, run_id: str) -> None:
    """Make a finished run the evidence for a logged model; called last, when all of it is written."""
    tracking.tag_model(model_id, {evidence.EVIDENCE_RUN: run_id})


def require_same_split(model: Model, split: Split) -> None:
    """Refuse to go on with a model that a recipe made on another split: its training rows may be among these gate rows.

    Raises:
        ValueError: the model's lineage names another split.

    """
    known = tracking.model_tags(model.model_id).get(evidence.PREFIX + "split_digest", split.digest)
    if known != split.digest:
        raise ValueError(
            f"a chain of recipes must keep one split, and {model.uri} was made on split {known}, not {split.digest}; "
            "give the data that it was made on, whole and with the same target."
        )


def seen_before(split: Split) -> str:
    """Say how many verdicts the gate rows have already decided: each one makes the next a little less independent."""
    times = tracking.count_runs(evidence.PREFIX + "data_digest", split.gate.digest, tracking.experiment())
    return f"These gate rows have decided {times} verdict{'' if times == 1 else 's'} in this experiment before."


def policy_for(register_as: str, path: str, task: Task, speedup: float = 1.05) -> Policy:
    """Find the policy that a result will be judged by.

    A server that guards the target name decides; then a file; then the default of the task. A file that differs from the
    server's policy is refused rather than silently passed over: its author believes that it counts.

    Args:
        register_as: registered model that the result is for, `""` if none; it need not exist yet.
        path: policy file, `""` if none.
        task: of the data.
        speedup: that the default policy asks for.

    Raises:
        ValueError: the file is wrong, or differs from the server's policy.

    """
    own = policy.read_policy(path) if path else None
    gate = active_gate(tracking.client(), register_as) if register_as else None
    if gate is None:
        return own or policy.default_policy(task.kind, speedup)
    theirs = gate.policy(task.kind)
    if own and own.digest != theirs.digest:
        raise ValueError(
            f"{register_as} is guarded by the server's policy, and '{path}' differs from it (digest {own.digest}, not {theirs.digest}); "
            "leave policy empty, or change the server's."
        )
    return theirs


def model_behind(name: str, alias: str = CHAMPION) -> str:
    """Return what evidence for an alias compares with, as it follows `models:/`: a model id, or name and version of one that has none.

    Empty if there is no such model. A server with the hook remembers the last one even where the alias was deleted.

    Raises:
        ValueError: that model is gone, and nothing can be compared with it any more.

    """
    return reference_behind(name, alias).removeprefix(_REGISTRY)


def reference_behind(name: str, alias: str = CHAMPION) -> str:
    """Return the identity of the model that evidence for an alias compares with, `""` if there is none.

    Raises:
        ValueError: that model is gone, and nothing can be compared with it any more.

    """
    gate = active_gate(tracking.client(), name) if name else None
    if gate and (known := gate.references.get(alias.lower(), "")):
        if known.startswith(_REGISTRY) and not known[-1].isdigit():
            raise ValueError(
                f"evidence must compare with the last '{alias}' of {name}, {known}; the server's owner lets a new one in by mode: dry_run."
            )
        return known
    version = tracking.alias_version(name, alias) if name else ""
    return registered_identity(name, version) if version else ""


def registered_identity(name: str, version: str) -> str:
    """Say what evidence calls a registered version, as the hook does: its logged model, else its place in the registry."""
    client = tracking.client()
    source = str(client.get_model_version(name, version).source or "")
    location = "" if evidence.model_behind(source, "") else str(client.get_model_version_download_uri(name, version))
    return evidence.identity(source, location, name, version)


def identity_of(reference: Model) -> str:
    """Say what evidence calls a reference: a registered version what the registry calls it, anything else its logged model."""
    name, _, version = reference.uri.removeprefix(_REGISTRY).rpartition("/")
    registered = reference.uri.startswith(_REGISTRY) and bool(name) and version.isdigit()
    return registered_identity(name, version) if registered else reference.model_id


def dataset_inputs(split: Split) -> dict[str, DatasetInput]:
    """Describe the parts of a split as MLflow dataset inputs, by name."""
    source, name = split.dataset.source, split.dataset.name
    return {part.name: _input(part, name, source) for part in (split.train, split.calibration, split.selection, split.gate)}


def sizes(model: Model) -> dict[str, float]:
    """Give what is known of a model without running it."""
    return {"size_mb": model.size_mb, "parameters": float(model.parameters)}


def verdict_document(proof: Proof, rules: Policy) -> str:
    """Write everything that the decision rests on as JSON."""
    return report.verdict_json(proof.verdict, proof.measured, rules, vars(proof.binding))


def lineage(source_model_id: str, split: Split, recipe: str, params: Mapping[str, object]) -> dict[str, str]:
    """Write where a logged model comes from, as tags: what made it, from which model, on which rows."""
    tags = {"recipe": recipe, "split_digest": split.digest, "data": str(params["data"]), "target": str(params["target"])}
    tags = {evidence.PREFIX + key: value for key, value in tags.items()}
    return tags | ({evidence.PREFIX + "source_model_id": source_model_id} if source_model_id else {})


def local_folder(model: Model, folder: Path) -> Path:
    """Copy a model's MLflow folder so that it can be stamped with its new id without touching the original."""
    import shutil

    return Path(shutil.copytree(model.path, folder))


def _input(part: Part, name: str, source: str) -> DatasetInput:
    profile = {"rows": data.n_rows(part.rows), "part": part.name}
    return tracking.dataset_input(f"{name}.{part.name}", part.digest, source, part.name, profile)
