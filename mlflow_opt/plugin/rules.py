"""Decide from a trial whether a version may hold a guarded alias: the gate's verdict plus what the verdict is bound to.

Pure: no database and no clock of its own. Whatever is missing or differs adds a reason that keeps the answer from
being PASS. The interval ends are taken as logged: a policy that names trusted keys or experiments says whose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from mlflow_opt.gate import judge, undecided, worst
from mlflow_opt.plugin import bounds
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.plugin.trials import Trial
from mlflow_opt.records import Binding, Measurement, Outcome, Policy, Reason, Verdict
from mlflow_opt.verdicts.evidence import PREFIX, from_metrics, from_tags
from mlflow_opt.verdicts.waivers import Waiver, apply, public


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Args:
        verdict: by the evidence alone.
        policy: that gave it; None where the task is unknown.
        trial: the evidence.
        waived: the waivers that cover something of it; whether they cover all that stands in the way is `allowed`.

    """

    verdict: Verdict
    policy: Policy | None
    trial: Trial
    waived: tuple[Waiver, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether the evidence alone lets the version hold the alias."""
        return self.verdict.passed

    @property
    def allowed(self) -> bool:
        """Tell whether the version may hold the alias, by its evidence or because somebody answers for what it misses."""
        return apply(self.verdict, self.waived)[0].passed

    @property
    def told(self) -> tuple[Reason, ...]:
        """Return the reasons, those that are waived marked as such."""
        return apply(self.verdict, self.waived)[0].reasons

    def with_waivers(self, waivers: list[Waiver]) -> Judgement:
        """Take waivers into account; one that is not needed is left out."""
        return self if self.passed else replace(self, waived=apply(self.verdict, waivers)[1])

    def snapshot(self) -> str:
        """Return the evidence as JSON, for the history: it outlives the run."""
        tags = {key: value for key, value in self.trial.tags.items() if key.startswith(PREFIX)}
        values = {key: [repr(value) for value in logged] for key, logged in self.trial.values.items()}
        said = {"model_id": self.trial.model_id, "tags": tags, "metrics": values}
        return json.dumps(said | ({"waivers": public(self.waived)} if self.waived else {}))


def judge_trial(trial: Trial, cover: Cover, reference: str, now_ms: int) -> Judgement:
    """Judge a trial.

    Args:
        trial: the evidence as read.
        cover: what guards the registered model.
        reference: identity of the model that the alias points to, or last pointed to; empty where there never was one,
            and then the reference is the trial's own source.
        now_ms: today, milliseconds since the epoch.

    """
    binding, reasons = _binding(trial)
    policy = None
    if binding:
        try:
            policy = cover.policy(binding.task)
        except ValueError as error:
            reasons.append(undecided(str(error)))
    elif not cover.default:
        policy = cover.any
    if policy is None:
        return Judgement(Verdict(worst(reasons), tuple(reasons)), None, trial)
    measured = _measured(trial) if binding else Measurement({})
    judged = judge(measured, policy)
    reasons += bounds.repeated(trial, policy)
    if binding:
        reasons += bounds.conditions(binding, policy, now_ms)
        reasons += bounds.reference(binding, policy, reference or trial.source_model_id)
        reasons += bounds.trust(trial, policy)
    # What the evidence is about comes first: a criterion that fails on the wrong evidence says nothing, and measuring heals it.
    outcome = Outcome.INCONCLUSIVE if reasons else judged.outcome
    return Judgement(Verdict(outcome, (*reasons, *judged.reasons)), policy, trial)


def _binding(trial: Trial) -> tuple[Binding | None, list[Reason]]:
    if trial.problem:
        return None, [undecided(f"{trial.problem}.")]
    try:
        return _own(from_tags(trial.tags), trial)
    except ValueError as error:
        return None, [undecided(str(error))]


def _own(binding: Binding, trial: Trial) -> tuple[Binding | None, list[Reason]]:
    if binding.model_id == trial.model_id:
        return binding, []
    text = f"the evidence run '{trial.run_id}' measured model '{binding.model_id}', not '{trial.model_id}'; evidence holds for one model."
    return None, [undecided(text)]


def _measured(trial: Trial) -> Measurement:
    return from_metrics(trial.latest, trial.tags)
