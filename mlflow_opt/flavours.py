"""What each library's model takes and gives: one small class per flavour with `native`, `prepare`, `call` and `scores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mlflow_opt import dropin_code
from mlflow_opt.contracts import columns_of, to_matrix, to_table
from mlflow_opt.models import Model


class Runtime(Protocol):
    """A loaded model of one flavour."""

    native: Any

    def prepare(self, batch: Any) -> Any:
        """Turn a batch into what `call` takes."""

    def call(self, prepared: Any) -> Any:
        """Run the library's own call and nothing else."""

    def scores(self, raw: Any) -> Any:
        """Turn what `call` gave into scores."""


def open_runtime(model: Model) -> Runtime:
    """Load a model with its own library.

    Raises:
        ValueError: it will not load; the message names what is missing.
    """
    openers: dict[str, Callable[[Model], Runtime]] = {
        "sklearn": SklearnRuntime,
        "lightgbm": LightgbmRuntime,
        "xgboost": XgboostRuntime,
        "torch": _torch_runtime,
        "onnx": _onnx_runtime,
        "pyfunc": PyfuncRuntime,
    }
    try:
        return openers[model.flavour](model)
    except ImportError as error:
        named = error.name or str(error)
        raise ValueError(
            f"the model '{_name(model)}' needs the package {named}, which is not installed; install it and try again."
        ) from error
    except MemoryError:
        raise
    # A broken file fails in as many ways as there are libraries under the loaders; every one of them is this one error.
    except Exception as error:
        if isinstance(error, ValueError) and "; " in str(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        remedy = "load it with the versions of the packages it was saved with (requirements.txt in its folder), or save it again"
        raise ValueError(f"the model '{_name(model)}' does not load ({type(error).__name__}: {first}); {remedy}.") from error


class SklearnRuntime:
    """A scikit-learn estimator or pipeline; `n_jobs` is set to the model's threads wherever an estimator has it."""

    def __init__(self, model: Model) -> None:
        import mlflow.sklearn
        from sklearn.base import is_classifier

        self.native = mlflow.sklearn.load_model(str(model.path))
        self._signature = model.signature
        _set_jobs(self.native, model.threads)
        self.names = columns_of(model.signature, getattr(self.native, "feature_names_in_", None))
        self.frame = hasattr(self.native, "feature_names_in_")
        self.classes = getattr(self.native, "classes_", None)
        self.call, self.way = self.native.predict, "values"
        for way in ("predict_proba", "decision_function") if is_classifier(self.native) else ():
            if hasattr(self.native, way):
                self.call, self.way = getattr(self.native, way), way
                return
        if is_classifier(self.native):
            self.way = "labels"

    def prepare(self, batch: Any) -> Any:
        """Give a DataFrame to an estimator fitted on one, else a matrix."""
        table = to_table(batch, self.names, self._signature)
        return table if self.frame else to_matrix(table)

    def scores(self, raw: Any) -> np.ndarray:
        """Give probabilities, else decision values (two columns if binary), else one-hot labels, else values."""
        if self.way == "labels":
            return np.asarray(np.asarray(raw)[:, None] == np.asarray(self.classes)[None, :], dtype=float)
        if self.way == "decision_function" and raw.ndim == 1:
            return np.stack([-raw, raw], axis=1)
        if isinstance(raw, list):
            raise ValueError("a classifier must have one target, this one has several; save one model per target.")
        return np.asarray(raw)


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


class PyfuncRuntime:
    """A model that has nothing but MLflow's pyfunc: its `predict` on a DataFrame. It cannot be exported."""

    def __init__(self, model: Model) -> None:
        import mlflow.pyfunc

        self.native = mlflow.pyfunc.load_model(str(model.path))
        self.call = self.native.predict

    def prepare(self, batch: Any) -> Any:
        """Leave the batch as it is: MLflow enforces the signature."""
        return batch

    def scores(self, raw: Any) -> np.ndarray:
        """Give the answer as an array."""
        return np.asarray(raw)


class OnnxRuntime:
    """An ONNX graph in ONNX Runtime; only the scores output is asked for."""

    def __init__(self, session: Any, binding: dropin_code.Binding) -> None:
        self.native = session
        self.binding = binding
        self._wanted = [binding.output.name]

    def prepare(self, batch: Any) -> dict[str, np.ndarray]:
        """Give one array per graph input."""
        return dropin_code.feed(batch, self.binding.inputs)

    def call(self, prepared: dict[str, np.ndarray]) -> Any:
        """Run the graph."""
        return dropin_code.run(self.native, self._wanted, prepared)[0]

    def scores(self, raw: Any) -> np.ndarray:
        """Give scores as the binding says; a list of dictionaries (scikit-learn's zipmap) becomes its columns."""
        if isinstance(raw, list):
            raw = np.array([[row[key] for key in sorted(row)] for row in raw])
        return dropin_code.scores(raw, self.binding.output)


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
    typed = {
        column: pd.Categorical(_plain(table[column]), categories=list(values)) for column, values in zip(named, categories, strict=True)
    }
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


def _plain(values: pd.Series[Any]) -> Any:
    return values.to_numpy(dtype=object) if not isinstance(values.dtype, pd.CategoricalDtype) else values.astype(object)


def _set_jobs(estimator: Any, threads: int) -> None:
    if not threads:
        return
    found = {name: threads for name in estimator.get_params(deep=True) if name.split("__")[-1] == "n_jobs"}
    estimator.set_params(**found)


def _xgboost_objective(booster: Any) -> str:
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _torch_runtime(model: Model) -> Runtime:
    from mlflow_opt.flavour_torch import TorchRuntime

    return TorchRuntime(model)


def _onnx_runtime(model: Model) -> Runtime:
    if model.is_variant:
        folder = model.path / "artifacts"
        spec = dropin_code.read_spec(folder / dropin_code.VARIANT_FILE)
        options = dropin_code.SessionOptions(model.threads, spec.session.graph_level, spec.session.entries)
        return OnnxRuntime(dropin_code.open_session(folder / dropin_code.GRAPH_FILE, options), spec.binding)
    from mlflow_opt.graphs import bind_session

    session = dropin_code.open_session(onnx_file(model), dropin_code.SessionOptions(model.threads))
    return OnnxRuntime(session, bind_session(session, model.signature))


def onnx_file(model: Model) -> Path:
    """Find the graph of a model of flavour `onnx`."""
    if model.path.is_file():
        return model.path
    if model.is_variant:
        return model.path / "artifacts" / dropin_code.GRAPH_FILE
    from mlflow_opt.model_files import read_mlmodel

    return model.path / str(read_mlmodel(model.path).flavours["onnx"]["data"])


def _name(model: Model) -> str:
    return model.uri or str(model.path)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
