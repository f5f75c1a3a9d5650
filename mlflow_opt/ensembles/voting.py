"""The default ensemble of a table: seven different models whose probabilities, or values, are averaged.

It is what a careful user would put together by hand: each member is sound alone, none is there to be thrown out.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.data import Split
from mlflow_opt.ensembles.members import voting
from mlflow_opt.records import Task
from mlflow_opt.tables import learner_files
from mlflow_opt.tables.held_out import as_table, codes
from mlflow_opt.tables.learners import Fitted

logger = logging.getLogger(__name__)

_RARE = 10


def train_voting(split: Split, folder: Path, seed: int) -> Path:
    """Train seven models on the train rows and save them as scikit-learn's voting ensemble.

    Helps to try `prune_ensemble` and `distill` before there is an ensemble. Does not tune anything.

    Args:
        split: of a table.
        folder: where to save it; must not exist.
        seed: every random choice derives from it.

    Raises:
        ValueError: the data are arrays, hold infinite values, or have no column of numbers or text.
    """
    rows, labels = as_table(split.train.rows), codes(split.task, split.train.labels)
    columns = _columns(rows)
    started = time.perf_counter()
    found = []
    for name, one in members(rows[columns], split.task, seed).items():
        found.append((name, one.fit(rows[columns], labels)))
        logger.info("Trained %s (%d of 7), %.0f s so far.", name, len(found), time.perf_counter() - started)
    made = voting(found, split.task)
    made.feature_names_in_ = np.array(columns, dtype=object)
    learner_files.save(Fitted(made, tuple(columns), {}, time.perf_counter() - started), rows, folder)
    return folder


def members(rows: pd.DataFrame, task: Task, seed: int) -> dict[str, Any]:
    """Make the seven members, not trained: linear, two kinds of forest, three of boosting, and a network (a regression: deep trees)."""
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn import ensemble, linear_model
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline

    regression = task.kind == "regression"
    boosted = LGBMRegressor if regression else LGBMClassifier
    quiet: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "verbose": -1, "deterministic": True, "force_row_wise": True}
    light = boosted(n_estimators=300, learning_rate=0.03, subsample=0.8, subsample_freq=1, colsample_bytree=0.8, **quiet)
    leafy: dict[str, Any] = {"n_estimators": 200, "min_samples_leaf": 2, "random_state": seed}
    slow: dict[str, Any] = {"n_estimators": 100, "subsample": 0.8, "random_state": seed}
    if regression:
        linear: Any = linear_model.RidgeCV()
        trees = (ensemble.RandomForestRegressor(**leafy), ensemble.ExtraTreesRegressor(**leafy))
        boosting = (ensemble.GradientBoostingRegressor(**slow), ensemble.HistGradientBoostingRegressor(random_state=seed))
        deep = boosted(n_estimators=200, learning_rate=0.05, num_leaves=127, extra_trees=True, **quiet)
        last = make_pipeline(coded(rows), deep)
    else:
        linear = linear_model.LogisticRegression(max_iter=500)
        trees = (ensemble.RandomForestClassifier(**leafy), ensemble.ExtraTreesClassifier(**leafy))
        boosting = (ensemble.GradientBoostingClassifier(**slow), ensemble.HistGradientBoostingClassifier(random_state=seed))
        last = make_pipeline(scaled(rows), MLPClassifier((64,), early_stopping=True, max_iter=100, random_state=seed))
    return {
        "linear": make_pipeline(scaled(rows), linear),
        "forest": make_pipeline(coded(rows), trees[0]),
        "extra_trees": make_pipeline(coded(rows), trees[1]),
        "lightgbm": make_pipeline(coded(rows), light),
        "boosting": make_pipeline(coded(rows), boosting[0]),
        "histogram": make_pipeline(coded(rows), boosting[1]),
        "deep" if regression else "network": last,
    }


def coded(rows: pd.DataFrame) -> Any:
    """Make the entrance of trees: ordinal codes for texts, the medians for missing numbers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OrdinalEncoder

    texts, numbers, flags = kinds(rows)
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    filled = SimpleImputer(strategy="median", keep_empty_features=True)
    return ColumnTransformer(_used([("texts", codes, texts), ("numbers", filled, numbers), ("flags", "passthrough", flags)]))


def scaled(rows: pd.DataFrame) -> Any:
    """Make the entrance of linear models and networks: one column a text, numbers filled with their means and scaled."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    texts, numbers, flags = kinds(rows)
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=_RARE, sparse_output=False)
    filled = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    return ColumnTransformer(_used([("texts", one_hot, texts), ("numbers", filled, numbers), ("flags", "passthrough", flags)]))


def kinds(rows: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Name the columns of text, of numbers, and of booleans; dates are in none of them."""
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for name in rows:
        dtype = rows[name].dtype
        if pd.api.types.is_bool_dtype(dtype):
            found[2].append(str(name))
        elif pd.api.types.is_numeric_dtype(dtype):
            found[1].append(str(name))
        elif not pd.api.types.is_datetime64_any_dtype(dtype) and not pd.api.types.is_timedelta64_dtype(dtype):
            found[0].append(str(name))
    return found


def _columns(rows: pd.DataFrame) -> list[str]:
    used = {name for names in kinds(rows) for name in names}
    columns = [str(name) for name in rows if str(name) in used]
    if not columns:
        raise ValueError(f"the default ensemble needs columns of numbers or text, got only {', '.join(map(str, rows))}; give model=.")
    infinite = [name for name in kinds(rows)[1] if np.isinf(rows[name].to_numpy(dtype=float, na_value=np.nan)).any()]
    if infinite:
        raise ValueError(
            f"the default ensemble takes finite numbers, {', '.join(infinite)} hold infinite ones; replace them, or give model=."
        )
    return columns


def _used(blocks: list[tuple[str, Any, list[str]]]) -> list[tuple[str, Any, list[str]]]:
    return [block for block in blocks if block[2]]
