"""What the registry says: which version a URI names today, and whether its evidence is a PASS."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mlflow_opt.flavours import model_files
from mlflow_opt.gate import judge
from mlflow_opt.records import Criterion, Policy
from mlflow_opt.verdicts import evidence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A model as the registry names it at one moment.

    Args:
        uri: as the server was told.
        pinned: URI of exactly this version, which an alias moved later does not change.
        name: registered model, `""` for anything else.
        number: of the version, `""` if none.
        model_id: logged model, `""` if none.

    """

    uri: str
    pinned: str
    name: str = ""
    number: str = ""
    model_id: str = ""


@dataclass(frozen=True)
class Standing:
    """What is proven of a version: PASS, FAIL, INCONCLUSIVE or NONE, one sentence, and the run that it rests on."""

    outcome: str
    text: str
    run_id: str = ""

    @property
    def passed(self) -> bool:
        """Tell whether the version may be served where a verdict is required."""
        return self.outcome == "PASS"


def follows_alias(uri: str) -> bool:
    """Tell whether a URI may name another version tomorrow."""
    return uri.startswith("models:/") and "@" in uri


def resolve(uri: str) -> Version:
    """Find the version that a URI names now.

    Raises:
        ValueError: there is none.

    """
    if not uri.startswith("models:/") or uri.startswith("models:/m-"):
        return Version(uri, uri, model_id=uri.removeprefix("models:/") if uri.startswith("models:/m-") else "")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    named = uri.removeprefix("models:/").strip("/")
    client = MlflowClient()
    try:
        if "@" in named:
            found = client.get_model_version_by_alias(*named.rsplit("@", 1))
        else:
            found = client.get_model_version(*named.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        raise ValueError(
            f"model must name a version that the registry has, got '{uri}' ({error}); give models:/NAME@ALIAS or models:/NAME/VERSION."
        ) from error
    source = str(found.source or "")
    model_id = str(found.model_id or "") or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")
    return Version(uri, f"models:/{found.name}/{found.version}", str(found.name), str(found.version), model_id)


def tags_of(model_id: str) -> dict[str, str]:
    """Read the tags of a logged model, none for an empty id."""
    if not model_id:
        return {}
    from mlflow import MlflowClient

    return dict(MlflowClient().get_logged_model(model_id).tags)


def standing(version: Version, digest: str, tags: dict[str, str]) -> Standing:
    """Judge the evidence of a version again from what its run says, for the very files that were loaded.

    The run's own verdict is not enough: it must be finished, name this model, and its intervals must meet its bounds. Age,
    hardware and reference are the promotion's business: what was good enough to be promoted is not taken away by a clock.

    Args:
        version: the version.
        digest: of the files that will answer.
        tags: of the logged model.

    """
    run_id = tags.get(evidence.EVIDENCE_RUN, "")
    if not run_id:
        return Standing("NONE", "no evidence: measure it with `mlflow-opt gate`")
    from mlflow import MlflowClient

    run = MlflowClient().get_run(run_id)
    return _judged(run, version, digest, run_id)


def file_digest(folder: Any) -> str:
    """Digest the files that were loaded."""
    return model_files.folder_digest(folder)


def _judged(run: Any, version: Version, digest: str, run_id: str) -> Standing:
    try:
        binding = evidence.from_tags(run.data.tags)
    except ValueError as error:
        return Standing("INCONCLUSIVE", str(error), run_id)
    if run.info.status != "FINISHED" or binding.model_id != version.model_id:
        return Standing(
            "INCONCLUSIVE", f"the evidence run is {run.info.status} and names {binding.model_id}, not {version.model_id}", run_id
        )
    if binding.model_digest != digest:
        return Standing("FAIL", "the files are not those that were judged; log and judge the model again", run_id)
    metrics = run.data.metrics
    verdict = judge(evidence.from_metrics(metrics, run.data.tags), Policy(criteria=_criteria(metrics)))
    said = run.data.tags.get(evidence.VERDICT, "")
    if verdict.passed and said == "PASS" and metrics.get(evidence.PASSED) == 1.0:
        return Standing("PASS", f"{len(verdict.reasons)} criteria hold", run_id)
    worst = [reason.text for reason in verdict.reasons if reason.outcome is verdict.outcome and not verdict.passed]
    outcome = verdict.outcome.value if not verdict.passed else (said or "INCONCLUSIVE")
    # A tag that says PASS over metrics that do not is no PASS, and neither is the reverse.
    return Standing(
        outcome if outcome != "PASS" else "INCONCLUSIVE", "; ".join(worst) or "the run's verdict and its metrics differ", run_id
    )


def _criteria(metrics: dict[str, float]) -> tuple[Criterion, ...]:
    found = []
    for key, bound in sorted(metrics.items()):
        for side in ("min", "max"):
            if key.startswith("gate_") and key.endswith(f"_{side}"):
                quantity = key.removeprefix("gate_").removesuffix(f"_{side}")
                found.append(Criterion(quantity, "min" if side == "min" else "max", bound, quantity))
    return tuple(found)
