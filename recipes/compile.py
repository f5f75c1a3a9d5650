"""Compile a model to ONNX Runtime, compare graph optimisations and thread counts, and measure how equal the answers stay.

Helps most where the Python around a model costs more than the model: a scikit-learn pipeline or a LightGBM model at one
row is 20-100x faster, a small torch network 2-4x. Helps little in large batches of trees, where LightGBM is already fast,
and not at all if a step of the pipeline has no ONNX operator; then the message names the step.

Equal is measured, not assumed. Trees are exported in double precision, which keeps every decision, and once more in single
precision (`ort_float32`): its nodes take a quarter less memory, thresholds are rounded down so that no number of single
precision changes its side, and other numbers next to a threshold may. `label_flips` and `max_abs_diff` are on every variant,
and a policy can bound both. For LightGBM its own quick call for one row is timed as well (`lightgbm_single_row`): it is shown
and never chosen, because a drop-in must not need LightGBM; `serve` uses it for a LightGBM model that is served as it is.

References: ONNX Runtime, "Graph optimizations in ONNX Runtime" (documentation); Nakandala et al. 2020, "A tensor compiler
for unified machine learning prediction serving" (why compiled pipelines win at small batches).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Literal, get_args

from mlflow_opt import session
from mlflow_opt.export import exporting
from mlflow_opt.export.dropin import SessionOptions
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.flavours import single_row
from mlflow_opt.models import Model
from mlflow_opt.records import Variant, Verdict
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run

Level = Literal["all", "extended", "basic", "disable"]
SHOWN_ONLY = "shown for comparison: MLflow's pyfunc cannot call it, `serve` does"

logger = logging.getLogger(__name__)


def settings_for(threads: int, cores: int) -> dict[str, SessionOptions]:
    """List the runtime settings worth comparing: each graph optimisation level, and the whole machine for one call.

    Args:
        threads: threads that one prediction may use; variants with more are shown and never chosen.
        cores: of this machine.

    Example:
        >>> list(settings_for(1, 2))
        ['ort_all', 'ort_extended', 'ort_basic', 'ort_disable', 'ort_all_2_threads']
    """
    levels: tuple[Level, ...] = get_args(Level)
    found = {f"ort_{level}": SessionOptions(threads=threads, graph_level=level) for level in levels}
    if cores > threads:
        found[f"ort_all_{cores}_threads"] = SessionOptions(threads=cores, graph_level="all")
    return found


def has_trees(model: Model, graph: OnnxGraph) -> bool:
    """Tell whether an export holds trees in double precision, and the model can be exported in single."""
    doubles = any(one.dtype == "float64" for one in graph.binding.inputs)
    return model.flavour in ("sklearn", "lightgbm") and doubles and any(node.op_type == "TreeEnsemble" for node in graph.proto.graph.node)


def advise(rows: Sequence[Row]) -> list[str]:
    """Say what the figures mean: what compiling brought, whether more threads help one row, whether answers changed."""
    timed = {row.name: row.metrics for row in rows if "latency_p50_ms" in row.metrics}
    found = []
    if "ort_all" in timed and "baseline" in timed:
        gain, batch = timed["ort_all"]["speedup"], timed["ort_all"].get("throughput_ratio", float("nan"))
        found.append(f"Compiling answers one row {gain:.1f}x as fast as the model's own call, and a batch {batch:.1f}x as fast.")
        if gain < 1.05:
            found.append("Compiling does not pay for this model here; keep it as it is.")
    wide = [name for name in timed if name.endswith("_threads")]
    if wide and "ort_all" in timed:
        ratio = timed["ort_all"]["latency_p50_ms"] / timed[wide[0]]["latency_p50_ms"]
        found.append(f"{wide[0]} answers one row {ratio:.2f}x as fast as ort_all; what it gains, concurrent requests lose.")
    for name in ("ort_all", "ort_float32"):
        flips = timed.get(name, {}).get("label_flips", 0.0)
        if flips:
            found.append(f"{name}: {flips:.0f} labels differ on the selection rows: bound label_flips in the policy if that matters.")
    if "ort_float32" in timed and "ort_all" in timed:
        ratio = timed["ort_all"]["latency_p50_ms"] / timed["ort_float32"]["latency_p50_ms"]
        far = timed["ort_float32"].get("max_abs_diff", 0.0)
        found.append(f"Single precision answers one row {ratio:.2f}x as fast as double; no score differs by more than {far:.1g}.")
    if "lightgbm_single_row" in timed and "ort_all" in timed:
        ratio = timed["lightgbm_single_row"]["latency_p50_ms"] / timed["ort_all"]["latency_p50_ms"]
        found.append(f"ort_all answers one row {ratio:.2f}x as fast as LightGBM's own quick call, which needs no export.")
    return found


def compile(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    every: bool = True,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Compile a model to ONNX Runtime as a drop-in, with the graph optimisation and threads that measure fastest.

    Helps scikit-learn pipelines, LightGBM and small networks most at one row. Does not help models whose own runtime is
    already fast in the batch size that you serve; the recipe says so with the figures.

    Example:
        mlflow run . -e compile -P model=models:/churn/3 -P data=holdout.parquet -P register_as=churn

    Args:
        model: MLflow model URI (scikit-learn, LightGBM, XGBoost, torch, ONNX); empty trains the default model on the data.
        data: parquet, csv, npz, folder, MLflow URI or a bundled name.
        target: name of the target column or array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        every: compare all graph optimisations, thread counts and precisions; false compiles once, with all optimisations.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: a step of the model has no ONNX operator, or the data does not fit the model.

    References:
        ONNX Runtime documentation, "Graph optimizations"; Nakandala et al. 2020.
    """
    with session.start("compile", locals()) as work:
        graph = exporting.to_onnx(work.model, work.example, work.task)
        settings = settings_for(threads, os.cpu_count() or 1) if every else {"ort_all": SessionOptions(threads=threads)}
        trees = every and has_trees(work.model, graph)
        quick = every and work.model.flavour == "lightgbm" and not work.model.runtime.categories
        work.expect(len(settings) + trees + quick)
        for name, options in settings.items():
            params = {"runtime": "onnxruntime", "graph_level": options.graph_level, "threads_used": options.threads}
            work.add(Variant(name, work.dropin(name, graph, options), params))
        if trees:
            _add_single_precision(work)
        if quick:
            copied = single_row.save_quick(work.model, work.scratch("lightgbm_single_row"))
            work.add(Variant("lightgbm_single_row", copied, {"runtime": "lightgbm", "call": "single row"}))
            work.candidates[-1].refused = SHOWN_ONLY
        return work.conclude(advise)


def _add_single_precision(work: session.Session) -> None:
    try:
        graph = exporting.to_onnx(work.model, work.example, work.task, single=True)
    except ValueError as why:
        logger.info("Single precision is left out: %s", why)
        work.findings.append(f"Single precision is left out: {why}")
        return
    model = work.dropin("ort_float32", graph)
    work.add(Variant("ort_float32", model, {"runtime": "onnxruntime", "precision": "float32", "threads_used": work.threads}))


if __name__ == "__main__":
    run(compile)
