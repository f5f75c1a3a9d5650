"""What a search over networks has found: its finalists, and in words what it brought and how far it flattered itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_opt import measure
from mlflow_opt.runs import tracking
from mlflow_opt.runs.outcome import Row
from mlflow_opt.search import searching
from mlflow_opt.search.searching import Budget, Tried
from mlflow_opt.session import Session

RUNTIME, RIVAL = "runtime_only", "mobilenetv2"
# Of score and relative latency.
DIRECTIONS = ("maximize", "minimize")


def finalists(tried: Sequence[Tried], count: int) -> list[Tried]:
    """Pick the most accurate trials of the Pareto front that are faster than the model to beat, trained to the end if there are any.

    All of them are fast enough to be worth having, and the fast end of a front seldom keeps the quality that a policy asks for.
    """
    from mlflow_opt.architectures.network_trials import WHOLE

    complete = [one for one in tried if one.state == "complete"]
    whole = [one for one in complete if one.metrics.get(WHOLE)] or complete
    faster = [one for one in whole if one.values[1] < 1] or whole
    return searching.best(faster, DIRECTIONS, len(faster))[:count]


def compared(found: Sequence[Tried], rival: Sequence[Tried]) -> dict[str, float]:
    """Compare the fronts of two searches by hypervolume, from the worst corner that either has seen.

    Returns:
        `hypervolume` and `hypervolume_random`.
    """
    from mlflow_opt.architectures.network_trials import hypervolume

    points = [[(one.values[0], one.values[1]) for one in tried if one.state == "complete"] for tried in (found, rival)]
    every = [*points[0], *points[1]]
    # A little beyond the worst, so that the worst point itself counts.
    worst = (min(score for score, _ in every), 1.01 * max(latency for _, latency in every))
    return {"hypervolume": hypervolume(points[0], worst), "hypervolume_random": hypervolume(points[1], worst)}


def too_short(tried: Sequence[Tried], budget: Budget) -> list[str]:
    """Say so if the time was too short for one trial.

    Args:
        tried: all trials of the study.
        budget: that it had.
    """
    if len(tried) > 1 or not 0 < budget.seconds < tried[0].seconds:
        return []
    return [
        (
            f"time_budget_s={budget.seconds:g} is shorter than a trial ({tried[0].seconds:.0f} s): only the first was run, to its end, and "
            f"that is no search; give {20 * tried[0].seconds:.0f} or more."
        )
    ]


def advise(work: Session, rows: Sequence[Row], searched: Mapping[str, float], volumes: Mapping[str, float]) -> list[str]:
    """Say what the figures mean: the runtime's share, the gain over what was there, the rival, and how far the search flattered itself."""
    known = {row.name: row.metrics for row in rows if "latency_p50_ms" in row.metrics}
    if RUNTIME not in known:
        return []
    told = [f"The runtime alone answers one row {known[RUNTIME]['speedup']:.2f}x as fast as the baseline."]
    mobile = known.get(RIVAL)
    for name in searched:
        mine = known.get(name)
        if mine is not None:
            told.append(_against(name, mine, known[RUNTIME], "the baseline in the same runtime", work.headline))
            told += [_against(name, mine, mobile, RIVAL, work.headline)] if mobile else []
    if volumes:
        tracking.log_values(work.parent.run_id, volumes)
        better = "dominates more than" if volumes["hypervolume"] > volumes["hypervolume_random"] else "does not beat"
        told.append(
            f"The search's front {better} random search's of the same budget: hypervolume {volumes['hypervolume']:.4f} against "
            f"{volumes['hypervolume_random']:.4f}."
        )
    return [*told, *_gap(work, rows, searched)]


def _gap(work: Session, rows: Sequence[Row], searched: Mapping[str, float]) -> list[str]:
    """Compare the score that a search saw with that on gate rows; the choice has been made."""
    made = {one.variant.name: one.model for one in work.candidates}
    name = next((row.name for row in rows if row.standing == "chosen" and row.name in searched), next(iter(searched), ""))
    if not name:
        return []
    which = "accuracy" if work.task.classes else "r2"
    unseen = measure.quality(made[name], work.split.gate, work.task, work.own).values[which]
    tracking.log_values(work.parent.run_id, {"search_score": searched[name], "unseen_score": unseen, "search_gap": searched[name] - unseen})
    rows_seen = len(work.split.gate.labels)
    return [
        (
            f"{name}: {which} {searched[name]:.4f} in the search (short training, train rows held out), {unseen:.4f} on {rows_seen} "
            f"gate rows after full training: a gap of {searched[name] - unseen:+.4f}."
        )
    ]


def _against(name: str, mine: Mapping[str, float], other: Mapping[str, float], whom: str, headline: str) -> str:
    faster, smaller = other["latency_p50_ms"] / mine["latency_p50_ms"], mine["parameters"] / other["parameters"]
    gained = mine[headline] - other[headline]
    fewer = mine["macs"] / other["macs"]
    return (
        f"{name} against {whom}: {faster:.2f}x as fast, {smaller:.2f} of its parameters, {fewer:.2f} of its multiplications, "
        f"{headline} {gained:+.4f}."
    )
