"""Where the real data of benchmarks lie, and how a series becomes rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_opt import data

VARIABLE = "MLFLOW_OPT_REAL_DATA"
# Half hours.
_WEEK = 336
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """Find a file of the real data sets; ends the benchmark where it is not there.

    Args:
        name: of the file.
    """
    path = Path(os.environ.get(VARIABLE) or BESIDE) / name
    if not path.is_file():
        raise SystemExit(f"{name} is not in {path.parent}; set {VARIABLE} to the folder that holds it.")
    return path


def sea_temperature(folder: Path, *, steps: int = 48, horizon: int = 24, every: int = 2) -> data.Split:
    """Cut the half-hourly sea temperature into windows: a day of it, and the temperature half a day later, both standardised.

    Every fifth week is the test: the file's own split is one late season, which no model of the others can know.

    Args:
        folder: where the npz goes.
        steps: of a window.
        horizon: steps from the window's end to the target.
        every: a window starts at each so many steps.
    """
    table = pd.read_parquet(real_data("sea_temp.parquet"))
    degrees = table["target"].to_numpy(np.float32)
    values = (degrees - degrees.mean()) / degrees.std()
    parts = np.where(np.arange(len(values)) // _WEEK % 5 == 4, "test", "train")
    starts = np.arange(0, len(values) - steps - horizon, every)
    ends = starts + steps + horizon
    # A window of both parts would let training see the test's time.
    starts = starts[parts[starts] == parts[ends]]
    windows = values[starts[:, None] + np.arange(steps)]
    target = values[starts + steps + horizon]
    path = folder / "sea_temperature.npz"
    np.savez(path, series=windows[:, :, None], target=target.astype(np.float64), split=parts[starts])
    return data.split(data.read(str(path)))
