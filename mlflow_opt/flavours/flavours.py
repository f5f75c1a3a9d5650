"""What each library's model takes and gives: one small class per flavour with `native`, `prepare`, `call` and `scores`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.flavours.contracts import columns_of, to_matrix, to_table
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
        "lightgbm": _lightgbm_runtime,
        "xgboost": _xgboost_runtime,
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
        self.core, self.threshold = _without_threshold(self.native)
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


def _without_threshold(estimator: Any) -> tuple[Any, float]:
    """Take scikit-learn's decision threshold off a binary classifier, where it is one on the later class's probability."""
    threshold = getattr(estimator, "best_threshold_", getattr(estimator, "threshold", None))
    if type(estimator).__name__ not in ("FixedThresholdClassifier", "TunedThresholdClassifierCV") or not isinstance(threshold, float):
        return estimator, 0.5
    on_probability = hasattr(estimator, "predict_proba") and estimator.response_method in ("auto", "predict_proba")
    is_later = getattr(estimator, "pos_label", None) in (None, estimator.classes_[1])
    return (estimator.estimator_, threshold) if on_probability and is_later else (estimator, 0.5)


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
        self.threshold = binding.output.threshold
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


def _set_jobs(estimator: Any, threads: int) -> None:
    if not threads:
        return
    known = estimator.get_params(deep=True)
    owners = {
        name: known.get(name.removesuffix("n_jobs").removesuffix("__"), estimator) for name in known if name.split("__")[-1] == "n_jobs"
    }
    # Logistic regression has the parameter, no use for it, and a warning when it is trained again.
    estimator.set_params(**{name: threads for name, owner in owners.items() if type(owner).__name__ != "LogisticRegression"})


def _lightgbm_runtime(model: Model) -> Runtime:
    from mlflow_opt.flavours.boosting import LightgbmRuntime

    return LightgbmRuntime(model)


def _xgboost_runtime(model: Model) -> Runtime:
    from mlflow_opt.flavours.boosting import XgboostRuntime

    return XgboostRuntime(model)


def _torch_runtime(model: Model) -> Runtime:
    from mlflow_opt.flavours.torch_modules import TorchRuntime

    return TorchRuntime(model)


def _onnx_runtime(model: Model) -> Runtime:
    if model.is_variant:
        folder = model.path / "artifacts"
        spec = dropin_code.read_spec(folder / dropin_code.VARIANT_FILE)
        options = dropin_code.SessionOptions(model.threads, spec.session.graph_level, spec.session.entries)
        return OnnxRuntime(dropin_code.open_session(folder / dropin_code.GRAPH_FILE, options), spec.binding)
    from mlflow_opt.flavours.graphs import bind_session

    session = dropin_code.open_session(onnx_file(model), dropin_code.SessionOptions(model.threads))
    return OnnxRuntime(session, bind_session(session, model.signature))


def onnx_file(model: Model) -> Path:
    """Find the graph of a model of flavour `onnx`."""
    if model.path.is_file():
        return model.path
    if model.is_variant:
        return model.path / "artifacts" / dropin_code.GRAPH_FILE
    from mlflow_opt.flavours.model_files import read_mlmodel

    return model.path / str(read_mlmodel(model.path).flavours["onnx"]["data"])


def _name(model: Model) -> str:
    return model.uri or str(model.path)
