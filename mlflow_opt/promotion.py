"""Move an alias to a version whose evidence passes: ask the hook where the server has one, else decide here by its rules."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from mlflow_opt import judging, models, outcome, proof, tracking
from mlflow_opt.evidence import PREFIX
from mlflow_opt.gate import undecided, worst
from mlflow_opt.judging import Request, Setting
from mlflow_opt.plugin.discovery import GateInfo, active_gate
from mlflow_opt.plugin.rules import judge_trial
from mlflow_opt.plugin.server_policy import TASKS, Cover, default_cover
from mlflow_opt.plugin.trials import read_trial
from mlflow_opt.policy import read_policy
from mlflow_opt.records import Outcome, Reason, Verdict

_logger = logging.getLogger(__name__)


def promote(request: Request, setting: Setting, params: Mapping[str, Any]) -> Verdict:
    """Promote a version if its evidence passes, measuring anew where it is missing or no longer holds.

    Raises:
        ValueError: the model is not a version of a registered model.

    """
    tracking.require_store()
    name, version = _version(request.model)
    verdict = standing_verdict(name, version, request.alias, setting.policy)
    if verdict.outcome is Outcome.INCONCLUSIVE:
        _say(f"The evidence of {name} version {version} does not decide, so it is measured now:", verdict)
        judging.judge_with_run("promote", Request(f"models:/{name}/{version}", "", request.alias), setting, params)
        verdict = standing_verdict(name, version, request.alias, setting.policy)
    if not verdict.passed:
        _say(f"{name} version {version} is not promoted:", verdict)
        return verdict
    return _move(name, version, request.alias, verdict)


def standing_verdict(name: str, version: str, alias: str, policy_path: str) -> Verdict:
    """Judge the evidence that a version has now, by the rules of the hook, and check that its files are those measured.

    Args:
        name: registered model.
        version: its version.
        alias: alias that would move.
        policy_path: policy file for servers without the hook, `""` for none.

    """
    model_id = tracking.model_id_of(name, version)
    if not model_id:
        return _refused(f"{name} version {version} has no logged model behind it, so nothing can be evidence for it; log it with MLflow 3.")
    trial = read_trial(model_id)
    gate = active_gate(tracking.client(), name)
    # The hook remembers the last champion even where the alias was deleted; a plain registry knows today's alias only.
    reference = gate.references.get(alias.lower(), "") if gate else proof.model_behind(name, alias)
    judged = judge_trial(trial, _cover(gate, policy_path), reference, int(time.time() * 1000))
    reasons = [*judged.verdict.reasons, *_files(model_id, trial.tags)]
    return Verdict(worst(reasons), tuple(reasons))


def _cover(gate: GateInfo | None, policy_path: str) -> Cover:
    """Say which policy decides: the server's; on a server without the hook the file's, else the default of the task."""
    if gate is not None:
        return Cover({task: gate.policy(task) for task in TASKS}, default=False, origin=gate.origin)
    if policy_path:
        given = read_policy(policy_path)
        return Cover(dict.fromkeys(TASKS, given), default=False, origin=policy_path)
    return default_cover()


def _files(model_id: str, tags: Mapping[str, str]) -> list[Reason]:
    measured = tags.get(PREFIX + "model_digest", "")
    if not measured or models.load(f"models:/{model_id}").digest == measured:
        return []
    return [undecided(f"the files of {model_id} are not those that were measured (digest {measured}); measure again.")]


def _move(name: str, version: str, alias: str, verdict: Verdict) -> Verdict:
    gated = active_gate(tracking.client(), name) is not None
    try:
        tracking.set_alias(name, alias, version)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return _refused(f"the registry refused: {error.message}")
    if not gated:
        _logger.warning("This server has no registry hook: nothing stops anyone from moving '%s' by hand. See `mlflow-opt doctor`.", alias)
    _say(f"{name} version {version} is now '{alias}':", verdict)
    return verdict


def _version(uri: str) -> tuple[str, str]:
    name = judging.registered_name(uri)
    if not name:
        raise ValueError(
            f"model must name a version of a registered model, got '{uri}'; for example models:/churn/4 or models:/churn@challenger."
        )
    rest = uri.removeprefix("models:/").strip("/")
    version = tracking.alias_version(name, rest.rpartition("@")[2]) if "@" in rest else rest.rpartition("/")[2]
    if not version.isdigit():
        raise ValueError(f"model must name an existing version, got '{uri}'; look at `mlflow-opt history --name {name}` for what there is.")
    return name, version


def _refused(text: str) -> Verdict:
    return Verdict(Outcome.FAIL, (Reason(None, None, Outcome.FAIL, text),))


def _say(head: str, verdict: Verdict) -> None:
    _logger.info("%s %s\n%s", head, verdict.outcome.value, "\n".join(f"  {line}" for line in outcome.verdict_lines(verdict)))
