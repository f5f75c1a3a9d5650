"""Structured pruning within a session: which widths, found by sensitivity and measured latency, and the way down to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mlflow_opt import measure
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.models import Model
from mlflow_opt.records import Param, Policy
from mlflow_opt.runs import tracking
from mlflow_opt.workbench.pruning_variants import Trainer, named_by_size, some

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.networks.training import Fitted
    from mlflow_opt.pruning.channel_graph import Couplings

logger = logging.getLogger(__name__)

SEARCHED, NEAREST = "pruned_to_latency", "pruned_nearest"
# What is asked of the search beyond the bound, so that the verdict's interval lies beyond it too.
_MARGIN = 1.05
# Of fine-tuning while units are still being removed; the rest comes at the end.
_SHARE_BETWEEN = 0.5
_TIMING_SESSIONS = 2

Widths = Mapping[str, int]


def add_structured(trainer: Trainer, runtime: Model) -> None:
    """Add a variant for every rate asked for, and one whose rate is found by the latency that is wanted.

    Args:
        trainer: of the variants.
        runtime: the unpruned network in the runtime.
    """
    from mlflow_opt.pruning import channel_importance, channel_widths

    work, wish, module = trainer.course.work, trainer.wish, trainer.module
    graph = trainer.couplings(module)
    ranked = trainer.importances(module, graph)
    sensitive = channel_importance.sensitivities(module, graph, ranked, some(trainer.course.validation), trainer.course.learner.judged)
    tracking.log_text(work.parent.run_id, "sensitivity.md", channel_importance.table(sensitive, graph))
    step = channel_widths.step_of(cpu_features())

    def widths(share: float) -> Widths:
        return channel_widths.choose_widths(graph, sensitive, share, step)

    def add(name: str, share: float, told: Mapping[str, Param]) -> float:
        smaller, spent = _remove(trainer, graph, name, widths(share))
        params = {"method": "structured", "importance": wish.importance, "share_of_macs": round(share, 4), **told}
        return trainer.add(name, smaller, params, spent)

    made: list[Widths] = []
    for rate in sorted(wish.rates):
        name = f"pruned_{round(100 * rate)}"
        if widths(1 - rate) in made:
            work.findings.append(f"{name} was left out: its widths are those of a smaller rate, because widths move in steps of {step}.")
            continue
        made.append(widths(1 - rate))
        drop = add(name, 1 - rate, {})
        if drop > wish.allowed_drop:
            work.findings.append(f"{name} loses {drop:.4f} {work.headline}, more than {wish.allowed_drop:g}: larger rates were left out.")
            break
    wanted = wish.speedup or _asked(trainer, runtime)
    if wanted > 1:
        name, share = _searched(trainer, runtime, wanted, lambda share: _untrained(trainer, graph, widths(share), ranked))
        add(name, share, {"wanted_speedup": round(wanted, 3)})


def pruned(trainer: Trainer, name: str, share: float) -> tuple[Fitted, float]:
    """Prune a trainer's network to a share of its multiplications and fine-tune it; nothing is added.

    Returns:
        The training, and the share that is left.
    """
    from mlflow_opt.pruning import channel_importance, channel_widths

    graph = trainer.couplings(trainer.module)
    ranked, rows = trainer.importances(trainer.module, graph), some(trainer.course.validation)
    sensitive = channel_importance.sensitivities(trainer.module, graph, ranked, rows, trainer.course.learner.judged)
    widths = channel_widths.choose_widths(graph, sensitive, share, channel_widths.step_of(cpu_features()))
    smaller, spent = _remove(trainer, graph, name, widths)
    fitted = trainer.fit(named_by_size(name, smaller), smaller, max(1, trainer.wish.epochs - spent))
    return fitted, trainer.couplings(fitted.module).macs() / graph.macs()


def wanted_speedup(policy: Policy, runtime_over_reference: float, dense_ms: float) -> float:
    """Read from a policy how much faster than the unpruned network in the same runtime a variant must be.

    Example:
        >>> from mlflow_opt.policy import parse_policy
        >>> wanted_speedup(parse_policy("validation_criteria: [{metric: latency_p50_ms, max: 2}]"), 3.0, 5.0)
        2.5

    Args:
        policy: its bounds on `speedup` and `latency_p50_ms` count.
        runtime_over_reference: speed-up of the unpruned network in the runtime over the policy's reference.
        dense_ms: its latency.

    Returns:
        The larger of the two; 1 or less means that the runtime alone is enough, 0 that the policy bounds neither.
    """
    found = [0.0]
    for one in policy.criteria:
        if one.quantity == "speedup" and one.side == "min":
            found.append(one.bound / runtime_over_reference)
        if one.quantity == "latency_p50_ms" and one.side == "max":
            found.append(dense_ms / one.bound if one.bound > 0 else float("inf"))
    return max(found)


def _asked(trainer: Trainer, runtime: Model) -> float:
    timed = _time(trainer, runtime, trainer.course.work.reference)
    return wanted_speedup(trainer.course.work.policy, timed.speedup(0, 1).value, timed.latency(0).value)


def _time(trainer: Trainer, first: Model, second: Model) -> measure.Timings:
    work = trainer.course.work
    return measure.time_models([first, second], work.split.selection.rows, sessions=_TIMING_SESSIONS, threads=work.threads)


def _untrained(trainer: Trainer, graph: Couplings, widths: Widths, ranked: Mapping[int, float]) -> Model:
    """Prune to some widths at once: the latency does not depend on the weights."""
    from mlflow_opt.pruning.channel_pruning import without
    from mlflow_opt.pruning.channel_widths import units_to_remove

    gone = units_to_remove(graph, widths, ranked)
    return trainer.course.work.retrained("tried", without(trainer.module, graph, gone, trainer.course.validation.inputs))


def _searched(trainer: Trainer, runtime: Model, wanted: float, pruned_to: Callable[[float], Model]) -> tuple[str, float]:
    """Find the share of multiplications that reaches a speed-up, and say so where none does; gives the variant's name with it."""
    from mlflow_opt.pruning.channel_widths import search_share

    def speedup_of(share: float) -> float:
        found = _time(trainer, pruned_to(share), runtime).speedup(0, 1).value
        logger.info("%.0f%% of the multiplications answer one row %.2fx as fast in the same runtime.", 100 * share, found)
        return found

    share, tried = search_share(speedup_of, wanted * _MARGIN)
    reached = max(one.speedup for one in tried)
    if reached >= wanted:
        return SEARCHED, share
    trainer.course.work.findings.append(
        f"No widths reach the {wanted:.4g}x over the unpruned network that was asked for: leaving {share:.0%} of the multiplications gave "
        f"{tried[-1].speedup:.2f}x. It is kept as the nearest."
    )
    return NEAREST, share


def _remove(trainer: Trainer, graph: Couplings, name: str, final: Widths) -> tuple[nn.Module, int]:
    """Remove units step by step down to the final widths, with some epochs after every step but the last.

    Returns:
        The network and the epochs spent.
    """
    from mlflow_opt.pruning.channel_pruning import without
    from mlflow_opt.pruning.channel_widths import units_to_remove

    module, spent, steps = trainer.module, 0, trainer.wish.steps
    full = {family.name: len(family.units) for family in graph.families}
    between = int(_SHARE_BETWEEN * trainer.wish.epochs / (steps - 1)) if steps > 1 else 0
    for step in range(1, steps + 1):
        now = {key: max(width, round(full[key] * (width / full[key]) ** (step / steps))) for key, width in final.items()}
        graph = trainer.couplings(module)
        gone = units_to_remove(graph, now, trainer.importances(module, graph))
        module = without(module, graph, gone, trainer.course.validation.inputs)
        if step < steps and between:
            module = trainer.fit(named_by_size(f"{name}_step{step}", module), module, between).module
            spent += between
    return module, spent
