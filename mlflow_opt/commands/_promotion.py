"""Move an alias to a version whose evidence passes: ask the hook where the server has one, else decide here by its rules."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow.exceptions import MlflowException

from mlflow_opt import models
from mlflow_opt.gate import undecided
from mlflow_opt.plugin.discovery import GateInfo, active_gate
from mlflow_opt.plugin.rules import Judgement, judge_trial
from mlflow_opt.plugin.server_policy import TASKS, Cover, default_cover
from mlflow_opt.plugin.trials import read_trial
from mlflow_opt.policy import read_policy
from mlflow_opt.records import Outcome, Reason, Verdict
from mlflow_opt.runs import judging, outcome, proof, tracking
from mlflow_opt.runs.judging import Request, Setting
from mlflow_opt.verdicts import waivers
from mlflow_opt.verdicts.evidence import PREFIX
from mlflow_opt.verdicts.waivers import Waiver

_logger = logging.getLogger(__name__)
_HEADING = "### Promotion"
_LONGEST_DESCRIPTION = 5000


@dataclass(frozen=True)
class Place:
    """A version that asks for an alias, and what it is judged by.

    Args:
        name: registered model.
        version: of it.
        alias: that is to move.
        model_id: identity of the version.
        reference: identity of the model that evidence must compare with, empty if there is none.
        cover: the policy that decides.
        gated: whether the registry has the hook.

    """

    name: str
    version: str
    alias: str
    model_id: str
    reference: str
    cover: Cover
    gated: bool

    @property
    def called(self) -> str:
        """Name it for people."""
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class Promotion:
    """What came of a request to promote.

    Args:
        name: registered model.
        version: that was to be promoted.
        alias: that was to move.
        verdict: PASS if it moved; reasons that were waived say so.
        moved: whether it moved.
        gated: whether the registry's hook decided.
        measured: whether the version was measured for it.
        evidence_run: the run that decided, empty if there is none.
        waived: the waivers without which it would not have moved.

    """

    name: str
    version: str
    alias: str
    verdict: Verdict
    moved: bool
    gated: bool
    measured: bool
    evidence_run: str = ""
    waived: tuple[Waiver, ...] = ()


def promote(request: Request, setting: Setting, params: Mapping[str, Any], waiver: Waiver | None = None) -> Promotion:
    """Promote a version if its evidence passes, measuring anew where it is missing or no longer holds.

    Args:
        request: the version, and the alias that is to move.
        setting: how it is measured, if it is.
        params: the command's parameters, for the record.
        waiver: of a criterion that the version misses, None for none.

    Raises:
        ValueError: the model is not a version of a registered model, or the waiver is none that the server takes.

    """
    tracking.require_store()
    place = _place(request, setting.policy)
    if waiver:
        waivers.check(waiver, _now())
        _require_allowed(place.cover)
    if not place.model_id.startswith("m-"):
        text = f"{place.called} has no logged model behind it, so nothing can be evidence for it; log it with MLflow 3."
        return _result(place, _failed(text))
    asked, measured = _waived(standing_judgement(place), waiver), False
    if asked.verdict.outcome is Outcome.INCONCLUSIVE and not asked.allowed:
        if advice := judging.unsigned_advice(place.cover.any):
            return _result(place, _with(asked.verdict, undecided(f"nothing is measured here: {advice}")))
        _say(f"The evidence of {place.called} does not decide, so it is measured now:", asked.verdict)
        judging.judge_with_run("promote", Request(f"models:/{place.name}/{place.version}", "", place.alias), setting, params)
        asked, measured = _waived(standing_judgement(place), waiver), True
    verdict = Verdict(Outcome.PASS if asked.allowed else asked.verdict.outcome, asked.told)
    waived = asked.waived if asked.allowed else ()
    result = replace(_result(place, verdict), measured=measured, evidence_run=asked.trial.run_id, waived=waived)
    if not asked.allowed:
        _say(f"{place.called} is not promoted:", verdict)
        return result
    return _move(result)


def standing_judgement(place: Place) -> Judgement:
    """Judge the evidence that a version has now, by the rules of the hook, and check that its files are those measured."""
    trial = read_trial(place.model_id)
    judged = judge_trial(trial, place.cover, place.reference, _now())
    doubts = _files(place.model_id, trial.tags)
    return replace(judged, verdict=_with(judged.verdict, *doubts)) if doubts else judged


def _place(request: Request, policy_path: str) -> Place:
    name, version = _version(request.model)
    gate = active_gate(tracking.client(), name)
    # The hook remembers the last champion even where the alias was deleted; a plain registry knows today's alias only.
    reference = gate.references.get(request.alias.lower(), "") if gate else proof.reference_behind(name, request.alias)
    identity = proof.registered_identity(name, version)
    return Place(name, version, request.alias, identity, reference, _cover(gate, policy_path), gate is not None)


def _result(place: Place, verdict: Verdict) -> Promotion:
    return Promotion(place.name, place.version, place.alias, verdict, moved=False, gated=place.gated, measured=False)


def _waived(judged: Judgement, waiver: Waiver | None) -> Judgement:
    if waiver is None or judged.policy is None or judged.passed:
        return judged
    quantity = waivers.named_quantity(waiver.metric, judged.policy.criteria)
    return judged.with_waivers([replace(waiver, metric=quantity)])


def _require_allowed(cover: Cover) -> None:
    if not cover.any.waivers:
        raise ValueError(
            "waive must be allowed by the policy, and it forbids waivers (`waivers: false`, the default); ask the server's owner."
        )


def _with(verdict: Verdict, *doubts: Reason) -> Verdict:
    return Verdict(Outcome.INCONCLUSIVE, (*doubts, *verdict.reasons))


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


def _move(asked: Promotion) -> Promotion:
    try:
        for waiver in asked.waived:
            # The hook takes this tag as a request and keeps it in its history; a plain registry just shows it.
            tracking.client().set_model_version_tag(asked.name, asked.version, waivers.TAG, waiver.to_json())
        tracking.set_alias(asked.name, asked.alias, asked.version)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return replace(asked, verdict=_failed(f"the registry refused: {error.message}"), waived=())
    if not asked.gated:
        _logger.warning(
            "This server has no registry hook: nothing stops anyone from moving '%s' by hand. See `mlflow-opt doctor`.", asked.alias
        )
    _describe(asked)
    _say(f"{asked.name} version {asked.version} is now '{asked.alias}':", asked.verdict)
    return replace(asked, moved=True)


def _describe(asked: Promotion) -> None:
    """Show the verdict, and what was waived, on the version's page."""
    client = tracking.client()
    before = str(client.get_model_version(asked.name, asked.version).description or "").partition(_HEADING)[0].rstrip()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    head = f"{_HEADING}\n\n`{asked.alias}` since {day}{', on a waiver' if asked.waived else ''}:\n\n"
    lines = "\n".join(f"- {line}" for line in outcome.verdict_lines(asked.verdict))
    text = "\n\n".join(part for part in (before, head + lines) if part)
    client.update_model_version(asked.name, asked.version, text[:_LONGEST_DESCRIPTION])


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


def _failed(text: str) -> Verdict:
    return Verdict(Outcome.FAIL, (Reason(None, None, Outcome.FAIL, text),))


def _now() -> int:
    return int(time.time() * 1000)


def _say(head: str, verdict: Verdict) -> None:
    _logger.info("%s %s\n%s", head, verdict.outcome.value, "\n".join(f"  {line}" for line in outcome.verdict_lines(verdict)))
