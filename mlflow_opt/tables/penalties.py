"""L1 and L2 penalties of a table's model, under the names that its library gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflow_opt.tables.learners import Fitted, Learner

# Strengths per loss of one row; libraries that do not average over rows get them multiplied.
STRENGTHS = (1e-4, 1e-3, 1e-2)
_TREES = (1.0, 10.0, 100.0)
_LINEAR = ("Ridge", "Lasso", "ElasticNet")


def penalties_for(learner: Learner, rows: int) -> dict[str, dict[str, Any]]:
    """List settings of L1, L2 and both, in three strengths each.

    Example:
        >>> from lightgbm import LGBMRegressor
        >>> list(penalties_for(Learner(LGBMRegressor(), ("x",)), 1000))[:2]
        ['l1_1', 'l1_10']

    Args:
        learner: LightGBM, XGBoost, logistic regression, SGD, ridge, lasso or elastic net.
        rows: number of train rows, which scikit-learn's `C` is counted by.

    Raises:
        ValueError: the estimator has no such penalty.
    """
    kind, params = learner.kind, learner.params()
    if learner.is_boosting:
        both = {f"l1_l2_{value:g}": {"reg_alpha": value, "reg_lambda": value} for value in _TREES}
        return {
            **{f"l1_{value:g}": {"reg_alpha": value, "reg_lambda": 0.0} for value in _TREES},
            **{f"l2_{value:g}": {"reg_alpha": 0.0, "reg_lambda": value} for value in _TREES},
            **both,
        }
    ratios = {"l1": 1.0, "l2": 0.0, "l1_l2": 0.5}
    if kind == "LogisticRegression":
        return {
            f"{name}_{value:g}": {"C": 1 / (value * rows), **_ratio_of(params, ratio)}
            for name, ratio in ratios.items()
            for value in STRENGTHS
        }
    if kind.startswith("SGD"):
        return {
            f"{name}_{value:g}": {"alpha": value, "penalty": "elasticnet", "l1_ratio": ratio}
            for name, ratio in ratios.items()
            for value in STRENGTHS
        }
    if kind in _LINEAR:
        ratio = {} if kind != "ElasticNet" else {"l1_ratio": 0.5}
        # Ridge sums over the rows, lasso and elastic net average.
        scale = rows if kind == "Ridge" else 1
        name = {"Ridge": "l2", "Lasso": "l1", "ElasticNet": "l1_l2"}[kind]
        return {f"{name}_{value:g}": {"alpha": value * scale, **ratio} for value in (*STRENGTHS, 1e-1)}
    raise ValueError(
        f"L1 and L2 need an estimator that has them, {kind} has none; give LightGBM, XGBoost, logistic regression, SGD, ridge, lasso, "
        "elastic net, or a network."
    )


def zero_share(fitted: Fitted) -> float:
    """Give the share of a linear model's coefficients that are exactly zero; 0 for trees."""
    coefficients = getattr(fitted.last, "coef_", None)
    return 0.0 if coefficients is None else float((np.asarray(coefficients) == 0).mean())


def _ratio_of(params: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    # scikit-learn 1.8 lets the ratio alone decide; before, the penalty had to be named too. saga knows every ratio.
    named = {} if params.get("penalty") == "deprecated" else {"penalty": "elasticnet"}
    return {"l1_ratio": ratio, "solver": "saga", **named}
