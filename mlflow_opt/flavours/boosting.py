"""LightGBM and XGBoost: their trees are called, whether the model is a bare booster or wears the scikit-learn API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.flavours.contracts import columns_of, to_matrix, to_table
from mlflow_opt.flavours.single_row import SingleRow, asks_quick
from mlflow_opt.models import Model


class LightgbmRuntime:
    """A LightGBM booster, bare or under the scikit-learn API: its trees are called, on a matrix or, with categories, on a table."""

    def __init__(self, model: Model) -> None:
        import mlflow.lightgbm

        self.native = mlflow.lightgbm.load_model(str(model.path))
        self.booster = getattr(self.native, "booster_", self.native)
        self._signature = model.signature
        self.names = columns_of(model.signature, self.booster.feature_name() if model.signature else None)
        self._width = self.booster.num_feature()
        self.categories = self.booster.pandas_categorical or []
        # num_threads=0 is the library's own default.
        self._threads = model.threads
        self.single = self.booster.num_model_per_iteration() == 1
        self.binary = self.single and is_binary(self.booster)
        self._quick = SingleRow(self.booster, model.threads) if asks_quick(model.path) and not self.categories else None

    def prepare(self, batch: Any) -> Any:
        """Give a float64 matrix, or a table with the training categories."""
        table = to_table(batch, self.names, self._signature)
        if table.shape[1] != self._width:
            raise ValueError(f"the model takes {self._width} columns, got {table.shape[1]}: {_listed(table.columns)}; give it those only.")
        if not self.categories:
            return to_matrix(table)
        return with_categories(table, self.categories)

    def call(self, prepared: Any) -> Any:
        """Predict with the trees."""
        if self._quick is not None and len(prepared) == 1:
            return self._quick(prepared)
        return self.booster.predict(prepared, num_threads=self._threads)

    def scores(self, raw: Any) -> np.ndarray:
        """Give two columns for a binary objective."""
        return np.stack([1 - raw, raw], axis=1) if self.binary else np.asarray(raw)


class XgboostRuntime:
    """An XGBoost booster, bare or under the scikit-learn API, called on a matrix without building a DMatrix."""

    def __init__(self, model: Model) -> None:
        import mlflow.xgboost

        self.native = mlflow.xgboost.load_model(str(model.path))
        self.booster = self.native.get_booster() if hasattr(self.native, "get_booster") else self.native
        if any(kind == "c" for kind in self.booster.feature_types or []):
            raise ValueError("XGBoost models with categorical columns are not supported; encode the columns in a pipeline and save that.")
        if getattr(self.native, "missing", None) not in (None, np.nan) and not np.isnan(self.native.missing):
            raise ValueError(f"XGBoost models with missing={self.native.missing} are not supported; mark missing values by NaN.")
        if model.threads:
            self.booster.set_param({"nthread": model.threads})
        self.iterations = best_iterations(self.native)
        self._signature = model.signature
        self.names = columns_of(model.signature, self.booster.feature_names)
        self.binary = _xgboost_objective(self.booster).startswith("binary:")

    def prepare(self, batch: Any) -> Any:
        """Give a float32 matrix, which is what XGBoost's trees compare with."""
        return to_matrix(to_table(batch, self.names, self._signature)).astype(np.float32)

    def call(self, prepared: Any) -> Any:
        """Predict with the trees."""
        return self.booster.inplace_predict(prepared, iteration_range=(0, self.iterations), validate_features=False)

    def scores(self, raw: Any) -> np.ndarray:
        """Give two columns for a binary objective."""
        return np.stack([1 - raw, raw], axis=1) if self.binary else np.asarray(raw)


def best_iterations(estimator: Any) -> int:
    """Count the boosting rounds that an XGBoost model predicts with, 0 for all: its scikit-learn API stops at the best one."""
    if not hasattr(estimator, "get_booster"):
        return 0
    # Set by early stopping only; asking for it otherwise raises AttributeError.
    best = getattr(estimator, "best_iteration", None)
    return 0 if best is None else int(best) + 1


def with_categories(table: pd.DataFrame, categories: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Give a table's category columns the categories that LightGBM was trained with, in their order.

    Raises:
        ValueError: the table does not have as many category (or string) columns as the model was trained with.
    """
    named = category_columns(table, len(categories))
    typed = {column: _categorical(table[column], list(values)) for column, values in zip(named, categories, strict=True)}
    return table.assign(**{str(column): values for column, values in typed.items()})


def category_columns(table: pd.DataFrame, expected: int) -> list[Any]:
    """Name the columns that hold categories: those typed so, or if these are too few also those that hold text.

    Raises:
        ValueError: there are not `expected` of them.
    """
    typed = [column for column in table.columns if isinstance(table[column].dtype, pd.CategoricalDtype)]
    text = [column for column in table.columns if not pd.api.types.is_numeric_dtype(table[column].dtype)]
    for named in (typed, text):
        if len(named) == expected:
            return named
    remedy = "give these columns the dtype 'category'"
    raise ValueError(f"the model was trained with {expected} category columns, got {len(text)} ({_listed(text)}); {remedy}.")


def is_binary(booster: Any) -> bool:
    """Tell whether a LightGBM booster with one tree per iteration gives the probability of a class."""
    objective = str(booster.dump_model(num_iteration=1).get("objective", ""))
    return objective.split(" ", maxsplit=1)[0] in ("binary", "cross_entropy", "cross_entropy_lambda")


def _categorical(values: pd.Series[Any], categories: list[Any]) -> Any:
    # By code, as the drop-in does: a value that training had not seen is missing to LightGBM.
    known = pd.Index(categories)
    codes = np.asarray(known.get_indexer(pd.Index(values.to_numpy(dtype=object))))
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(known))


def _xgboost_objective(booster: Any) -> str:
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
