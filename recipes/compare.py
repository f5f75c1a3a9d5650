"""Compare techniques by the runs that they left: speed, quality, size and what it took to get them, beside the literature.

It reads stored runs and trains nothing. Runs are compared only where they answered the same rows of the same task; others
form groups of their own. Where a variant was judged its figures are those of the gate rows, with their intervals, else
those of the selection rows, which flatter whatever was chosen by them.

The recommendation is the cheapest (or best) variant that a policy admits. Beside it stands the binding constraint: the
criterion that keeps the next faster variant out, and by how much. That is what a looser bound would buy.

Helps to decide between techniques, and to see what a threshold costs. Does not help where nothing was run yet, and says
nothing about models, data and machines that the runs are not about: the figures of the literature are there to wonder at.

References: Coello Coello, Lamont & Van Veldhuizen 2007, "Evolutionary algorithms for solving multi-objective problems"
(Pareto dominance); Inselberg 1985, "The plane with parallel coordinates".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from mlflow_opt import metrics
from mlflow_opt.gate import judge
from mlflow_opt.records import Measurement, Outcome, Policy, Quantity
from mlflow_opt.runs import choosing, comparison
from mlflow_opt.runs.comparison import Group, Recommendation
from mlflow_opt.runs.stored_runs import BASELINE, Result
from mlflow_opt.signature import run

Aim = Literal["latency", "quality"]
COST = "latency_p50_ms"


def one_each(results: Sequence[Result]) -> list[Result]:
    """Keep of each recipe's run what stands for it: its chosen variant, else the fastest that passed, else the fastest; and its baseline.

    Args:
        results: variants of any runs.
    """
    kept = []
    for parent in dict.fromkeys(one.parent_id for one in results):
        mine = [one for one in results if one.parent_id == parent]
        made = [one for one in mine if one.name != BASELINE]
        rank = {"chosen": 0, "passes": 1}
        kept += [one for one in mine if one.name == BASELINE]
        kept += sorted(made, key=lambda one: (rank.get(one.standing, 2), one.values.get(COST, float("inf"))))[:1]
    return kept


def grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Put together what may be compared: the same task on the same rows. Of baselines that are alike one is kept.

    Args:
        results: variants of any runs.
    """
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(f"{one.task} on {one.rows}", []).append(one)
    return {name: _without_twins(members) for name, members in groups.items() if any(one.name != BASELINE for one in members)}


def pareto_front(members: Sequence[Result]) -> set[str]:
    """Name the runs that no other run of the group beats in both latency and quality.

    Args:
        members: of one group.

    Example:
        >>> def run(name, ms, auc):
        ...     return Result("", name, name, "", "", "binary", "", "", {"latency_p50_ms": ms, "roc_auc": auc})
        >>> sorted(pareto_front([run("a", 1.0, 0.8), run("b", 2.0, 0.9), run("c", 2.0, 0.7)]))
        ['a', 'b']
    """
    sign = 1.0 if metrics.larger_is_better(members[0].headline) else -1.0
    points = {
        one.run_id: (one.values[COST], -sign * one.values[one.headline]) for one in members if {COST, one.headline} <= set(one.values)
    }
    return {
        run_id
        for run_id, point in points.items()
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points.values())
    }


def recommend(members: Sequence[Result], policy: Policy, aim: Aim) -> Recommendation:
    """Recommend a variant: of those that the policy admits the cheapest, or the best; proven ones before promising ones.

    Args:
        members: of one group.
        policy: what must hold.
        aim: what to look for among what holds.
    """
    made = [one for one in members if one.name != BASELINE and COST in one.values]
    outcomes = {one.run_id: judge(one.judged, policy).outcome if one.judged.quantities else None for one in made}
    proven = [one for one in made if outcomes[one.run_id] is Outcome.PASS]
    promising = [one for one in made if outcomes[one.run_id] is not Outcome.FAIL and not choosing.misses(_points(one), policy)]
    fit = proven or promising
    if not fit:
        near = min(made, key=lambda one: (len(choosing.misses(_points(one), policy)), one.values[COST]))
        return Recommendation("", "", proven=False, binding=f"Nothing meets the policy. Nearest: {near.name} ({_why_not(near, policy)}).")
    sign = -1.0 if metrics.larger_is_better(fit[0].headline) else 1.0
    best = min(fit, key=lambda one: (sign * one.values[one.headline] if aim == "quality" else 0.0, one.values[COST]))
    return Recommendation(best.run_id, best.name, proven=bool(proven), binding=_binding(best, made, policy))


def _binding(best: Result, made: Sequence[Result], policy: Policy) -> str:
    faster = sorted((one for one in made if one.values[COST] < best.values[COST]), key=lambda one: -one.values[COST])
    if not faster:
        return f"No constraint binds: nothing that was tried is faster than {best.name}."
    kept_out = [(one, _why_not(one, policy)) for one in faster]
    told = "; ".join(
        f"{one.recipe}: {one.name}, {best.values[COST] / one.values[COST]:.2f}x as fast again ({why})" for one, why in kept_out[:3]
    )
    return f"What binds is what keeps faster variants out: {told}."


def _why_not(one: Result, policy: Policy) -> str:
    decided = [reason.text for reason in judge(one.judged, policy).reasons if reason.outcome is Outcome.FAIL]
    missed = choosing.misses(_points(one), policy)
    return "; ".join(decided or missed) or "it was never judged on the gate rows"


def _points(one: Result) -> Measurement:
    return Measurement({name: Quantity(value, value, value, 1) for name, value in one.values.items()})


def _without_twins(members: Sequence[Result]) -> list[Result]:
    seen: set[float] = set()
    kept = []
    for one in members:
        value = round(one.values.get(one.headline, float("nan")), 9)
        if one.name == BASELINE and value in seen:
            continue
        seen |= {value} if one.name == BASELINE else set()
        kept.append(one)
    return kept


def compare(
    *,
    runs: str = "",
    policy: str = "",
    aim: Aim = "latency",
    each: Literal["auto", "run", "variant"] = "auto",
    tag: bool = True,
) -> None:
    """Compare the variants of stored runs: speed, quality, size and cost of each technique, Pareto front and recommendation.

    Helps to decide between techniques once their recipes have run on the same data, and to see which constraint binds. Does
    not help across data sets or tasks: runs that answered other rows form groups of their own.

    Example:
        mlflow run . -e compare -P runs=mlflow-opt

    Args:
        runs: ids of runs, or names or ids of experiments, with commas between; empty takes the experiment that runs go to now.
        policy: path of a policy file that the recommendation must meet; empty takes the default of the task.
        aim: recommend the cheapest variant (`latency`) or the best one (`quality`) of those that meet the policy.
        each: a line for every `variant`, or one for each `run` of a recipe; `auto` is variants where only one run is compared.
        tag: tag the compared runs with `pareto`, true on those that no other beats.

    Raises:
        ValueError: the selection names nothing, or nothing in it can be compared.

    References:
        Coello Coello et al. 2007; Inselberg 1985.
    """
    with comparison.start("compare", locals()) as work:
        results = work.found.results
        alone = len({one.parent_id for one in results}) == 1
        shown = results if each == "variant" or (each == "auto" and alone) else one_each(results)
        for name, members in grouped(shown).items():
            rules = work.policy(members[0].task, aim)
            work.add(Group(name, tuple(members), pareto_front(members), recommend(members, rules, aim), rules))
        work.conclude(tag=tag)


if __name__ == "__main__":
    run(compare)
