"""What a trained model's answers owe to each column of the table that it was trained on.

A pipeline hands its last step other columns than the table has: texts become codes or one column a value, numbers move.
SHAP values are sums, so those of a table's column are the sum over what was made of it (Lundberg & Lee 2017, additivity);
which column was made of which is found by moving the rows of some columns and looking what changes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.tables.learners import Fitted, typed

# Rows on which the columns of a pipeline are traced.
_TRACED_ROWS = 300
# Exact TreeSHAP of scikit-learn's trees costs rows x leaves x depth squared; beyond this it is minutes.
MOST_WORK = 3e9


class Unexplained(ValueError):  # noqa: N818 - named for what it is about, like scoring.BadScores
    """A model cannot be explained by its own means: its steps mix columns, or it is no sum of trees or of weights."""


def importance(fitted: Fitted, rows: pd.DataFrame) -> np.ndarray:
    """Give each column's share in what a model has learnt: gain of the splits, or weight times spread; shape (columns,).

    Args:
        fitted: a trained model.
        rows: of the table, to trace the pipeline and for the spread.

    Raises:
        Unexplained: it has neither, or its steps mix columns.
    """
    last = fitted.last
    if type(last).__name__.startswith("LGBM"):
        parts = last.booster_.feature_importance("gain")
    elif hasattr(last, "feature_importances_"):
        parts = last.feature_importances_
    elif hasattr(last, "coef_"):
        spread = _matrix(encoded(fitted, rows)).std(axis=0)
        parts = np.abs(np.atleast_2d(last.coef_)).mean(axis=0) * spread
    else:
        raise Unexplained(f"a model of {type(last).__name__} has neither gains nor weights; rank by permutation instead.")
    every: np.ndarray = gathered(np.asarray(parts, dtype=float)[None, None, :], sources(fitted, rows), len(fitted.columns))
    return np.asarray(every[0, 0])


def attributions(fitted: Fitted, rows: pd.DataFrame) -> np.ndarray:
    """Give the SHAP value of every column for every row and output, in the model's own units before the link (log-odds).

    Exact for LightGBM and XGBoost (their own TreeSHAP), for scikit-learn's trees (shap's TreeExplainer) and for linear models
    (weight times distance from the mean, columns taken as independent).

    Args:
        fitted: a trained model.
        rows: n rows.

    Returns:
        Shape (n, outputs, columns); one output for a regression and for two classes.

    Raises:
        Unexplained: another kind of model, too many leaves for TreeSHAP, or steps that mix columns.

    References:
        Lundberg & Lee 2017, "A unified approach to interpreting model predictions"; Lundberg et al. 2020, "From local
        explanations to global understanding with explainable AI for trees".
    """
    return gathered(raw_attributions(fitted.last, encoded(fitted, rows)), sources(fitted, rows), len(fitted.columns))


def encoded(fitted: Fitted, rows: pd.DataFrame) -> Any:
    """Give what a model's last step sees of some rows: a matrix, or the table itself where there are no steps before."""
    given = typed(rows, fitted.columns, fitted.categories)
    return _matrix(fitted.estimator[:-1].transform(given)) if hasattr(fitted.estimator, "steps") else given


def raw_attributions(last: Any, given: Any) -> np.ndarray:
    """Give the SHAP values of an estimator's own inputs, shape (n, outputs, inputs).

    Raises:
        Unexplained: another kind of model, or too many leaves for TreeSHAP.
    """
    kind, width = type(last).__name__, np.shape(given)[1]
    if kind.startswith("LGBM"):
        found = last.booster_.predict(given, pred_contrib=True, num_threads=1)
        return np.asarray(found).reshape(len(found), -1, width + 1)[:, :, :-1]
    if kind.startswith("XGB"):
        import xgboost

        found = last.get_booster().predict(xgboost.DMatrix(given), pred_contribs=True)
        return np.asarray(found).reshape(len(found), -1, width + 1)[:, :, :-1]
    if hasattr(last, "coef_"):
        matrix = _matrix(given).astype(float)
        return np.asarray((matrix - matrix.mean(axis=0))[:, None, :] * np.atleast_2d(last.coef_)[None])
    if _leaf_work(last) * len(given) > MOST_WORK or not _leaf_work(last):
        raise Unexplained(f"a model of {kind} has no SHAP values that are exact and quick; rank by permutation instead.")
    with warnings.catch_warnings():
        # shap warns of what matplotlib and numba are about to change, which nobody here can act on.
        warnings.simplefilter("ignore")
        import shap

        found = np.asarray(shap.TreeExplainer(last).shap_values(_matrix(given), check_additivity=False))
    return found[:, None, :] if found.ndim == 2 else np.moveaxis(found, 2, 1)


def sources(fitted: Fitted, rows: pd.DataFrame) -> np.ndarray:
    """Find which column of the table each input of a model's last step was made of, -1 if of none.

    The columns are numbered, and for each binary digit the rows of those with a 0, then of those with a 1 are moved: an input
    that one column makes changes in exactly one of the two, which spells its number. So 1,500 columns take 22 passes.

    Raises:
        Unexplained: an input is made of several columns.
    """
    if not hasattr(fitted.estimator, "steps"):
        return np.arange(len(fitted.columns))
    table = typed(rows, fitted.columns, fitted.categories).head(_TRACED_ROWS).reset_index(drop=True)
    moved = table.iloc[np.roll(np.arange(len(table)), 1)].reset_index(drop=True)
    steps, width = fitted.estimator[:-1], len(table.columns)
    before = _matrix(steps.transform(table))
    found, known = np.zeros(before.shape[1], dtype=np.int64), np.ones(before.shape[1], dtype=bool)
    # One digit even for a single column: an input may be made of none.
    for digit in range(max(1, math.ceil(math.log2(width)))):
        ones = np.arange(width) >> digit & 1 == 1
        changed = [_changed(before, _matrix(steps.transform(_mixed(table, moved, which)))) for which in (~ones, ones)]
        if (changed[0] & changed[1]).any():
            raise Unexplained("the model's steps mix columns (as PCA does), so nothing can be said of one; rank by permutation instead.")
        found += changed[1] * (1 << digit)
        known &= changed[0] | changed[1]
    return np.where(known, found, -1)


def gathered(parts: np.ndarray, of: np.ndarray, columns: int) -> np.ndarray:
    """Add what belongs to one column of the table: (n, outputs, inputs) -> (n, outputs, columns).

    Args:
        parts: a value for each input.
        of: which column each input was made of, as `sources` gives it.
        columns: how many there are.
    """
    made = np.zeros((len(of), columns))
    made[np.flatnonzero(of >= 0), of[of >= 0]] = 1.0
    return np.asarray(parts @ made)


def _mixed(table: pd.DataFrame, moved: pd.DataFrame, which: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({name: moved[name] if chosen else table[name] for name, chosen in zip(table.columns, which, strict=True)})


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray(((before != after) & ~(pd.isna(before) & pd.isna(after))).any(axis=0))


def _matrix(given: Any) -> np.ndarray:
    return np.asarray(given.toarray() if hasattr(given, "toarray") else given)


def _leaf_work(last: Any) -> float:
    """Reckon the cost of TreeSHAP for one row of scikit-learn's trees, 0 if it is none."""
    trees = [last] if hasattr(last, "tree_") else np.ravel(np.array(getattr(last, "estimators_", ()), dtype=object)).tolist()
    if not trees or not all(hasattr(tree, "tree_") for tree in trees):
        return 0.0
    return float(sum(tree.tree_.n_leaves * max(tree.tree_.max_depth, 1) ** 2 for tree in trees))
