"""int8 against float on the bundled Fashion-MNIST with the default small ResNet: the runtime's share and the technique's apart.

Run with `python -m benchmarks.quantize`. Everything is paired in turns in fresh processes; accuracy on all 10,000 gate rows.
Bounds: int8 at least 1.7x over float in the same runtime, at least 4x over torch eager, at most half a point lost.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.results_file import interval, save
from mlflow_opt import baselines, data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.models import Model
from mlflow_opt.policy import parse_policy
from mlflow_opt.precision.quantisation import prepared, quantised, schemes_for

POLICY = parse_policy("validation_criteria: [{metric: accuracy, max_drop: 0.005}, {metric: speedup, min: 1.7}]")
CONDITIONS = measure.Conditions(threads=1, budget_s=45.0)


def main() -> None:
    """Measure and write results/quantize.*."""
    split = data.split(data.read("fashion_mnist"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch_model = models.load(str(baselines.train_baseline(split, folder / "baseline", 0)))
        float_model, int8_model, scheme = _variants(torch_model, split, folder)
        float_over_torch = measure.evidence(float_model, torch_model, split.gate, split.task, POLICY, CONDITIONS).candidate.quantities
        over_float = measure.evidence(int8_model, float_model, split.gate, split.task, POLICY, CONDITIONS).candidate.quantities
        over_torch = measure.evidence(int8_model, torch_model, split.gate, split.task, POLICY, CONDITIONS).candidate.quantities
    asked = {
        "float ONNX Runtime over torch eager (the runtime's share)": (float_over_torch["speedup"], "-"),
        "int8 over float, same runtime (the technique's share)": (over_float["speedup"], ">= 1.7"),
        "int8 over torch eager": (over_torch["speedup"], ">= 4"),
        "int8 over float, batch of 32": (over_float["throughput_ratio"], "-"),
        "accuracy lost to torch, points": (over_torch["drop_accuracy"], "<= 0.5 at the upper end"),
    }
    lines = [
        f"Scheme: {scheme}; accuracy {over_torch['accuracy'].value:.4f} on 10,000 rows.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
    ]
    for what, (quantity, bound) in asked.items():
        scale = 100 if "points" in what else 1
        shown = interval(tuple(scale * value for value in (quantity.value, quantity.lo, quantity.hi)))
        lines.append(f"| {what} | {shown} | {bound} |")
    figures = {what: [quantity.value, quantity.lo, quantity.hi, quantity.n] for what, (quantity, _) in asked.items()}
    save("quantize", {"scheme": scheme, **figures}, lines)


def _variants(torch_model: Model, split: data.Split, folder: Path) -> tuple[Model, Model, str]:
    example = data.take(split.calibration.rows, slice(0, 64))
    graph = exporting.to_onnx(torch_model, example, split.task)
    float_model = dropin.save_dropin(graph, torch_model, folder / "float", session=dropin.SessionOptions(), example=example)
    rows = float_model.prepare(split.calibration.rows)
    feeds = [{name: array[at : at + 64] for name, array in rows.items()} for at in range(0, 400, 64)]
    scheme = schemes_for(cpu_features())[0]
    made = replace(graph, proto=quantised(prepared(graph.proto), scheme, feeds))
    int8_model = dropin.save_dropin(made, torch_model, folder / "int8", session=dropin.SessionOptions(), example=example)
    return float_model, int8_model, scheme.name


if __name__ == "__main__":
    main()
