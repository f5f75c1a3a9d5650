"""Decide from a trial whether a version may hold a guarded alias: the gate's verdict plus what the verdict is bound to.

Pure: no database and no clock of its own. Whatever is missing or differs adds a reason that keeps the answer from
being PASS. Unsigned evidence stops mistakes, not a liar: the interval ends are taken as logged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mlflow_opt import metrics
from mlflow_opt.evidence import PREFIX, from_metrics, from_tags
from mlflow_opt.gate import judge, undecided, worst
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.plugin.trials import Trial
from mlflow_opt.records import Binding, Criterion, Measurement, Policy, Reason, Verdict

# Clocks of laptop and server differ a little; more than this and the evidence's age cannot be trusted.
SKEW_MS = 5 * 60 * 1000
_DAY_MS = 86_400_000
_PARTS = ("", "_lo", "_hi", "_n")


@dataclass(frozen=True)
class Judgement:
    """A verdict with the policy that gave it and the evidence it rests on; `policy` is None where the task is unknown."""

    verdict: Verdict
    policy: Policy | None
    trial: Trial

    @property
    def passed(self) -> bool:
        """Tell whether the version may hold the alias."""
        return self.verdict.passed

    def snapshot(self) -> str:
        """Return the evidence as JSON, for the history: it outlives the run."""
        tags = {key: value for key, value in self.trial.tags.items() if key.startswith(PREFIX)}
        values = {key: [repr(value) for value in logged] for key, logged in self.trial.values.items()}
        return json.dumps({"model_id": self.trial.model_id, "tags": tags, "metrics": values})


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
    reasons += judge(measured, policy).reasons
    reasons += _repeated(trial, policy)
    if binding:
        reasons += _bound(binding, policy, now_ms)
        reasons += _reference(binding, policy, reference or trial.source_model_id)
    return Judgement(Verdict(worst(reasons), tuple(reasons)), policy, trial)


def is_relative(criterion: Criterion) -> bool:
    """Tell whether a criterion compares with a reference model, so that it matters which one.

    Example:
        >>> is_relative(Criterion("slice/two_year/drop_f1", "max", 0.03, "f1")), is_relative(Criterion("f1", "min", 0.5, "f1"))
        (True, False)

    """
    name = criterion.quantity.rsplit("/", 1)[-1]
    return name in (*metrics.RELATIVE, *metrics.PARITY) or name.startswith(("drop_", "rel_drop_"))


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
    return from_metrics({key: values[-1] for key, values in trial.values.items()}, trial.tags)


def _repeated(trial: Trial, policy: Policy) -> list[Reason]:
    keys = [f"gate_{criterion.quantity}{part}" for criterion in policy.criteria for part in _PARTS]
    twice = [key for key in dict.fromkeys(keys) if len(trial.values.get(key, ())) > 1]
    return [undecided(f"{key} was logged {len(trial.values[key])} times, so it is unclear which value was measured.") for key in twice]


def _bound(binding: Binding, policy: Policy, now_ms: int) -> list[Reason]:
    reasons = []
    if binding.policy_digest != policy.digest:
        text = f"the evidence was made for policy {binding.policy_digest}, the policy in force is {policy.digest}; measure again with it."
        reasons.append(undecided(text))
    age_days = (now_ms - binding.measured_at) / _DAY_MS
    if age_days > policy.expires_days:
        reasons.append(undecided(f"evidence is good for {policy.expires_days:g} days, this is {age_days:.1f} days old; measure again."))
    if binding.measured_at > now_ms + SKEW_MS:
        reasons.append(
            undecided(f"evidence must not be from the future, this is {-age_days:.1f} days ahead; set the clock and measure again.")
        )
    if policy.hardware and not fnmatchcase(binding.fingerprint, policy.hardware):
        text = f"evidence must come from a machine like '{policy.hardware}', got '{binding.fingerprint}'; measure there."
        reasons.append(undecided(text))
    return reasons


def _reference(binding: Binding, policy: Policy, expected: str) -> list[Reason]:
    relative = [criterion.quantity for criterion in policy.criteria if is_relative(criterion)]
    if not relative or (expected and binding.reference_model_id == expected != binding.model_id):
        return []
    rule = f"{', '.join(relative)} must compare with the model in production"
    if binding.model_id == expected:
        return [undecided(f"{rule}, and that is this model itself.")]
    if not expected:
        return [
            undecided(
                f"{rule}; there has been none, and the logged model has no tag {PREFIX}source_model_id that says what it was made from."
            )
        ]
    measured = f"'{binding.reference_model_id}'" if binding.reference_model_id else "nothing"
    return [undecided(f"{rule}, '{expected}', but the evidence compares with {measured}; measure again.")]
