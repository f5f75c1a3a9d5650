"""Is int8 safe for a regression: what each scheme does to the errors of a perceptron on California housing, beyond their size.

Run with `python -m benchmarks.int8_regression`. Three perceptrons, of three seeds, trained by the library's own loop; 8-bit schemes
as `quantize` tries them on this CPU. Lost: RMSE on the gate rows, paired. Shift, worst tenth and spread are shares of the float
model's own RMSE: a scheme is safe where what it moves disappears in the error that is there anyway, within every tenth of the rows.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_data import real_data
from benchmarks.results_file import interval, save
from mlflow_opt import baselines, data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.measurement import pairing
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.precision.quantisation import Scheme, batches_of, prepared, quantised, schemes_for
from mlflow_opt.precision.regression_shift import Shift, shift_of

SEEDS = (0, 1, 2)
CALIBRATION_ROWS = 512


def main() -> None:
    """Measure and write results/int8_regression.*."""
    schemes = [*schemes_for(cpu_features(), every=True), Scheme("static_4_bit_weights", weight_bits=4)]
    with tempfile.TemporaryDirectory() as name:
        split = data.split(data.read(str(_arrays(Path(name)))))
        found = [_of_seed(split, schemes, seed, Path(name)) for seed in SEEDS]
    lines = [
        f"Perceptron on California housing, {len(split.gate.labels)} gate rows, {len(SEEDS)} seeds; the worst of them is shown.",
        "",
        "| scheme | RMSE lost, % [95%] | mean shift, % of RMSE | worst tenth, % | spread, % | safe |",
        "|---|---|---|---|---|---|",
    ]
    figures = {}
    for scheme in schemes:
        results = [one[scheme.name] for one in found]
        lost, shift = max(results, key=lambda one: (not one[1].is_safe, one[1].worst_tenth))
        safe = sum(one[1].is_safe for one in results)
        shown = f"{100 * shift.mean:+.2f} | {100 * shift.worst_tenth:.1f} | {100 * shift.spread:.1f}"
        lines.append(f"| {scheme.name} | {interval([100 * one for one in lost])} | {shown} | {safe} of {len(SEEDS)} |")
        figures[scheme.name] = [{"rel_drop_rmse": lost, **shift.figures(), "safe": shift.is_safe} for lost, shift in results]
    save("int8_regression", figures, lines)


def _arrays(folder: Path) -> Path:
    table = pd.read_parquet(real_data("california.parquet"))
    rows = table.drop(columns=["target", "split"]).to_numpy(np.float32)
    path = folder / "california.npz"
    np.savez(path, rows=rows, target=table["target"].to_numpy(np.float64), split=table["split"].to_numpy(str))
    return path


def _of_seed(split: data.Split, schemes: list[Scheme], seed: int, folder: Path) -> dict[str, tuple[list[float], Shift]]:
    example = data.take(split.calibration.rows, slice(0, 64))
    trained = models.load(str(baselines.train_baseline(split, folder / f"float_{seed}", seed)))
    graph = exporting.to_onnx(trained, example, split.task)
    proto = prepared(graph.proto)
    before = measure.quality(trained, split.gate, split.task)
    plain = dropin.save_dropin(graph, trained, folder / f"onnx_{seed}", session=dropin.SessionOptions(), example=example)
    feeds = batches_of(plain.prepare(data.take(split.calibration.rows, slice(0, CALIBRATION_ROWS))))
    found = {}
    for scheme in schemes:
        made = dropin.save_dropin(
            replace(graph, proto=quantised(proto, scheme, feeds)),
            trained,
            folder / f"{scheme.name}_{seed}",
            session=dropin.SessionOptions(),
            example=example,
        )
        after = measure.quality(made, split.gate, split.task)
        drop = pairing.compare_quality(after, before, seed=seed)["rel_drop_rmse"]
        labels, answers = (np.asarray(one, dtype=float) for one in (split.gate.labels, before.outputs))
        found[scheme.name] = ([drop.value, drop.lo, drop.hi], shift_of(labels, answers, np.asarray(after.outputs, dtype=float)))
    return found


if __name__ == "__main__":
    main()
