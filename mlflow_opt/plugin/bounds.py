"""What evidence is bound to, and whether that is today's: policy, age, machine, rows, reference, who measured, which files.

Each rule answers with reasons that belong to no criterion, so nothing waives them. Pure, as `rules` is.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from mlflow_opt import metrics
from mlflow_opt.gate import undecided
from mlflow_opt.plugin.trials import Trial
from mlflow_opt.records import Binding, Criterion, Policy, Reason
from mlflow_opt.verdicts import signing
from mlflow_opt.verdicts.evidence import PREFIX, model_behind

# Clocks of laptop and server differ a little; more than this and the evidence's age cannot be trusted.
SKEW_MS = 5 * 60 * 1000
_DAY_MS = 86_400_000
_PARTS = ("", "_lo", "_hi", "_n")


def is_relative(criterion: Criterion) -> bool:
    """Tell whether a criterion compares with a reference model, so that it matters which one.

    Example:
        >>> is_relative(Criterion("slice/two_year/drop_f1", "max", 0.03, "f1")), is_relative(Criterion("f1", "min", 0.5, "f1"))
        (True, False)

    """
    name = criterion.quantity.rsplit("/", 1)[-1]
    return name in (*metrics.RELATIVE, *metrics.PARITY) or name.startswith(("drop_", "rel_drop_"))


def repeated(trial: Trial, policy: Policy) -> list[Reason]:
    """Object to a judged metric that was logged more than once: nobody knows which value was measured."""
    keys = [f"gate_{criterion.quantity}{part}" for criterion in policy.criteria for part in _PARTS]
    twice = [key for key in dict.fromkeys(keys) if len(trial.values.get(key, ())) > 1]
    return [undecided(f"{key} was logged {len(trial.values[key])} times, so it is unclear which value was measured.") for key in twice]


def conditions(binding: Binding, policy: Policy, now_ms: int) -> list[Reason]:
    """Object to evidence for another policy, of another age, machine or data set than the policy asks for."""
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
    if policy.data_digest and binding.data_digest != policy.data_digest:
        text = f"evidence must come from the gate rows {policy.data_digest}, got {binding.data_digest}; measure on that data."
        reasons.append(undecided(text))
    return reasons


def reference(binding: Binding, policy: Policy, expected: str) -> list[Reason]:
    """Object to relative criteria that compare with another model than the one in production.

    Args:
        binding: what the evidence says.
        policy: whose criteria may be relative.
        expected: identity of the model in production, or of the source where there has never been one; empty if neither is known.

    """
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


def trust(trial: Trial, policy: Policy) -> list[Reason]:
    """Object to evidence from a place or by a key that the policy does not trust; where it names both, both must hold."""
    reasons = []
    if policy.trusted_experiments and trial.experiment_id not in policy.trusted_experiments:
        ids = ", ".join(policy.trusted_experiments)
        text = f"evidence must lie in an experiment that the policy trusts ({ids}), this lies in {trial.experiment_id}; measure there."
        reasons.append(undecided(text))
    if policy.trusted_keys and (text := signing.objection(trial.run_id, trial.latest, trial.tags, policy.trusted_keys)):
        reasons.append(undecided(text))
    return reasons


def files(location: str, trial: Trial) -> list[Reason]:
    """Object to a version whose files lie elsewhere than those of the logged model that it claims to be.

    Args:
        location: where readers of the version download it from.
        trial: the logged model's evidence.

    """
    if model_behind(location, "") == trial.model_id or location.rstrip("/") == trial.location.rstrip("/"):
        return []
    text = f"the version's files must be those of {trial.model_id} ({trial.location}), they are at {location}; register that model anew."
    return [undecided(text)]
