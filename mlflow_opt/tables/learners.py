"""A table's model that can be trained again: on fewer columns, with other parameters, on other rows or labels.

A variant is an ONNX graph, which nobody can train on. So it carries the model it was exported from in `trainable/`, in
that library's own format without pickle, and the next recipe of a chain starts from there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt import models
from mlflow_opt.flavours.contracts import columns_of
from mlflow_opt.flavours.model_files import TRAINABLE
from mlflow_opt.models import Model

# Parameters of a bare booster that the scikit-learn API sets by itself.
_OWN = ("objective", "num_iterations", "num_class", "verbosity", "metric", "num_threads", "boost_from_average", "categorical_feature")


@dataclass(frozen=True)
class Fitted:
    """A trained estimator: its columns, the seconds its training took, the probability from which it answers the later of two classes."""

    estimator: Any
    columns: tuple[str, ...]
    categories: Mapping[str, tuple[Any, ...]]
    seconds: float
    threshold: float = 0.5

    def scores(self, rows: pd.DataFrame) -> np.ndarray:
        """Give (n, classes) probabilities (decision values where there are none), or (n,) values of a regressor."""
        given = typed(rows, self.columns, self.categories)
        for way in ("predict_proba", "decision_function"):
            if hasattr(self.estimator, way):
                found = np.asarray(getattr(self.estimator, way)(given))
                return np.stack([-found, found], axis=1) if found.ndim == 1 else found
        return np.asarray(self.estimator.predict(given))

    @property
    def last(self) -> Any:
        """Return the estimator that predicts: the last step of a pipeline, or the estimator itself."""
        return last_of(self.estimator)


@dataclass(frozen=True)
class Learner:
    """How a table's model is trained.

    Args:
        template: an estimator of the scikit-learn API, not fitted; it is never changed.
        columns: of the table that it takes, in order.
        categories: column -> its values, of columns that LightGBM takes as categories; empty for pipelines.
        threshold: the model's own, which what is trained inherits.
    """

    template: Any
    columns: tuple[str, ...]
    categories: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    threshold: float = 0.5

    @cached_property
    def kind(self) -> str:
        """Name the estimator that predicts, `LGBMClassifier` or `LogisticRegression`."""
        return type(last_of(self.template)).__name__

    @property
    def is_boosting(self) -> bool:
        """Tell whether it adds tree after tree, so that it can stop early."""
        return self.kind.startswith(("LGBM", "XGB"))

    def params(self) -> dict[str, Any]:
        """Give the parameters of the estimator that predicts."""
        return dict(last_of(self.template).get_params(deep=False))

    def fit(
        self,
        rows: pd.DataFrame,
        labels: np.ndarray,
        *,
        columns: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        valid: tuple[pd.DataFrame, np.ndarray] | None = None,
        patience: int = 50,
    ) -> Fitted:
        """Train a fresh estimator.

        Args:
            rows: train rows with at least the columns.
            labels: shape (n,).
            columns: train on these only; all if empty.
            params: of the estimator that predicts, in place of the template's own.
            valid: rows and labels that tell a boosting model when to stop; other estimators ignore them.
            patience: rounds without a better validation loss after which a boosting model stops.

        Raises:
            ValueError: the estimator refuses the rows or a parameter; the message is its own.
        """
        chosen = tuple(columns) or self.columns
        made = with_columns(self.template, chosen)
        last_of(made).set_params(**(params or {}))
        categories = {name: values for name, values in self.categories.items() if name in chosen}
        started = time.perf_counter()
        with warnings.catch_warnings():
            # A solver that has not converged is a parameter's fault, and its score says so.
            warnings.filterwarnings("ignore", category=_convergence())
            # Its successor, eval_y, takes no labels that are text.
            warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")
            if valid is not None and self.is_boosting:
                _fit_stopping(made, typed(rows, chosen, categories), labels, (typed(valid[0], chosen, categories), valid[1]), patience)
            else:
                made.fit(typed(rows, chosen, categories), labels)
        return Fitted(made, chosen, categories, time.perf_counter() - started, self.threshold)


def native_of(model: Model) -> Model:
    """Find the model that can be trained again: the model itself, or what a variant of ours carries.

    Raises:
        ValueError: there is none.
    """
    if model.flavour in ("sklearn", "lightgbm", "xgboost"):
        return model
    if (model.path / TRAINABLE / "MLmodel").is_file():
        return models.load(str(model.path / TRAINABLE), model.threads)
    raise ValueError(
        f"this recipe trains the model again, and '{model.uri or model.path}' ({model.flavour}) holds nothing to train on a table; "
        "give the scikit-learn, LightGBM or XGBoost model that it was made from."
    )


def learner_of(model: Model) -> Learner:
    """Read from a model how it is trained: its estimator without what it has learnt.

    Helps every recipe that trains on the user's own terms: pipeline, parameters and preprocessing stay theirs.

    Args:
        model: scikit-learn (pipelines included), LightGBM (booster or scikit-learn API), XGBoost (scikit-learn API), or a
            variant that carries one.

    Raises:
        ValueError: there is nothing to train, or the objective has no estimator.
    """
    from sklearn.base import clone

    native = native_of(model)
    runtime = native.runtime
    estimator = getattr(runtime, "core", runtime.native)
    columns = columns_of(native.signature, getattr(estimator, "feature_names_in_", None))
    if columns is None:
        raise ValueError(f"the model '{native.uri or native.path}' must name its columns; save it with a signature of a table.")
    if not hasattr(estimator, "get_params"):
        if native.flavour != "lightgbm":
            raise ValueError("a bare XGBoost booster does not say how it was trained; save XGBClassifier or XGBRegressor instead.")
        return Learner(_estimator_of(runtime.booster), tuple(columns), _categories(runtime, columns, native), model.threshold)
    categories = _categories(runtime, columns, native) if native.flavour == "lightgbm" else {}
    return Learner(clone(estimator), tuple(columns), categories, model.threshold)


def with_threshold(estimator: Any, threshold: float) -> Any:
    """Give a trained binary classifier the probability of its later class from which it answers that, as scikit-learn's own wrapper."""
    from sklearn.model_selection import FixedThresholdClassifier

    made = FixedThresholdClassifier(estimator, threshold=threshold, response_method="predict_proba")
    # What `fit` would set; the estimator is trained already.
    made.estimator_ = estimator
    made._response_method = "predict_proba"
    made.feature_names_in_ = estimator.feature_names_in_
    made.n_features_in_ = estimator.n_features_in_
    return made


def last_of(estimator: Any) -> Any:
    """Return the estimator that predicts: the last step of a pipeline (of pipelines), or the estimator itself."""
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def typed(rows: pd.DataFrame, columns: Sequence[str], categories: Mapping[str, tuple[Any, ...]]) -> pd.DataFrame:
    """Pick columns from a table, those with categories typed so; a value that training had not seen is missing."""
    table = rows[list(columns)]
    made = {name: pd.Categorical(table[name].astype(object), categories=list(values)) for name, values in categories.items()}
    return table.assign(**made) if made else table


def with_columns(template: Any, columns: Sequence[str]) -> Any:
    """Copy an estimator so that its ColumnTransformer asks for these columns only; a transformer without columns is left out.

    Raises:
        ValueError: a ColumnTransformer picks its columns by position, which fewer columns would shift.
    """
    from sklearn.base import clone

    made = clone(template)
    steps = made.steps if hasattr(made, "steps") else []
    for _, step in steps[:1]:
        if type(step).__name__ == "ColumnTransformer":
            step.transformers = [(name, one, _picked(where, columns)) for name, one, where in step.transformers]
            step.transformers = [one for one in step.transformers if callable(one[2]) or len(one[2])]
    return made


def _picked(where: Any, columns: Sequence[str]) -> Any:
    if callable(where):
        return where
    names = [where] if isinstance(where, str) else list(where)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a ColumnTransformer must name its columns to be trained on fewer of them, it has positions; use names.")
    return [name for name in names if name in columns]


def _fit_stopping(made: Any, rows: pd.DataFrame, labels: np.ndarray, valid: tuple[pd.DataFrame, np.ndarray], patience: int) -> None:
    last, held = last_of(made), valid[0]
    if hasattr(made, "steps"):
        rows, held = made[:-1].fit_transform(rows, labels), made[:-1].transform(held)
    if type(last).__name__.startswith("LGBM"):
        from lightgbm import early_stopping

        last.fit(rows, labels, eval_set=[(held, valid[1])], callbacks=[early_stopping(patience, verbose=False)])
    else:
        last.set_params(early_stopping_rounds=patience).fit(rows, labels, eval_set=[(held, valid[1])], verbose=False)


def _estimator_of(booster: Any) -> Any:
    """Turn a bare LightGBM booster into the estimator that would train it."""
    from lightgbm import LGBMClassifier, LGBMRegressor

    objective = str(booster.dump_model(num_iteration=1).get("objective", "")).split(" ")[0]
    known = {name: value for name, value in booster.params.items() if name not in _OWN and value is not None}
    known = {"n_estimators": booster.current_iteration(), "verbose": -1, "n_jobs": 1} | known
    if objective in ("binary", "cross_entropy", "multiclass", "multiclassova"):
        return LGBMClassifier(**known)
    if objective in ("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie"):
        return LGBMRegressor(objective=objective, **known)
    raise ValueError(f"a LightGBM model of the objective '{objective}' cannot be trained again here; use a classifier or a regressor.")


def _categories(runtime: Any, columns: Sequence[str], model: Model) -> dict[str, tuple[Any, ...]]:
    if not runtime.categories:
        return {}
    texts = [spec.name for spec in model.signature.inputs.inputs if getattr(spec.type, "name", "") == "string"]
    if len(texts) != len(runtime.categories):
        raise ValueError(
            f"the model was trained with {len(runtime.categories)} category columns and its signature has {len(texts)} of text; "
            "save it with a signature of the table that it was trained on."
        )
    return {name: tuple(values) for name, values in zip([c for c in columns if c in texts], runtime.categories, strict=True)}


def _convergence() -> type[Warning]:
    from sklearn import exceptions

    kind: type[Warning] = exceptions.ConvergenceWarning
    return kind
