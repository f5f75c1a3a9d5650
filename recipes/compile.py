"""Compile a model to ONNX Runtime, compare graph optimisations and thread counts, and measure how equal the answers stay.

Helps most where the Python around a model costs more than the model: a scikit-learn pipeline or a LightGBM model at one
row is 20-100x faster, a small torch network 2-4x. Helps little in large batches of trees, where LightGBM is already fast,
and not at all if a step of the pipeline has no ONNX operator; then the message names the step.

Equal is measured, not assumed: converters work in single precision, so that a row next to a split threshold may fall on
the other side. `label_flips` and `max_abs_diff` are on every variant, and a policy can bound both.

References: ONNX Runtime, "Graph optimizations in ONNX Runtime" (documentation); Nakandala et al. 2020, "A tensor compiler
for unified machine learning prediction serving" (why compiled pipelines win at small batches).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

from mlflow_opt import exporting, session
from mlflow_opt.dropin import SessionOptions
from mlflow_opt.outcome import Row
from mlflow_opt.records import Variant, Verdict
from mlflow_opt.signature import run

Level = Literal["all", "extended", "basic", "disable"]


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
    flips = timed.get("ort_all", {}).get("label_flips", 0.0)
    if flips:
        found.append(f"{flips:.0f} labels differ from the baseline on the selection rows: bound label_flips in the policy if that matters.")
    return found


def compile(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
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
        settings = settings_for(threads, os.cpu_count() or 1)
        work.expect(len(settings))
        for name, options in settings.items():
            params = {"runtime": "onnxruntime", "graph_level": options.graph_level, "threads_used": options.threads}
            work.add(Variant(name, work.dropin(name, graph, options), params))
        return work.conclude(advise)


if __name__ == "__main__":
    run(compile)
