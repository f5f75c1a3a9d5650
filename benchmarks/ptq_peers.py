"""Quantisation after training with an eye on accuracy, ours beside NNCF's, on the same float graphs.

Run with `PEER_NNCF=/path/to/python -m benchmarks.ptq_peers`, where that Python has `nncf`, `onnx` and `onnxruntime`. Two networks on
Fashion-MNIST: the small ResNet and a depthwise one, which loses more. Both tools get the same calibration rows, and the same
selection rows to stay within a tenth of a point of float; accuracy is of the 10,000 gate rows, paired, and all graphs are
timed in turns in the same fresh processes by the project's stopwatch.
Bounds: ours with accuracy control not below NNCF's, in accuracy (within the noise of the rows) and in speed (within 5%).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.qat import FLOAT, Depthwise
from benchmarks.results_file import interval, save
from mlflow_opt import data, models
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.measurement.stopwatch import Timings, time_models
from mlflow_opt.networks.losses import Arrays
from mlflow_opt.networks.networks import ResNet
from mlflow_opt.networks.training import fit
from mlflow_opt.precision.quantisation import batches_of, outputs_of, prepared, quantised, schemes_for
from mlflow_opt.precision.quantisation_loss import bias_corrected, fewest_in_float, least_in_float, sensitivities

PEER = "PEER_NNCF"
NNCF = Path(__file__).parent / "quantize_peers" / "nncf_fit.py"
MOST_LOST, TAKEN_BACK, CALIBRATION_ROWS, SESSIONS, EPOCHS = 0.001, 6, 512, 5, 4
NAMES = ("float", "ours", "ours with accuracy control", "NNCF", "NNCF with accuracy control")


@dataclass(frozen=True)
class Case:
    """A float graph and the rows that it is quantised and judged with."""

    split: data.Split
    proto: Any
    rows: dict[str, Arrays]

    def scored(self, proto: Any, part: str) -> Scored:
        """Score a graph on a part's rows."""
        inputs = self.rows[part].inputs["image"]
        answers = outputs_of(proto, [{"image": inputs[at : at + 500]} for at in range(0, len(inputs), 500)])
        return scoring.score(self.split.task, np.array(self.split.task.classes)[self.rows[part].targets], answers)

    def lost(self, proto: Any, part: str) -> float:
        """Tell how much accuracy a graph loses to the float one."""
        return self.scored(self.proto, part).values["accuracy"] - self.scored(proto, part).values["accuracy"]


def main() -> None:
    """Measure and write results/ptq_peers.*."""
    if PEER not in os.environ:
        raise SystemExit(f"this benchmark compares with NNCF; set {PEER} to a Python that has it (pip install nncf onnx onnxruntime).")
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    split = data.split(data.read("fashion_mnist"))
    names = ["network", "graph", "accuracy lost to float, points [95%]", "over float, one row", "over float, batch of 32", "made in"]
    lines, figures = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"], dict[str, Any]()
    torch.manual_seed(0)
    for what, module in (("small ResNet", ResNet(1, 10, "hw", width=16)), ("depthwise", Depthwise())):
        case = _case(module, split)
        with tempfile.TemporaryDirectory() as folder:
            made, seconds, version = _graphs(case, Path(folder))
            timings = _timed(made, Path(folder), case)
        scored = {name: case.scored(proto, "gate") for name, proto in made.items()}
        figures[what] = _figures(scored, timings, seconds)
        for at, name in enumerate(NAMES[1:], start=1):
            found = figures[what][name]
            shown = [interval([100 * value for value in found["lost"][:3]]), interval(found["one_row"]), interval(found["batch"])]
            lines.append(f"| {what} | {name} | {' | '.join(shown)} | {seconds[NAMES[at]]:.0f} s |")
        lines.append(_verdict(what, figures[what]))
        # After each network, because a run may be cut short.
        said = f"NNCF {version}; at most {100 * MOST_LOST:g} point lost on the selection rows was asked of both."
        save("ptq_peers", figures, [said, "", *lines])


def _case(module: nn.Module, split: data.Split) -> Case:
    parts = (split.train, split.calibration, split.selection, split.gate)
    rows = {part.name: _arrays(split, part) for part in parts}
    trained = fit(module, rows["train"], rows["calibration"], replace(FLOAT, epochs=EPOCHS)).module.eval()
    example = {"image": rows["calibration"].inputs["image"][:3]}
    return Case(split, prepared(export_module(trained, example)), rows)


def _graphs(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """Quantise in all ways; gives the graphs, the seconds that each took, and NNCF's version."""
    feeds = batches_of({"image": case.rows["calibration"].inputs["image"][:CALIBRATION_ROWS]})
    scheme = schemes_for(cpu_features())[0]
    began = time.perf_counter()
    plain = quantised(case.proto, scheme, feeds)
    between = time.perf_counter()
    controlled = _controlled(case, plain, feeds)
    seconds = {NAMES[1]: between - began, NAMES[2]: time.perf_counter() - began}
    onnx.save(case.proto, folder / "float.onnx")
    calibration, selection = case.rows["calibration"], case.rows["selection"]
    np.savez(folder / "calibration.npz", image=calibration.inputs["image"][:CALIBRATION_ROWS])
    np.savez(folder / "selection.npz", image=selection.inputs["image"], labels=selection.targets)
    (folder / "asked.json").write_text(json.dumps({"max_drop": MOST_LOST}))
    subprocess.run([os.environ[PEER], str(NNCF), str(folder)], check=True, cwd=folder)
    told = json.loads((folder / "told.json").read_text())
    seconds |= {NAMES[3]: told["plain_seconds"], NAMES[4]: told["control_seconds"]}
    theirs = [onnx.load(folder / f"{name}.onnx") for name in ("plain", "control")]
    return dict(zip(NAMES, (case.proto, plain, controlled, *theirs), strict=True)), seconds, told["version"]


def _controlled(case: Case, plain: Any, feeds: Sequence[Any]) -> Any:
    """Go the recipe's way: the plain scheme, corrected biases, then the fewest operators in float, by the selection rows."""
    scheme = schemes_for(cpu_features())[0]
    if case.lost(plain, "selection") <= MOST_LOST:
        return plain
    corrected = bias_corrected(case.proto, plain, feeds)
    if case.lost(corrected, "selection") <= MOST_LOST:
        return corrected
    scores = sensitivities(case.proto, scheme, feeds)
    ranked = sorted(scores, key=lambda name: -scores[name])

    def drop(names: Sequence[str]) -> float:
        return case.lost(quantised(case.proto, scheme, feeds, keep=names), "selection")

    keep = fewest_in_float(ranked, drop, MOST_LOST)
    if len(keep) < len(ranked):
        keep = least_in_float(keep, drop, MOST_LOST, trials=TAKEN_BACK)
    print("kept in float:", keep, flush=True)
    return quantised(case.proto, scheme, feeds, keep=keep)


def _timed(made: dict[str, Any], folder: Path, case: Case) -> Timings:
    files = []
    for at, proto in enumerate(made.values()):
        files.append(folder / f"timed{at}.onnx")
        files[-1].write_bytes(proto.SerializeToString())
    rows = {"image": case.rows["gate"].inputs["image"][:512]}
    return time_models([models.load(str(file)) for file in files], rows, sessions=SESSIONS, batches=(1, 32))


def _figures(scored: dict[str, Scored], timings: Timings, seconds: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"float": {"accuracy": scored["float"].values["accuracy"]}}
    for at, name in enumerate(NAMES[1:], start=1):
        lost = compare_quality(scored[name], scored["float"])["drop_accuracy"]
        one, batch = (timings.speedup(at, 0, phase) for phase in (0, 1))
        found[name] = {"lost": [lost.value, lost.lo, lost.hi, lost.n], "seconds": seconds[name]}
        found[name] |= {"one_row": [one.value, one.lo, one.hi], "batch": [batch.value, batch.lo, batch.hi]}
    worse = compare_quality(scored[NAMES[2]], scored[NAMES[4]])["drop_accuracy"]
    faster = [timings.speedup(2, 4, phase) for phase in (0, 1)]
    found["ours against NNCF, both with accuracy control"] = {
        "lost": [worse.value, worse.lo, worse.hi, worse.n],
        **{name: [one.value, one.lo, one.hi] for name, one in zip(("one_row", "batch"), faster, strict=True)},
    }
    return found


def _verdict(what: str, found: dict[str, Any]) -> str:
    last = found["ours against NNCF, both with accuracy control"]
    met = last["lost"][1] <= 0 and min(last["one_row"][0], last["batch"][0]) >= 0.95
    shown = [interval([100 * value for value in last["lost"][:3]]), interval(last["one_row"]), interval(last["batch"])]
    return f"| {what} | **ours against NNCF**, both with control: bound {'met' if met else 'missed'} | {' | '.join(shown)} | - |"


def _arrays(split: data.Split, part: data.Part) -> Arrays:
    assert isinstance(part.rows, dict)
    return Arrays(part.rows, np.searchsorted(np.array(split.task.classes), part.labels))


if __name__ == "__main__":
    main()
