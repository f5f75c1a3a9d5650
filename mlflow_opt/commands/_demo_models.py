"""The two versions that the demo has refused: one whose predictions are broken, one that nobody has measured."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from mlflow_opt import models
from mlflow_opt.export import dropin
from mlflow_opt.flavours import flavours
from mlflow_opt.runs import tracking
from mlflow_opt.verdicts.evidence import PREFIX


def register(name: str, kind: str) -> str:
    """Register a copy of a model's champion, broken in its predictions or simply unmeasured; returns the version.

    Args:
        name: registered model with a champion that is a drop-in variant of a classifier.
        kind: `broken` shifts the class scores by one place, `unproven` copies the files as they are.
    """
    champion = models.load(f"models:/{name}@champion")
    client = MlflowClient()
    run = client.create_run(tracking.experiment(), run_name=f"demo-{kind}")
    parent = tracking.Parent(run.info.run_id, run.info.experiment_id, joined=False)
    tags = {PREFIX + "source_model_id": champion.model_id}
    model_id = tracking.create_model(parent, parent.run_id, f"demo-{kind}", {"kind": kind}, tags)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(champion.path, Path(folder) / "model"))
        if kind == "broken":
            _shift_classes(flavours.onnx_file(models.load(str(copy))))
        dropin.stamp(copy, model_id, parent.run_id)
        tracking.upload_model(model_id, copy)
    tracking.close(parent.run_id, "FINISHED")
    return tracking.register(name, model_id, parent.run_id, f"Made by the demo: {kind}.")


def _shift_classes(path: Path) -> None:
    """Rotate the scores of an ONNX classifier by one class."""
    import onnx

    proto = onnx.load(path)
    output = proto.graph.output[-1].name
    for node in proto.graph.node:
        node.output[:] = ["unshifted" if name == output else name for name in node.output]
        node.input[:] = ["unshifted" if name == output else name for name in node.input]
    classes = proto.graph.output[-1].type.tensor_type.shape.dim[1].dim_value
    order = onnx.helper.make_tensor("order", onnx.TensorProto.INT64, [classes], [(i + 1) % classes for i in range(classes)])
    proto.graph.initializer.append(order)
    proto.graph.node.append(onnx.helper.make_node("Gather", ["unshifted", "order"], [output], axis=1))
    onnx.save(proto, path)


if __name__ == "__main__":
    sys.stdout.write(register(*sys.argv[1:]) + "\n")
