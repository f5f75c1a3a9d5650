"""Choose among variants: the cheapest, or the best, that meets the policy on the selection rows.

The choice is made on point values, the verdict later on intervals and on rows nobody has seen: few selection rows would
otherwise keep every good variant out, and the best of many noisy variants is flattered by its own noise, so that only a
fresh measurement may promote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mlflow_opt import metrics
from mlflow_opt.records import Criterion, Measurement, Policy

COST = "latency_p50_ms"
# What a recipe looks for: the cheapest variant, the best one, a first model, which nothing can be judged against, or, in a
# chain, the last of its steps.
Aim = Literal["latency", "quality", "first", "last"]


def misses(measured: Measurement, policy: Policy) -> list[str]:
    """Say which criteria a variant's point values do not meet, nearest miss last; a quantity not measured here is left to the gate.

    Example:
        >>> from mlflow_opt.policy import parse_policy
        >>> from mlflow_opt.records import Quantity
        >>> policy = parse_policy("validation_criteria: [{metric: speedup, min: 1.2}]")
        >>> misses(Measurement({"speedup": Quantity(1.1, 1.0, 1.2, 90)}), policy)
        ['speedup 1.1 < 1.2']
    """
    found = []
    for criterion in policy.criteria:
        quantity = measured.quantities.get(criterion.quantity)
        if quantity is not None and not _meets(quantity.value, criterion):
            sign = "<" if criterion.side == "min" else ">"
            found.append(f"{criterion.quantity} {quantity.value:.4g} {sign} {criterion.bound:g}")
    return found


def choice(aim: Aim, measured: Mapping[str, Measurement], policy: Policy, headline: str) -> str:
    """Name the variant that a recipe looks for, `""` if there is none.

    Args:
        aim: cheapest, best, first (the best, whatever the policy says) or last of those that meet the policy.
        measured: variant name to its measurement on the selection rows, in the order made.
        policy: what it must meet.
        headline: a quality metric.
    """
    if aim == "latency":
        return cheapest(measured, policy)
    if aim == "last":
        return next((name for name in reversed(list(measured)) if not misses(measured[name], policy)), "")
    return best(measured, policy if aim == "quality" else Policy(()), headline)


def cheapest(measured: Mapping[str, Measurement], policy: Policy) -> str:
    """Name the variant with the lowest latency among those that miss nothing, `""` if there is none.

    Args:
        measured: variant name to its measurement on the selection rows; a variant without a latency cannot be chosen.
        policy: what it must meet.
    """
    fit = [name for name, values in measured.items() if COST in values.quantities and not misses(values, policy)]
    return min(fit, key=lambda name: measured[name].quantities[COST].value, default="")


def best(measured: Mapping[str, Measurement], policy: Policy, headline: str) -> str:
    """Name the variant with the best headline metric among those that miss nothing, the faster of equals, `""` if there is none.

    Args:
        measured: variant name to its measurement on the selection rows; a variant without a latency cannot be chosen.
        policy: what it must meet.
        headline: a quality metric.
    """
    sign = -1.0 if metrics.larger_is_better(headline) else 1.0
    fit = [name for name, values in measured.items() if {COST, headline} <= set(values.quantities) and not misses(values, policy)]
    quantities = {name: measured[name].quantities for name in fit}
    return min(fit, key=lambda name: (sign * quantities[name][headline].value, quantities[name][COST].value), default="")


def nearest(measured: Mapping[str, Measurement], policy: Policy) -> str:
    """Name the variant that misses the fewest criteria, the faster one of equals, `""` if nothing was measured."""
    timed = [name for name, values in measured.items() if COST in values.quantities]
    return min(timed, key=lambda name: (len(misses(measured[name], policy)), measured[name].quantities[COST].value), default="")


def nothing_chosen(measured: Mapping[str, Measurement], policy: Policy) -> str:
    """Say that nothing was chosen, and which variant came nearest."""
    near = nearest(measured, policy)
    why = "; ".join(misses(measured[near], policy)) if near else "nothing could be timed"
    return f"No variant meets the policy on the selection rows, so nothing was registered. Nearest: {near or 'none'} ({why})."


def standing(name: str, chosen: str, measured: Measurement, policy: Policy) -> str:
    """Say in a few words where a variant stands."""
    if name == chosen:
        return "chosen"
    missed = misses(measured, policy)
    return f"misses: {'; '.join(missed)}" if missed else "passes" if COST in measured.quantities else "not timed"


def quality_bound(policy: Policy, headline: str) -> float:
    """Give the largest drop of the headline metric that the policy allows, 0.01 if it does not speak of it."""
    bounds: Sequence[Criterion] = [c for c in policy.criteria if c.quantity == f"drop_{headline}" and c.side == "max"]
    return min((criterion.bound for criterion in bounds), default=0.01)


def _meets(value: float, criterion: Criterion) -> bool:
    return value >= criterion.bound if criterion.side == "min" else value <= criterion.bound
