"""What a chain of recipes asks of its steps, and what it tells in the end: what became of each, and what it brought."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt import measure, policy
from mlflow_opt.measurement import pairing
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.records import Policy, Quantity
from mlflow_opt.reports import report_page, waterfall
from mlflow_opt.reports.report import Exhibit, text_table
from mlflow_opt.reports.waterfall import Level
from mlflow_opt.runs import step_runs, tracking
from mlflow_opt.runs.chaining import Step
from mlflow_opt.verdicts.evidence import PREFIX

if TYPE_CHECKING:
    from mlflow_opt.session import Session

# Steps that are taken for quality: a model that is a little slower is no reason against them.
_FOR_QUALITY = ("tune", "regularize", "threshold")
_SLOWER, _FASTER = 0.7, 1.05
_LOSSES = ("drop_", "rel_drop_", "label_flips", "max_abs_diff")
# As `serve` stores it.
_SETTINGS = PREFIX + "serving"


@dataclass(frozen=True)
class Served:
    """What a client waits for one row over HTTP, in ms, and the share that is saved in the end.

    Args:
        before: the first model under `mlflow models serve`.
        server: the same model under this server.
        after: the last model under this server.
        saved: share of `before` that `after` saves.
    """

    before: Quantity
    server: Quantity
    after: Quantity
    saved: Quantity


def step_policy(recipe: str, rules: Policy, task: str) -> Policy:
    """Say what a step must meet: the policy's bounds on losses, and to be faster than the model before it, or for quality hardly slower.

    Absolute bounds and the whole speed-up are asked of the end of a chain: its first steps cannot meet them.

    Args:
        recipe: of the step.
        rules: the policy for the end.
        task: of the data.
    """
    least = _SLOWER if recipe in _FOR_QUALITY else _FASTER
    speed = [one for one in policy.default_policy(task, least).criteria if one.quantity == "speedup"]
    losses = [one for one in rules.criteria if one.quantity.rsplit("/", 1)[-1].startswith(_LOSSES)]
    return policy.with_criteria(rules, [*speed, *losses])


def policy_file(recipe: str, work: Session) -> tuple[str, str]:
    """Write the policy of a step where its process reads it; give path and digest, empty where the step has its default one."""
    if not work.params["policy"]:
        return "", ""
    rules, path = step_policy(recipe, work.policy, work.task.kind), work.folder / f"{recipe}.yaml"
    path.write_text(policy.policy_text(rules), encoding="utf-8")
    return str(path), rules.digest


def begun(work: Session, first: Sequence[Step]) -> None:
    """Write down where the first model came from: the recipe `baseline`, or the user."""
    for step in first:
        step_runs.mark(step.run_id, step_runs.PIPELINE, work.parent.run_id)
    told = {"standing": first[0].standing, "reason": first[0].reason, "step_run": first[0].run_id} if first else {}
    work.trial("step_baseline", told or {"standing": "skipped", "reason": "a model was given", "step_run": ""}, {})


def hand_on_settings(source_id: str, target_id: str) -> None:
    """Give the chain's own copy of a model the server settings that were found for it."""
    said = tracking.model_tags(source_id).get(_SETTINGS, "")
    if said and source_id != target_id:
        tracking.tag_model(target_id, {_SETTINGS: said})


def tell(work: Session, steps: Sequence[Step], served: Served | None) -> None:
    """Write plots and metrics, and the sections that say what became of each step and what it brought."""
    metric = "f1" if work.task.kind == "binary" else work.headline
    stairs = levels(work, metric)
    with tempfile.TemporaryDirectory() as folder:
        waterfall.save(stairs, metric, Path(folder) / "waterfall.png")
        tracking.log_file(work.parent.run_id, Path(folder) / "waterfall.png")
    charts = [report_page.chart(one, "after each step; the table below has the numbers") for one in waterfall.charts(stairs, metric)]
    rows = len(work.split.gate.labels)
    brought = f"{metric} on {rows} rows that no step has seen:\n\n{waterfall.table(stairs, metric)}"
    work.exhibits.append(Exhibit("What each step brought", f"What each step brought, {brought}", "".join(charts)))
    work.exhibits += [Exhibit("What a client waits for", _served_table(served))] if served else []
    work.exhibits.append(Exhibit("What became of each step", _steps_table(steps)))
    whole = stairs[-1].whole_gain
    values = {f"gain_{metric}{end}": getattr(whole, name) for end, name in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))} if whole else {}
    tracking.log_values(work.parent.run_id, values | (_served_values(served) if served else {}))


def levels(work: Session, metric: str) -> list[Level]:
    """Give latency and quality after each step that was kept; quality on the final rows, from which nothing is chosen."""
    kept = [work.baseline, *work.candidates]
    scored = [measure.quality(one.model, work.split.gate, work.task, work.own) for one in kept]
    found = []
    for at, one in enumerate(kept):
        latency = one.plain.get("latency_p50_ms", float("nan"))
        gains = [_gain(scored[at], scored[other], metric, work.seed) for other in (at - 1, 0)] if at else [None, None]
        found.append(Level(one.variant.name, latency, scored[at].values.get(metric, float("nan")), *gains))
    return found


def _gain(ours: Scored, theirs: Scored, metric: str, seed: int) -> Quantity:
    drop = pairing.compare_quality(ours, theirs, seed=seed)[f"drop_{metric}"]
    return Quantity(0.0 - drop.value, 0.0 - drop.hi, 0.0 - drop.lo, drop.n)


def _served_values(served: Served) -> dict[str, float]:
    found = {"baseline_served_p50_ms": served.before, "server_alone_p50_ms": served.server, "served_p50_ms": served.after}
    values = {name: one.value for name, one in found.items()}
    return values | {"served_saved": served.saved.value, "served_saved_lo": served.saved.lo, "served_saved_hi": served.saved.hi}


def _served_table(served: Served) -> str:
    rows = [
        ("the first model, `mlflow models serve`", served.before),
        ("the first model, this server", served.server),
        ("the last model, this server", served.after),
    ]
    body = [[name, f"{one.value:.3g} [{one.lo:.3g}, {one.hi:.3g}]", f"{1 - one.value / served.before.value:.1%}"] for name, one in rows]
    saved = served.saved
    said = f"Served, one row a request over HTTP: {saved.value:.1%} less [{saved.lo:.1%}, {saved.hi:.1%}] from start to end."
    return f"{said}\n\n{text_table(['', 'ms, lowest to highest round', 'saved'], body)}"


def _steps_table(steps: Sequence[Step]) -> str:
    body = [
        [
            step.recipe,
            step.standing,
            step.reason,
            f"{step.seconds:.0f}" if step.seconds else "done before" if step.run_id else "-",
        ]
        for step in steps
    ]
    links = ", ".join(f"[{step.recipe}]({step_runs.link(step.run_id)})" for step in steps if step.run_id)
    table = text_table(["step", "", "why", "seconds"], body)
    return f"What became of each step:\n\n{table}\n\nRuns of the steps: {links or 'none'}"
