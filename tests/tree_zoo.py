"""Small models of trees of every kind that can be pruned, on a table with missing values, zeros and few or many distinct values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlflow_opt.models import Model
from mlflow_opt.records import Task
from tests.model_zoo import BINARY, save

COLUMNS = list("abcde")
# What sends a row the other way than one would think.
STRANGE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, -1e-36, 1e300, 5.0, 39.0, 64.0, -3.0]
MULTICLASS, REGRESSION = Task("multiclass", (0, 1, 2)), Task("regression")


def table(rows: int = 600, *, holes: bool = True, seed: int = 0) -> pd.DataFrame:
    """Make numbers, with holes unless told not to."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, len(COLUMNS)))
    values[:, 3] = np.round(values[:, 3], 1)
    values[:, 4] = random.integers(0, 40, rows)
    if holes:
        values[random.random(values.shape) < 0.1] = np.nan
        values[random.random(values.shape) < 0.1] = 0
    return pd.DataFrame(values, columns=COLUMNS)


def signal(rows: pd.DataFrame) -> np.ndarray:
    """Give what there is to learn, with some noise."""
    full = np.nan_to_num(rows.to_numpy())
    noise = np.random.default_rng(1).normal(size=len(full))
    return np.asarray(full[:, 0] + full[:, 1] * full[:, 2] + 2 * np.sin(full[:, 4]) + 0.5 * noise)


def labels(rows: pd.DataFrame, task: Task) -> np.ndarray:
    """Give labels for a task."""
    found = signal(rows)
    if task.kind == "regression":
        return found
    return np.asarray(np.digitize(found, [0.0] if task.kind == "binary" else [-1.0, 1.0]))


def _natives() -> dict[str, tuple[Callable[[], Any], Task, bool]]:
    from sklearn import ensemble, tree
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    quiet: dict[str, Any] = {"n_estimators": 20, "verbose": -1, "n_jobs": 1, "num_leaves": 9}
    forest: dict[str, Any] = {"n_estimators": 12, "random_state": 0, "n_jobs": 1}
    return {
        "lightgbm": (lambda: lightgbm.LGBMClassifier(**quiet), BINARY, True),
        "lightgbm_multiclass": (lambda: lightgbm.LGBMClassifier(**quiet), MULTICLASS, True),
        "lightgbm_regression": (lambda: lightgbm.LGBMRegressor(**quiet), REGRESSION, True),
        "pipeline": (lambda: make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(**quiet)), BINARY, True),
        "forest": (lambda: ensemble.RandomForestClassifier(**forest), BINARY, True),
        "forest_multiclass": (lambda: ensemble.RandomForestClassifier(**forest), MULTICLASS, True),
        "forest_regression": (lambda: ensemble.ExtraTreesRegressor(**forest), REGRESSION, False),
        "boosting": (lambda: ensemble.GradientBoostingClassifier(n_estimators=12, random_state=0), BINARY, False),
        "boosting_regression": (lambda: ensemble.GradientBoostingRegressor(n_estimators=12, random_state=0), REGRESSION, False),
        "histogram": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=12), MULTICLASS, True),
        "tree": (lambda: tree.DecisionTreeClassifier(random_state=0), BINARY, False),
    }


# Name -> how it is made, its task, whether it takes missing values.
NATIVES = _natives()
# These are sequences of trees that can be cut after any of them.
SEQUENCES = [name for name in NATIVES if name != "tree"]


def fitted(name: str) -> tuple[Any, pd.DataFrame, np.ndarray, Task]:
    """Train a model; give its rows and labels too."""
    make, task, holes = NATIVES[name]
    rows = table(holes=holes)
    wanted = labels(rows, task)
    return make().fit(rows, wanted), rows, wanted, task


def saved(name: str, folder: Path) -> tuple[Model, pd.DataFrame, np.ndarray, Task]:
    """Train and save a model."""
    native, rows, wanted, task = fitted(name)
    flavour = "lightgbm" if name.startswith("lightgbm") else "sklearn"
    return save(folder, native, rows, flavour=flavour), rows, wanted, task


def booster(task: Task = BINARY, rounds: int = 20, **params: Any) -> lightgbm.Booster:
    """Train a bare booster with a category column."""
    rows = table()
    objective = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}[task.kind]
    given = {"objective": objective, "verbose": -1, "num_threads": 1, "num_leaves": 9, **params}
    if task.kind == "multiclass":
        given["num_class"] = 3
    data = lightgbm.Dataset(rows.to_numpy(), labels(rows, task), categorical_feature=[4], free_raw_data=False)
    return lightgbm.train(given, data, rounds)


def strange_rows(count: int = 7) -> Any:
    """Draw matrices for a model with a category in the last column."""
    values = st.one_of(st.floats(-4, 4), st.sampled_from(STRANGE))
    return arrays(np.float64, (count, len(COLUMNS)), elements=values).map(_with_codes)


def _with_codes(rows: np.ndarray) -> np.ndarray:
    last = rows[:, 4]
    rows[:, 4] = np.where(np.isfinite(last) & (np.abs(last) < 1e6), np.trunc(last), np.nan)
    return rows
