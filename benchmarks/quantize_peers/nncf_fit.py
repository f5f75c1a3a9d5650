"""NNCF's quantisation after training, plain and with accuracy control; run by the Python of an environment that has it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Installed beside this project, in an environment of its own.
import nncf  # type: ignore[import-not-found]
import numpy as np
import onnx
import onnxruntime

CALIBRATION_BATCH, SCORED_BATCH = 64, 500


def main(folder: Path) -> None:
    """Quantise `float.onnx` twice, leave `plain.onnx`, `control.onnx` and `told.json`."""
    asked = json.loads((folder / "asked.json").read_text())
    proto = onnx.load(folder / "float.onnx")
    calibration, scored = (dict(np.load(folder / f"{name}.npz")) for name in ("calibration", "selection"))
    labels = scored.pop("labels")
    few = nncf.Dataset(_batches(calibration, CALIBRATION_BATCH))
    rows = len(next(iter(calibration.values())))
    began = time.perf_counter()
    plain = nncf.quantize(proto, few, subset_size=rows // CALIBRATION_BATCH)
    told = {"plain_seconds": time.perf_counter() - began, "version": nncf.__version__}
    onnx.save(plain, folder / "plain.onnx")
    place = np.split(labels, range(SCORED_BATCH, len(labels), SCORED_BATCH))
    items = nncf.Dataset(list(zip(_batches(scored, SCORED_BATCH), place, strict=True)), lambda item: item[0])

    def accuracy(given: Any, pairs: Iterable[Any]) -> tuple[float, None]:
        live = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [live.run(None, feed)[0].argmax(axis=1) == wanted for feed, wanted in pairs]
        return float(np.concatenate(right).mean()), None

    began = time.perf_counter()
    control = nncf.quantize_with_accuracy_control(
        proto, few, items, accuracy, max_drop=asked["max_drop"], subset_size=rows // CALIBRATION_BATCH
    )
    told["control_seconds"] = time.perf_counter() - began
    onnx.save(control, folder / "control.onnx")
    (folder / "told.json").write_text(json.dumps(told))


def _batches(inputs: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    rows = len(next(iter(inputs.values())))
    return [{name: array[at : at + size] for name, array in inputs.items()} for at in range(0, rows, size)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
