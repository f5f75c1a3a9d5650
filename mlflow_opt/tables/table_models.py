"""The models that a table is first tried with: trees and a linear model, with what a table's columns need before them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from mlflow_opt.records import Task

logger = logging.getLogger(__name__)

# A category of fewer rows than this share is told apart from others by no linear model; these become one column.
_RARE_ROWS = 10
_MOST_COLUMNS = 60
# Of a text with more values the trees get the target's mean over each value (cross-fitted): codes would order the values at random.
CODED_VALUES = 64


def default_pipeline(rows: pd.DataFrame, task: Task, seed: int) -> Any:
    """Make the default pipeline for a table, not trained yet.

    Texts get ordinal codes that the trees split like numbers: on the tables tried LightGBM's own categories were no better,
    and in ONNX they cost a comparison per category.

    Args:
        rows: of the table, for its columns and their kinds.
        task: what is predicted.
        seed: of the trees.

    Raises:
        ValueError: if there are only date columns.

    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    numbers, texts, dates = columns_by_kind(rows)
    if dates:
        logger.warning("the default model leaves out the date columns %s; derive numbers from them to use them.", ", ".join(dates))
    if not texts and not numbers:
        raise ValueError(f"the default model needs number or text columns, got only {', '.join(dates)}; give model=, or derive columns.")
    columns = ColumnTransformer([("texts", _codes(), texts), ("numbers", "passthrough", numbers)])
    return Pipeline([("columns", columns), ("trees", trees(task, seed))])


def trees(task: Task, seed: int, params: Mapping[str, Any] | None = None) -> Any:
    """Make an untrained LightGBM estimator, not tuned and not weakened.

    Args:
        task: what is predicted.
        seed: of row and column samples.
        params: in place of the defaults.
    """
    from lightgbm import LGBMClassifier, LGBMRegressor

    estimator = LGBMRegressor if task.kind == "regression" else LGBMClassifier
    return estimator(
        n_estimators=300,
        learning_rate=0.03,
        num_leaves=31,
        min_child_samples=20,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.8,
        random_state=seed,
        # One thread: the trees do not depend on the machine's cores, and one row is answered fastest.
        n_jobs=1,
        # The same rows and seed give the same trees, at a small cost in speed.
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    ).set_params(**(params or {}))


def tree_pipeline(rows: pd.DataFrame, task: Task, estimator: Any, without: Collection[str] = ()) -> Any:
    """Make a pipeline of trees: missing values stay missing, texts become codes, texts with many values the target's mean.

    Args:
        rows: of the table.
        task: what is predicted.
        estimator: untrained trees.
        without: columns to ignore.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import TargetEncoder

    numbers, texts, _ = (([name for name in kind if name not in without]) for kind in columns_by_kind(rows))
    many = [name for name in texts if rows[name].nunique() > CODED_VALUES]
    # Of several classes the encoder makes a column each, which the trees can do without.
    many = many if task.kind != "multiclass" else []
    folds = (KFold if task.kind == "regression" else StratifiedKFold)(5, shuffle=True, random_state=0)
    parts = [
        ("texts", _codes(), [name for name in texts if name not in many]),
        ("means", TargetEncoder(target_type="continuous" if task.kind == "regression" else "binary", cv=folds), many),
        ("numbers", "passthrough", numbers),
    ]
    return Pipeline([("columns", ColumnTransformer([part for part in parts if part[2]])), ("trees", estimator)])


def linear_pipeline(rows: pd.DataFrame, task: Task, without: Collection[str] = ()) -> Any:
    """Make a linear pipeline: numbers filled by the median and scaled, texts one column a value, rare values together.

    Args:
        rows: of the table.
        task: what is predicted.
        without: columns to ignore.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers, texts, _ = (([name for name in kind if name not in without]) for kind in columns_by_kind(rows))
    scaled = Pipeline([("fill", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    values = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=_RARE_ROWS, max_categories=_MOST_COLUMNS)
    parts = [("numbers", scaled, numbers), ("texts", values, texts)]
    last = Ridge(alpha=1.0) if task.kind == "regression" else LogisticRegression(C=1.0, max_iter=500)
    return Pipeline([("columns", ColumnTransformer([part for part in parts if part[2]])), ("linear", last)])


def columns_by_kind(rows: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Sort a table's columns into numbers, texts and dates, each in the table's order."""
    kinds = {str(name): _kind(rows[name]) for name in rows}
    numbers, texts, dates = ([name for name, kind in kinds.items() if kind == wanted] for wanted in ("number", "text", "date"))
    return numbers, texts, dates


def _codes() -> Any:
    from sklearn.preprocessing import OrdinalEncoder

    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)


def _kind(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "text"
    return {"b": "number", "i": "number", "u": "number", "f": "number", "m": "date", "M": "date"}.get(column.dtype.kind, "text")
