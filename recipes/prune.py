"""Prune a model: trees to fewer and smaller ones, networks to fewer channels, neurons and heads; compiled, and measured.

Trees: a large sum of trees mostly repeats itself. Four ways to make it smaller are tried, each as far as validation rows
allow: `rounds` keeps the first rounds or trees of the model as it is; `leaves` merges subtrees by cost-complexity, dearest
last; `depth` cuts every tree at a depth; `refit` trains the model again with larger steps, fewer rounds and fewer leaves,
which nearly always goes furthest, and then merges leaves of that. Where LightGBM is trained again, its leaves are also learnt
anew together (`refined`), which costs a row nothing and wins back much of what fewer rounds lose.

Networks: `structured` really removes channels, neurons and attention heads, with all that depends on them, from the layers
whose loss grows least for the multiplications saved, in steps with fine-tuning after each; where the policy bounds latency,
the rate is found by measuring. `unstructured` sets single weights to zero, which makes the file compress well and a dense
runtime no faster. `dense_finetuned`, the whole network trained on for as long, makes the comparison fair, and every variant
is also scored under noise and on damaged rows, where pruned networks fail first.

Sizes are found on calibration and train rows, chosen among on selection rows, judged on gate rows. `runtime_only` is the model
as it is in ONNX Runtime, so that what compiling gains is not counted as pruning's.

Helps boosted trees and forests of hundreds of trees (ten times less latency for half a point of ROC AUC is usual), and networks
that are larger than their task. Does not help linear models, which have nothing to cut, pipelines whose time goes into
encoding columns, or networks so small that calling them is what costs.

References: Breiman, Friedman, Olshen, Stone 1984, "Classification and Regression Trees" (cost-complexity pruning); Friedman
2001, "Greedy function approximation: a gradient boosting machine" (rounds against step size); Ren et al. 2015, "Global refinement
of random forest" (leaves learnt together); Molchanov et al. 2019, "Importance
estimation for neural network pruning"; Fang et al. 2023, "DepGraph: towards any structural pruning"; Zhu & Gupta 2017, "To prune,
or not to prune".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from mlflow_opt import session
from mlflow_opt.models import Model
from mlflow_opt.records import Verdict
from mlflow_opt.runs import choosing
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.workbench import network_pruning, tree_workbench

Way = Literal["all", "rounds", "leaves", "depth", "refit", "structured", "unstructured"]
Importance = Literal["taylor", "magnitude", "batchnorm"]


def advise(rows: Sequence[Row], headline: str) -> list[str]:
    """Say what the runtime and what pruning brought, apart, and which way went furthest."""
    timed = {row.name: row.metrics for row in rows if "latency_p50_ms" in row.metrics}
    if not {"baseline", "runtime_only"} <= set(timed):
        return []
    runtime = timed["runtime_only"]
    pruned = {name: values for name, values in timed.items() if name not in ("baseline", "runtime_only")}
    batch = runtime.get("throughput_ratio", float("nan"))
    found = [f"The runtime alone answers one row {runtime['speedup']:.1f}x and a batch {batch:.1f}x as fast."]
    if not pruned:
        return [*found, "Nothing could be pruned within the loss that is allowed."]
    name = min(pruned, key=lambda one: pruned[one]["latency_p50_ms"])
    values = pruned[name]
    gain = runtime["latency_p50_ms"] / values["latency_p50_ms"]
    batch = values.get("throughput_rows_per_s", float("nan")) / runtime.get("throughput_rows_per_s", float("nan"))
    found.append(
        f"The fastest, {name}, answers one row {gain:.1f}x and a batch {batch:.1f}x as fast as the model as it is in the same runtime, "
        f"with {values['decisions_per_row']:.0f} decisions a row instead of {runtime['decisions_per_row']:.0f}, and loses "
        f"{values[f'drop_{headline}']:+.4f} {headline} on the selection rows."
    )
    if gain < 1.05:
        found.append("Pruning does not pay for this model here: its time goes into something else than its trees.")
    return found


def prune(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    method: Way = "all",
    allowed_drop: float = 0.0,
    rates: str = "0.5,0.7",
    importance: Importance = "taylor",
    epochs: int = 6,
    steps: int = 2,
    speedup: float = 0.0,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Prune trees to fewer rounds and leaves, networks to fewer channels and heads, as far as the allowed loss of quality goes.

    Helps boosted trees and forests with hundreds of trees, and networks larger than their task. Does not help linear models,
    or pipelines that spend their time on encoding columns; the recipe says so with the figures.

    Example:
        mlflow run . -e prune -P model=models:/churn/3 -P data=holdout.parquet -P register_as=churn
        mlflow run . -e prune -P model=models:/digits/3 -P data=digits.npz -P epochs=12 -P register_as=digits

    Args:
        model: MLflow model URI: LightGBM, scikit-learn trees, also in a pipeline, XGBoost; for arrays a torch network, or a variant
            that carries one; empty trains the default model on the data.
        data: parquet, csv, npz, folder, MLflow URI or a bundled name; a table for trees, arrays for networks.
        target: name of the target column or array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        method: `all`, or one way: of trees `rounds`, `leaves`, `depth`, `refit`; of networks `structured`, `unstructured` (every way
            to set zeros; `all` adds only one of them).
        allowed_drop: most that the headline metric may lose on validation rows, 0.005 is half a point, and four times as much
            the log loss in relation; 0 takes half of what the policy allows, since the verdict adds the gate rows' uncertainty.
            Of a network: once a rate loses more on the selection rows, larger ones are left out.
        rates: of a network: shares of the multiplications to remove, or of the weights to set to zero, by commas.
        importance: of a network: what ranks channels and heads: `taylor`, `magnitude` or `batchnorm` (its scales).
        epochs: of fine-tuning each network.
        steps: in which a network's channels are removed, with fine-tuning after each.
        speedup: of a network over the unpruned one in the same runtime, to be found by measuring; 0 reads it from the policy's bounds.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model has no trees and no layers that can be pruned, or the data does not fit it.

    References:
        Breiman et al. 1984; Friedman 2001; Molchanov et al. 2019; Fang et al. 2023; Zhu & Gupta 2017.
    """
    network_pruning.wish_of(locals())
    if allowed_drop < 0:
        raise ValueError(
            f"allowed_drop must not be negative, got {allowed_drop}; 0.005 is half a point, 0 takes half of what the policy allows."
        )
    with session.start("prune", locals()) as work:
        allowed = allowed_drop or choosing.quality_bound(work.policy, work.headline) / 2
        _require_fit(work.model, method, table=isinstance(work.example, pd.DataFrame))
        if isinstance(work.example, pd.DataFrame):
            tree_workbench.prune_trees(work, method, allowed)
            return work.conclude(lambda rows: advise(rows, work.headline))
        network_pruning.prune_network(work, network_pruning.wish_of(work.params, allowed))
        return work.conclude(lambda rows: network_pruning.advise(rows, work.headline))


def _require_fit(model: Model, method: Way, *, table: bool) -> None:
    """Refuse a way that is of the other kind of model; what has no trees or layers is found when they are looked for."""
    if table and model.flavour == "torch":
        raise ValueError("a network is pruned on arrays, the data are a table; give an npz of what it was trained on, or a model of trees.")
    ways = ("rounds", "leaves", "depth", "refit") if table else ("structured", "unstructured")
    if method not in ("all", *ways):
        raise ValueError(f"method must be all, {', '.join(ways)} for {'a table' if table else 'arrays'}, got {method}; give one of these.")


if __name__ == "__main__":
    run(prune)
