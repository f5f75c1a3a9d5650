"""The first trees of a trained model as a model of their own, without training: LightGBM, gradient boosting, forests.

What boosting has after k rounds is what it would have been had it stopped there, so every shorter model is already inside the
longer one. The trees of a forest are exchangeable: the first k are as good a forest of k as any.
"""

from __future__ import annotations

import copy
from typing import Any

from mlflow_opt.tables.learners import last_of

_BY_ESTIMATORS = ("GradientBoosting", "RandomForest", "ExtraTrees")


def rounds_in(estimator: Any) -> int:
    """Count the boosting rounds or the trees that a model predicts with; 0 if it is no sequence that could be cut.

    Args:
        estimator: a `lightgbm.Booster`, an estimator of the scikit-learn API, or a pipeline that ends in one.
    """
    last = last_of(estimator)
    booster = _booster(last)
    if booster is not None:
        return int(booster.best_iteration) if booster.best_iteration > 0 else int(booster.current_iteration())
    kind = type(last).__name__
    if kind.startswith("HistGradientBoosting"):
        return len(last._predictors)
    return len(last.estimators_) if kind.startswith(_BY_ESTIMATORS) else 0


def first_rounds(estimator: Any, rounds: int) -> Any:
    """Copy a trained model with its first rounds or trees only; it answers exactly as the longer one did after these.

    Example:
        >>> from sklearn.ensemble import RandomForestRegressor
        >>> forest = RandomForestRegressor(20, random_state=0).fit([[0], [1], [2]], [0, 1, 2])
        >>> len(first_rounds(forest, 5).estimators_), len(forest.estimators_)
        (5, 20)

    Args:
        estimator: as in `rounds_in`; it is left as it is.
        rounds: at least 1, at most what it has.

    Raises:
        ValueError: it has not so many, or is no sequence.
    """
    there = rounds_in(estimator)
    if not 1 <= rounds <= there:
        raise ValueError(f"rounds must be in [1, {there}], the length of this model, got {rounds}.")
    if hasattr(estimator, "steps"):
        made = copy.copy(estimator)
        made.steps = [*estimator.steps[:-1], (estimator.steps[-1][0], first_rounds(estimator.steps[-1][1], rounds))]
        return made
    if not hasattr(estimator, "get_params"):
        return _shorter(estimator, rounds)
    made = copy.copy(estimator)
    kind = type(made).__name__
    if hasattr(made, "booster_"):
        # What `fit` sets; the scikit-learn API has no other way to hold a booster.
        made._Booster, made._best_iteration = _shorter(made.booster_, rounds), -1
        # A second place for parameters, which a shallow copy shares with the original.
        made._other_params = dict(made._other_params)
        return made.set_params(n_estimators=rounds)
    if kind.startswith("HistGradientBoosting"):
        made._predictors = made._predictors[:rounds]
        return made.set_params(max_iter=rounds)
    made.estimators_ = made.estimators_[:rounds]
    if hasattr(made, "n_estimators_"):
        made.n_estimators_ = rounds
    return made.set_params(n_estimators=rounds)


def _booster(last: Any) -> Any:
    if type(last).__name__ == "Booster" and type(last).__module__.startswith("lightgbm"):
        return last
    return last.booster_ if type(last).__name__.startswith("LGBM") else None


def _shorter(booster: Any, rounds: int) -> Any:
    import lightgbm

    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))
