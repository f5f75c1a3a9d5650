"""Registered versions to judge, made in seconds: a drop-in of a small network, a copy of it, a broken and a slower one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mlflow import MlflowClient

from mlflow_opt import data, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.flavours.flavours import onnx_file
from mlflow_opt.runs import tracking
from mlflow_opt.verdicts.evidence import PREFIX
from tests import stripes

NAME = "stripes"
# Twice the same chain of matrix products: clearly slower, and the answers stay what they are.
_SLOW_STEPS = 60


@dataclass(frozen=True)
class Files:
    """Folders of drop-ins and the rows they answer."""

    pictures: Path
    folders: dict[str, Path]


def make_files(folder: Path) -> Files:
    """Train the small network and save its drop-in, a broken copy and a slow copy."""
    pictures = stripes.pictures(folder, rows=2400)
    model = models.load(str(stripes.cnn(folder, pictures, epochs=6)))
    split = data.split(data.read(str(pictures)))
    example = data.take(split.calibration.rows, slice(0, 16))
    graph = exporting.to_onnx(model, example, split.task)
    plain = dropin.save_dropin(graph, model, folder / "plain", session=dropin.SessionOptions(), example=example).path
    folders = {"plain": plain, "same": Path(shutil.copytree(plain, folder / "same"))}
    for kind, change in {"broken": _break, "slow": _slow, "short": _short, "nan": _nan}.items():
        folders[kind] = Path(shutil.copytree(plain, folder / kind))
        path = onnx_file(models.load(str(folders[kind])))
        proto = onnx.load(path)
        change(proto)
        onnx.save(proto, path)
    return Files(pictures, folders)


def register(files: Files, kind: str, source: str = "") -> tuple[str, str]:
    """Log a folder as a new model of its own and register it; returns version and model id."""
    client = MlflowClient()
    run = client.create_run(tracking.experiment(), run_name=kind)
    parent = tracking.Parent(run.info.run_id, run.info.experiment_id, joined=False)
    tags = {PREFIX + "source_model_id": source} if source else {}
    model_id = tracking.create_model(parent, parent.run_id, kind, {"kind": kind}, tags)
    copy = Path(shutil.copytree(files.folders[kind], Path.cwd() / "uploads" / model_id))
    dropin.stamp(copy, model_id, parent.run_id)
    tracking.upload_model(model_id, copy)
    tracking.close(parent.run_id, "FINISHED")
    if not tracking.is_registered(NAME):
        tracking.create_registered(NAME)
    return tracking.register(NAME, model_id, parent.run_id, kind), model_id


def register_place(files: Files, kind: str) -> str:
    """Register a folder as a version that is no logged model, as old MLflow did; returns the version."""
    client = MlflowClient()
    run = client.create_run(tracking.experiment(), run_name=kind)
    client.log_artifacts(run.info.run_id, str(files.folders[kind]), "model")
    tracking.close(run.info.run_id, "FINISHED")
    inner: Any = client
    made = inner._get_registry_client().create_model_version(NAME, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    return str(made.version)


def _break(proto: onnx.ModelProto) -> None:
    output = _rename_output(proto, "unshifted")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 3, 0]), "order"))
    proto.graph.node.append(onnx.helper.make_node("Gather", ["unshifted", "order"], [output], axis=1))


def _short(proto: onnx.ModelProto) -> None:
    """Lose the last row of every answer."""
    output = _rename_output(proto, "whole")
    for name, value in (("start", 0), ("end", -1), ("rows", 0)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    proto.graph.node.append(onnx.helper.make_node("Slice", ["whole", "start", "end", "rows"], [output]))


def _nan(proto: onnx.ModelProto) -> None:
    output = _rename_output(proto, "number")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.nan, dtype=np.float32), "nan"))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["number", "nan"], [output]))


def _slow(proto: onnx.ModelProto) -> None:
    output = _rename_output(proto, "step0")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, 512, dtype=np.float32), "wide"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(512, dtype=np.float32), "square"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(512, 4, dtype=np.float32), "narrow"))
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["step0", "wide"], ["step1"]))
    for step in range(1, _SLOW_STEPS):
        proto.graph.node.append(onnx.helper.make_node("MatMul", [f"step{step}", "square"], [f"step{step + 1}"]))
    proto.graph.node.append(onnx.helper.make_node("MatMul", [f"step{_SLOW_STEPS}", "narrow"], [output]))


def _rename_output(proto: onnx.ModelProto, name: str) -> str:
    output = str(proto.graph.output[0].name)
    for node in proto.graph.node:
        node.output[:] = [name if one == output else one for one in node.output]
        node.input[:] = [name if one == output else one for one in node.input]
    return output
