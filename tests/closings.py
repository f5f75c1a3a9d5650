"""What a recipe ends with, made of plain values, for tests of what is shown of it."""

from __future__ import annotations

import numpy as np

from mlflow_opt.gate import judge
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Binding, Measurement, Policy, Quantity, Task
from mlflow_opt.reports.report import Closing, Row
from mlflow_opt.runs.proof import Proof

POLICY = parse_policy(
    """
validation_criteria:
  - {metric: speedup, min: 1.2}
  - {metric: roc_auc, max_drop: 0.01}
  - {metric: latency_p99_ms, max: 8}
  - {id: two_year, slice: 'contract == "Two year"', metric: f1, max_drop: 0.03}
"""
)


def scored(seed: int, sharp: float = 1.0) -> Scored:
    """Score a made-up classifier of two classes on 400 rows."""
    rng = np.random.default_rng(seed)
    said = rng.uniform(0.02, 0.98, 400)
    labels = (rng.uniform(size=400) < said).astype(int)
    sure = said**sharp / (said**sharp + (1 - said) ** sharp)
    return score(Task("binary", (0, 1)), labels, np.column_stack([1 - sure, sure]))


def rows() -> list[Row]:
    """Give a baseline and four variants: chosen, passing, missing, refused."""

    def row(name: str, ms: float, auc: float, standing: str) -> Row:
        values = {"roc_auc": auc, "drop_roc_auc": 0.84 - auc, "latency_p50_ms": ms, "speedup": 8 / ms, "size_mb": ms, "label_flips": 2.0}
        if name == "baseline":
            values = {"roc_auc": auc, "latency_p50_ms": ms, "size_mb": ms}
        return Row(name, values, standing=standing, quantities={"latency_p50_ms": Quantity(ms, ms * 0.9, ms * 1.1, 90)})

    return [
        row("baseline", 8.0, 0.84, "baseline"),
        row("quick", 1.0, 0.839, "chosen"),
        row("middling", 2.0, 0.8395, "passes"),
        row("rash", 0.5, 0.7, "misses: drop_roc_auc 0.14 > 0.01"),
        row("<odd>", 0.6, 0.8, "no drop-in: the output is called 'a & b'"),
    ]


def closing(*, version: str = "3", aim: str = "latency") -> Closing:
    """Give what a recipe ends with."""
    params = {"model": "models:/churn/2", "data": "hold out.parquet", "target": "target", "policy": "", "threads": 1}
    facts = {
        "model": "models:/churn/2 (sklearn)",
        "data": "hold_out (7,043 rows)",
        "task": "two classes",
        "where it ran": "cpu=test; cores=2",
    }
    answers = {"baseline": scored(0), "quick": scored(1, 3.0)}
    findings = ("Compiling pays.", "These gate rows have decided 0 verdicts in this experiment before.")
    return Closing("compile", params, rows(), "roc_auc", findings, "churn", version, aim, facts, answers)


def nothing_chosen() -> Closing:
    """Give what a recipe ends with where no variant met the policy."""
    kept = [row for row in rows() if row.standing not in ("chosen", "passes")]
    said = "No variant meets the policy on the selection rows, so nothing was registered. Nearest: rash (drop_roc_auc 0.14 > 0.01)."
    return Closing("compile", {"data": "x.parquet"}, kept, "roc_auc", (said,), "", "")


def proved(policy: Policy = POLICY, **also: Quantity) -> Proof:
    """Give a verdict: everything passes but what is given otherwise."""
    quantities = {
        "speedup": Quantity(8.0, 7.0, 9.1, 400),
        "drop_roc_auc": Quantity(0.001, -0.002, 0.004, 1400),
        "roc_auc": Quantity(0.838, 0.82, 0.85, 1400),
        "latency_p50_ms": Quantity(1.0, 0.9, 1.1, 400),
        "latency_p99_ms": Quantity(2.0, 1.5, 3.0, 400),
        "slice/two_year/drop_f1": Quantity(0.01, -0.01, 0.02, 300),
        "label_flips": Quantity(2.0, 2.0, 2.0, 1400),
        "size_mb": Quantity(1.0, 1.0, 1.0, 1),
    }
    found = Measurement(quantities | also)
    before = Measurement({"latency_p50_ms": Quantity(8.0, 7.5, 8.5, 400), "size_mb": Quantity(8.0, 8.0, 8.0, 1)})
    binding = Binding("m-1", "sha", "gate", "split", policy.digest, "m-0", "cpu=test; cores=2", "binary", 1_700_000_000_000)
    return Proof(judge(found, policy), found, before, binding)
