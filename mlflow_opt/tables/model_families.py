"""Other kinds of model for a table, as they would be written by hand: what a search tries besides tuning the model's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Learner

logger = logging.getLogger(__name__)


def other_learners(own: Learner, rows: pd.DataFrame, task: Task, seed: int) -> dict[str, Learner]:
    """Make a learner of every family but the model's own: boosted trees, forests and a linear model.

    Args:
        own: the model's; the others take its columns.
        rows: train rows, for the columns' kinds.
        task: what is predicted.
        seed: of the estimators.

    Returns:
        name -> learner; XGBoost only where it is installed.
    """
    if np.isinf(rows[list(own.columns)].select_dtypes("number").to_numpy(dtype=float)).any():
        logger.warning("The table holds infinite values, which only the model's own kind may take: no other kind is tried.")
        return {}
    estimators = _estimators(task, seed)
    found = {}
    for name, (estimator, linear) in estimators.items():
        if type(estimator).__name__ == own.kind:
            continue
        found[name] = Learner(_pipeline(estimator, rows, own.columns, linear=linear), own.columns, {}, 0.5)
    return found


def _estimators(task: Task, seed: int) -> dict[str, tuple[Any, bool]]:
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    is_regression = task.kind == "regression"
    plain: dict[str, Any] = {"random_state": seed, "n_jobs": 1}
    lgbm = (LGBMRegressor if is_regression else LGBMClassifier)(
        **plain, n_estimators=200, learning_rate=0.05, verbose=-1, deterministic=True
    )
    linear = Ridge() if is_regression else LogisticRegression(max_iter=500)
    found: dict[str, tuple[Any, bool]] = {
        "lightgbm": (lgbm, False),
        "forest": (
            (RandomForestRegressor if is_regression else RandomForestClassifier)(**plain, n_estimators=200, min_samples_leaf=2),
            False,
        ),
        "extra_trees": (
            (ExtraTreesRegressor if is_regression else ExtraTreesClassifier)(**plain, n_estimators=200, min_samples_leaf=2),
            False,
        ),
        "linear": (linear, True),
    }
    # XGBoost takes classes as the numbers 0, 1, 2, ... only.
    if find_spec("xgboost") is not None and list(task.classes) == list(range(len(task.classes))):
        from xgboost import XGBClassifier, XGBRegressor

        found["xgboost"] = ((XGBRegressor if is_regression else XGBClassifier)(**plain, n_estimators=200, learning_rate=0.1), False)
    return found


def _pipeline(estimator: Any, rows: pd.DataFrame, columns: Sequence[str], *, linear: bool) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    dates = [name for name in columns if pd.api.types.is_datetime64_any_dtype(rows[name].dtype)]
    numbers = [name for name in columns if pd.api.types.is_numeric_dtype(rows[name].dtype)]
    texts = [name for name in columns if name not in (*dates, *numbers)]
    if linear:
        codes: Any = OneHotEncoder(handle_unknown="ignore", max_categories=100, sparse_output=False)
        values: Any = Pipeline([("fill", SimpleImputer(keep_empty_features=True)), ("scale", StandardScaler())])
    else:
        codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
        values = SimpleImputer(strategy="median", keep_empty_features=True)
    parts = [("texts", codes, texts), ("numbers", values, numbers)]
    return Pipeline([("columns", ColumnTransformer([one for one in parts if one[2]])), ("model", estimator)])
