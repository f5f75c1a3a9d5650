"""Runs as recipes leave them, written through the same functions, for tests of what reads runs."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_opt.gate import judge
from mlflow_opt.plugin.context import HARDWARE
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Binding, Measurement, Quantity
from mlflow_opt.runs import tracking
from mlflow_opt.runs.stored_runs import Result
from mlflow_opt.verdicts import evidence

MACHINE = "arch=x86_64; cores=2; cpu=test"
POLICY = parse_policy("validation_criteria: [{metric: speedup, min: 1.05}, {metric: roc_auc, max_drop: 0.01}]")


def quality(roc_auc: float, ms: float, speedup: float = 1.0, drop: float = 0.0) -> dict[str, float]:
    """Give the metrics of a variant on the selection rows of a task of two classes."""
    values = {"roc_auc": roc_auc, "average_precision": roc_auc - 0.1, "accuracy": 0.8, "latency_p50_ms": ms, "size_mb": ms}
    return values | {"speedup": speedup, "drop_roc_auc": drop, "throughput_rows_per_s": 1000 / ms}


def judged(speedup: float, drop: float, width: float = 0.05) -> tuple[dict[str, float], dict[str, str]]:
    """Give the metrics and tags of a verdict."""
    found = Measurement(
        {
            "speedup": Quantity(speedup, speedup * (1 - width), speedup * (1 + width), 400),
            "drop_roc_auc": Quantity(drop, drop - width / 20, drop + width / 20, 1400),
        }
    )
    verdict = judge(found, POLICY)
    binding = Binding("m-1", "d", "g", "s", POLICY.digest, "m-0", MACHINE, "binary", 1)
    return evidence.to_metrics(found, POLICY, verdict), evidence.to_tags(binding, verdict.outcome)


def store(
    recipe: str, variants: Mapping[str, tuple[Mapping[str, float], Mapping[str, str]]], *, rows: str = "churn", status: str = "FINISHED"
) -> str:
    """Write a recipe's run with a child run a variant; returns its id.

    Args:
        recipe: its name.
        variants: name to metrics and tags.
        rows: name of the data.
        status: that the parent ends with.
    """
    parent = tracking.open_parent(recipe, {"data": rows}, {"mlflow_opt.recipe": recipe, HARDWARE: MACHINE})
    selection = tracking.dataset_input(f"{rows}.selection", f"digest-of-{rows}", rows, "selection", {"rows": 100})
    for name, (values, tags) in variants.items():
        ours = {"mlflow_opt.recipe": recipe, "mlflow_opt.variant": name, **tags}
        child = tracking.log_finished_child(parent, name, values, {"variant": name}, ours)
        tracking.log_inputs(child, [selection])
    tracking.close(parent.run_id, status)
    return parent.run_id


def standing(word: str) -> dict[str, str]:
    """Give the tag that says where a recipe left a variant."""
    return {"mlflow_opt.standing": word}


def result(name: str, ms: float, auc: float = 0.8, **also: object) -> Result:
    """Give a stored variant without a store; the baseline takes 10 ms and has a roc_auc of 0.8."""
    values = {"latency_p50_ms": ms, "roc_auc": auc, "speedup": 10 / ms, "drop_roc_auc": 0.8 - auc, "size_mb": ms}
    known = {"recipe": "compile", "parent_id": "p", "standing": "", "task": "binary", "rows": "churn.selection 1", "machine": "m"}
    # The fields are given by name, of types that a dict cannot tell apart.
    return Result(**{**known, "name": name, "run_id": name, "values": values, **also})  # type: ignore[arg-type]


def evidence_of(speedup: float, drop: float) -> Measurement:
    """Give what a verdict measured, as it is read back from its run."""
    return evidence.from_metrics(*judged(speedup, drop))
