"""The world that README.md and docs/gate.md speak of: `churn` with seven versions, `digits` with three, and rows kept aside.

Run with `python -m tests.docs_world` in the folder of somebody who follows a page, with MLFLOW_TRACKING_URI at their gated server.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow

from mlflow_opt import data, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.dropin import SessionOptions
from mlflow_opt.runs import tracking
from mlflow_opt.verdicts.evidence import PREFIX
from recipes.threshold import moved
from tests.tiny import tiny_network, tiny_table

# The page's seventh version misses f1 alone: hardly anybody is answered to leave.
ALMOST_NOBODY = 0.9
POLICY = """
"*":
  waivers: true
  validation_criteria:
    - {metric: speedup, min: 0.3}
    - {metric: roc_auc, max_drop: 0.05}
    - {metric: f1, max_drop: 0.05}
"""


def main() -> None:
    """Register the versions and write the rows."""
    home = Path.cwd()
    digits = tiny_network(_folder(home / "made" / "digits"))
    shutil.copy(digits.data, home / "holdout.npz")
    for _ in range(3):
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                models.load(str(digits.model)).native,
                name="model",
                registered_model_name="digits",
                signature=models.load(str(digits.model)).signature,
                serialization_format="pickle",
                pip_requirements=["torch"],
            )
    churn = tiny_table(_folder(home / "made" / "churn"), rows=6000)
    shutil.copy(churn.data, home / "holdout.parquet")
    first = models.load(str(churn.model))
    source = _registered(first.path, "")
    split = data.split(data.read(str(churn.data)))
    example = data.take(split.calibration.rows, slice(0, 64))
    graph = exporting.to_onnx(first, example, split.task)
    for number in range(2, 8):
        made = moved(graph, ALMOST_NOBODY) if number == 7 else graph
        where = home / "made" / f"version_{number}"
        _registered(dropin.save_dropin(made, first, where, session=SessionOptions(), example=example).path, source)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _registered(folder: Path, source: str) -> str:
    """Log a folder as a model of its own, made from another, and register it; gives the model id."""
    parent = tracking.open_parent("train", {}, {})
    model_id = tracking.create_model(parent, parent.run_id, "churn", {}, {PREFIX + "source_model_id": source} if source else {})
    copy = Path(shutil.copytree(folder, Path.cwd() / "made" / model_id))
    dropin.stamp(copy, model_id, parent.run_id)
    tracking.upload_model(model_id, copy)
    tracking.close(parent.run_id, "FINISHED")
    if not tracking.is_registered("churn"):
        tracking.create_registered("churn")
    tracking.register("churn", model_id, parent.run_id, folder.name)
    return model_id


if __name__ == "__main__":
    main()
