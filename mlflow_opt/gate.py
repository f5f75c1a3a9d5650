"""Judge a measured candidate against a policy: pure, without MLflow and without I/O, so the server's hook and the laptop agree.

The rule is one-sided on intervals: a criterion holds only if the unfavourable end of the quantity's interval meets the
bound. It fails if even the favourable end does not; between the two the evidence does not decide and the answer is
INCONCLUSIVE. Whatever is missing, not finite, or measured on too noisy a machine is never a PASS.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlflow_opt.records import Criterion, Measurement, Outcome, Policy, Quantity, Reason, Verdict

# Below this many samples a 99th percentile is a guess about the largest values seen (DESIGN: p99 only from >= 200).
P99_SAMPLES = 200


def judge(candidate: Measurement, policy: Policy) -> Verdict:
    """Decide whether a measured candidate meets every criterion of a policy.

    Use it wherever a decision is taken; it never measures. It cannot tell whether the intervals are honest: that is
    `measure`'s part and, for evidence that came from elsewhere, the trusted key's or experiment's.

    Example:
        >>> from mlflow_opt.records import Criterion, Measurement, Policy, Quantity
        >>> policy = Policy(criteria=(Criterion("speedup", "min", 1.2, "speedup"),))
        >>> judge(Measurement({"speedup": Quantity(1.5, 1.4, 1.6, 400)}), policy).outcome.value
        'PASS'
        >>> judge(Measurement({"speedup": Quantity(1.5, 1.1, 1.9, 400)}), policy).outcome.value
        'INCONCLUSIVE'
        >>> judge(Measurement({}), policy).outcome.value
        'INCONCLUSIVE'

    Args:
        candidate: the candidate's quantities; relative ones (`speedup`, `drop_f1`) name their reference.
        policy: the criteria; an empty policy decides nothing and is INCONCLUSIVE.

    Returns:
        FAIL if any criterion fails, else INCONCLUSIVE if any is undecided or the machine was in doubt, else PASS.

    """
    reasons = [_decide(criterion, candidate) for criterion in policy.criteria]
    if not policy.criteria:
        reasons.append(undecided("the policy has no criteria, so nothing was proven; add at least one to validation_criteria."))
    if candidate.doubt:
        reasons.append(undecided(f"the machine was too noisy to judge: {candidate.doubt}; measure again when it is quiet."))
    return Verdict(worst(reasons), tuple(reasons))


def undecided(text: str) -> Reason:
    """Make a reason that belongs to no criterion and keeps the verdict from being a PASS."""
    return Reason(None, None, Outcome.INCONCLUSIVE, text)


def worst(reasons: Iterable[Reason]) -> Outcome:
    """Combine reasons: one FAIL fails, one doubt leaves it undecided, and no reason at all proves nothing."""
    outcomes = {reason.outcome for reason in reasons}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE


def _decide(criterion: Criterion, candidate: Measurement) -> Reason:
    measured = candidate.quantities.get(criterion.quantity)
    name, bound = criterion.quantity, criterion.bound
    rule = f"{name} must be {'at least' if criterion.side == 'min' else 'at most'} {bound:g}"
    if measured is None:
        return Reason(criterion, None, Outcome.INCONCLUSIVE, f"{rule}, but it was not measured.")
    if not measured.usable:
        return Reason(criterion, measured, Outcome.INCONCLUSIVE, f"{rule}, got {_show(measured)}, which is not a usable value.")
    if name.endswith("latency_p99_ms") and measured.n < P99_SAMPLES:
        return Reason(criterion, measured, Outcome.INCONCLUSIVE, f"{rule}, but a p99 needs {P99_SAMPLES} samples, got {measured.n}.")
    unfavourable, favourable = (measured.lo, measured.hi) if criterion.side == "min" else (measured.hi, measured.lo)
    if _meets(unfavourable, criterion):
        return Reason(criterion, measured, Outcome.PASS, f"{rule}: {_show(measured)}.")
    if not _meets(favourable, criterion):
        return Reason(criterion, measured, Outcome.FAIL, f"{rule}, got {_show(measured)}.")
    advice = "more rows or more timing would decide it" if _meets(measured.value, criterion) else "the value itself misses the bound"
    return Reason(criterion, measured, Outcome.INCONCLUSIVE, f"{rule}, got {_show(measured)}; {advice}.")


def _meets(value: float, criterion: Criterion) -> bool:
    return value >= criterion.bound if criterion.side == "min" else value <= criterion.bound


def _show(measured: Quantity) -> str:
    return f"{measured.value:.4g} [{measured.lo:.4g}, {measured.hi:.4g}] from {measured.n} samples"
