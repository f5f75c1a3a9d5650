"""FLAML on the rows that it is given, within seconds; run by the Python of an environment that has it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

# Installed beside this project, in an environment of its own.
from flaml import AutoML  # type: ignore[import-not-found]

METRICS = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "r2"}


def main(folder: Path) -> None:
    """Train on `train.parquet`, answer `gate.parquet`, leave `answers.npy` and `told.json`."""
    asked = json.loads((folder / "asked.json").read_text())
    train, gate = pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "gate.parquet")
    rows, labels = train.drop(columns="target"), train["target"]
    automl, began, spent = AutoML(), time.perf_counter(), time.process_time()
    automl.fit(
        X_train=rows,
        y_train=labels,
        task="regression" if asked["kind"] == "regression" else "classification",
        metric=METRICS[asked["kind"]],
        time_budget=asked["seconds"],
        n_jobs=1,
        seed=asked["seed"],
        verbose=0,
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    answers = automl.predict(gate) if asked["kind"] == "regression" else automl.predict_proba(gate)
    np.save(folder / "answers.npy", np.asarray(answers, dtype=float))
    told = {"seconds": seconds, "cpu_seconds": cpu, "estimator": str(automl.best_estimator), "params": str(automl.best_config)}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
