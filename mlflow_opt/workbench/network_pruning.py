"""Prune a network within a session, and say what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_opt.runs import candidates
from mlflow_opt.runs.outcome import Row
from mlflow_opt.session import Session
from mlflow_opt.workbench import retraining
from mlflow_opt.workbench.pruning_variants import DENSE, RUNTIME, Method, Trainer, Wish, under_stress
from mlflow_opt.workbench.sparse_pruning import add_unstructured
from mlflow_opt.workbench.structured_pruning import add_structured


def wish_of(given: Mapping[str, Any], allowed_drop: float = 0.0) -> Wish:
    """Read a wish from the recipe's parameters.

    Args:
        given: the parameters.
        allowed_drop: after which larger rates are left out.

    Raises:
        ValueError: the rule that is broken.
    """
    try:
        rates = tuple(float(one) for one in str(given["rates"]).split(","))
    except ValueError as error:
        raise ValueError(f"rates must be numbers in (0, 1) by commas, got '{given['rates']}'; 0.5,0.7 is usual.") from error
    method: Method = given["method"] if given["method"] in ("structured", "unstructured") else "all"
    return Wish(method, rates, allowed_drop, given["importance"], int(given["epochs"]), int(given["steps"]), float(given["speedup"]))


def prune_network(work: Session, wish: Wish) -> None:
    """Add every variant that the user asks for, beside `runtime_only` and `dense_finetuned`.

    Raises:
        ValueError: the network cannot be trained, or nothing of it can be removed.
    """
    _require_followed(work, wish.method)
    with retraining.start(work) as course:
        trainer = Trainer(course, wish)
        runtime = trainer.add_unpruned()
        candidates.note(work.baseline, under_stress(work, work.model))
        trainer.add(DENSE, course.learner.module, {"method": "none"})
        if wish.method in ("structured", "all"):
            add_structured(trainer, runtime)
        if wish.method in ("unstructured", "all"):
            add_unstructured(trainer)


def advise(rows: Sequence[Row], headline: str) -> list[str]:
    """Say what the figures mean: the runtime's share and pruning's, multiplications against latency, robustness, and zeros."""
    timed = {row.name: row.metrics for row in rows if "latency_p50_ms" in row.metrics}
    if RUNTIME not in timed or "baseline" not in timed:
        return []
    dense = timed[RUNTIME]
    gain = timed["baseline"]["latency_p50_ms"] / dense["latency_p50_ms"]
    told = [f"The runtime alone answers one row {gain:.2f}x as fast as the baseline."]
    fair = timed.get(DENSE, dense)
    for name, found in timed.items():
        if name.startswith("pruned"):
            lost = {kind: found[f"{kind}{headline}"] - fair[f"{kind}{headline}"] for kind in ("", "noisy_", "damaged_")}
            less, faster = dense["macs"] / found["macs"], dense["latency_p50_ms"] / found["latency_p50_ms"]
            told.append(
                f"{name}: {less:.1f}x fewer multiplications, {faster:.2f}x faster than unpruned in the same runtime; {headline} "
                f"{lost['']:+.4f} against the dense network trained as long, {lost['noisy_']:+.4f} under noise, "
                f"{lost['damaged_']:+.4f} on damaged rows."
            )
    return told + _on_zeros(timed, dense)


def _require_followed(work: Session, method: Method) -> None:
    """Refuse what cannot be pruned before anything is trained or exported, and name the place in the user's code."""
    from mlflow_opt.networks.network_learners import learner_for
    from mlflow_opt.pruning.channel_graph import couplings_of, require_followed

    learner = learner_for(work.model, work.split)
    rows = learner.inputs(work.calibration(3))
    if method == "unstructured":
        require_followed(learner.module, rows)
    else:
        couplings_of(learner.module, rows)


def _on_zeros(timed: Mapping[str, Mapping[str, float]], dense: Mapping[str, float]) -> list[str]:
    zeros = {name: found for name, found in timed.items() if name.startswith("zeros")}
    if not zeros:
        return []
    name, found = max(zeros.items(), key=lambda one: one[1]["sparsity"])
    gain, space = dense["latency_p50_ms"] / found["latency_p50_ms"], found["compressed_mb"] / dense["compressed_mb"]
    return [
        (
            f"Zeros do not speed up a dense runtime: {name}, with {found['sparsity']:.0%} zeros, answers one row {gain:.2f}x as fast as "
            f"the unpruned network in the same runtime; compressed it takes {space:.2f} of its space. What would be faster: "
            "removing channels (method=structured) or 8-bit integers (quantize)."
        )
    ]
