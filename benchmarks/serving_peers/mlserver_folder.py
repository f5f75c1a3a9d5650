"""MLServer around a LightGBM booster: its own runtime, adaptive batching on, one process; started with a Python that has it."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow_opt.serving.contender import free_port


def write(folder: Path, booster: Path, port: int) -> Path:
    """Write the settings that `mlserver start FOLDER` reads."""
    folder.mkdir()
    # It opens two more ports, whether or not anybody asks there.
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0, "host": "127.0.0.1"}
    model = {
        "name": "trees",
        "implementation": "mlserver_lightgbm.LightGBMModel",
        "parameters": {"uri": str(booster)},
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return folder


def body(row: list[float]) -> bytes:
    """Write one row as a request of the open inference protocol, version 2."""
    tensor = {"name": "rows", "shape": [1, len(row)], "datatype": "FP64", "data": row}
    return json.dumps({"inputs": [tensor]}).encode()
