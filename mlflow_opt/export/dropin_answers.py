"""What a model's pyfunc answers, so that a variant can answer alike: labels, probabilities, values, tensors, in which type."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_code import Answer
from mlflow_opt.flavours import model_files
from mlflow_opt.models import Model


def answer_of(baseline: Model, example: Any) -> Answer:
    """Say what a model's pyfunc answers.

    Args:
        baseline: of any flavour with a form of its own; `pyfunc` has none that could be known.
        example: rows, of which a few are predicted to see the type of a regressor's values.

    Raises:
        ValueError: a pyfunc-only model, or one that was saved with a predict function that has no form here.
    """
    if baseline.is_variant:
        return dropin_code.read_spec(baseline.path / "artifacts" / dropin_code.VARIANT_FILE).answer
    if baseline.flavour == "torch":
        return Answer("tensor")
    if baseline.flavour == "onnx":
        return Answer("outputs")
    if baseline.flavour in ("sklearn", "lightgbm", "xgboost"):
        return _of_estimator(baseline, example)
    raise ValueError(f"a model of the flavour {baseline.flavour} answers in a form of its own; log it under the flavour of its library.")


def _of_estimator(baseline: Model, example: Any) -> Answer:
    native = baseline.native
    way = _predict_function(baseline)
    if way not in ("predict", "predict_proba"):
        remedy = "save it with pyfunc_predict_fn='predict'"
        raise ValueError(f"a variant answers labels, values or probabilities, the model was saved to answer {way}; {remedy}.")
    classes = _classes(native)
    if classes is not None and way == "predict_proba":
        return Answer("probabilities", "float64", tuple(classes.tolist()))
    if classes is not None:
        return Answer("labels", _name(classes.dtype), tuple(classes.tolist()))
    # A bare booster answers what its trees do: a probability, a row of them, or a value.
    raw = np.asarray(baseline.call(baseline.prepare(_two(example))))
    if getattr(baseline.runtime, "binary", False):
        return Answer("positive", _name(raw.dtype))
    several = raw.shape[1] if raw.ndim == 2 else 0
    if several and baseline.flavour != "sklearn":
        return Answer("probabilities", _name(raw.dtype))
    return Answer("values", _name(raw.dtype), columns=several)


def _classes(native: Any) -> np.ndarray | None:
    classes = getattr(native, "classes_", None)
    return None if classes is None else np.asarray(classes)


def _predict_function(baseline: Model) -> str:
    pyfunc = model_files.read_mlmodel(baseline.path).flavours.get("python_function", {})
    return str(pyfunc.get("predict_fn", "predict"))


def _two(example: Any) -> Any:
    return example.iloc[:2] if hasattr(example, "iloc") else {name: array[:2] for name, array in example.items()}


def _name(dtype: np.dtype[Any]) -> str:
    return "object" if dtype.kind in "OT" else dtype.str.lstrip("<>|=") if dtype.kind == "U" else dtype.name
