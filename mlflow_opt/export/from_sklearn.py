"""A scikit-learn estimator or pipeline as a graph with at most one matrix of numbers and one of text as inputs.

Feeding an input costs ONNX Runtime about a microsecond and slicing a matrix the same, so a pipeline that starts with a
ColumnTransformer gets its columns grouped by kind instead of one input each. A pipeline that does not, and takes text and
numbers together, keeps one input per column.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlflow_opt.export.columns import entrance
from mlflow_opt.export.converters import converters
from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.from_forests import tree_converters
from mlflow_opt.export.from_linear import linear_converters
from mlflow_opt.export.graph_edits import append_one_hot, infer_output_types, keep_outputs, settle_opsets
from mlflow_opt.flavours.contracts import to_table
from mlflow_opt.flavours.flavours import SklearnRuntime
from mlflow_opt.models import Model

_OPSETS = {"": 18, "ai.onnx.ml": 3}
# What skl2onnx must be told so that it gives plain tensors; which of these a classifier knows differs from class to class.
_OPTIONS: dict[str, tuple[dict[str, bool], ...]] = {
    "predict_proba": ({"zipmap": False},),
    "decision_function": ({"zipmap": False, "raw_scores": True}, {"zipmap": False}),
    "labels": ({"zipmap": False},),
    "values": ({},),
}


def export_estimator(model: Model, example: Any, precisions: Sequence[Any] = (np.float64, np.float32)) -> Iterator[OnnxGraph]:
    """Offer exports of an estimator, the most exact first: double precision, then single where an operator has no other.

    Args:
        model: of the flavour `sklearn`.
        example: some rows.
        precisions: number types to try.

    Raises:
        ValueError: no converter knows a part of it; the message names the part.
    """
    runtime: SklearnRuntime = model.runtime
    table = to_table(example, runtime.names, model.signature)
    estimator, feeds = entrance(copy.deepcopy(runtime.core), table, frame=runtime.frame)
    trouble, offered = "", False
    for dtype, options in itertools.product(precisions, _OPTIONS[runtime.way]):
        typed = [one if one.dtype == "str" else Feed(one.name, np.dtype(dtype).name, one.columns) for one in feeds]
        try:
            made = _export(runtime, estimator, typed, options)
        # skl2onnx reports what it does not know by any of these.
        except (NotImplementedError, RuntimeError, NameError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
            # An unknown option is our own question, not the model's trouble.
            unasked = isinstance(error, NameError) and "Option" in str(error)
            trouble = trouble or ("" if unasked else (str(error).splitlines() or [type(error).__name__])[0])
            continue
        offered = True
        yield from made
    if not offered:
        raise ValueError(f"{type(runtime.native).__name__} has no ONNX export: {trouble}; replace that part of it.")


def _export(runtime: SklearnRuntime, estimator: Any, feeds: Sequence[Feed], options: dict[str, bool]) -> list[OnnxGraph]:
    from skl2onnx import convert_sklearn

    types = [(one.name, _tensor_type(one)) for one in feeds]
    numbers = next((np.dtype(one.dtype) for one in feeds if one.dtype != "str"), np.dtype(np.float64))
    with converters(numbers, tree_converters() | linear_converters()), warnings.catch_warnings():
        # skl2onnx warns of what scikit-learn and numpy are about to take away from it, which no user can act on.
        warnings.simplefilter("ignore")
        proto = convert_sklearn(estimator, initial_types=types, target_opset=_OPSETS, options=dict(options) or None)
    names = [one.name for one in proto.graph.output]
    outputs = _outputs(runtime, proto, names)
    keep_outputs(proto.graph, [outputs[0].name, *([outputs[0].label] if outputs[0].label else [])])
    settle_opsets(proto)
    infer_output_types(proto)
    return [OnnxGraph(proto, Binding(tuple(feeds), one)) for one in outputs]


def _outputs(runtime: SklearnRuntime, proto: Any, names: list[str]) -> list[Output]:
    label = names[0] if _labels_of_their_own(runtime.core) else ""
    if runtime.way == "values":
        return [Output(names[0], "values")]
    if runtime.way == "labels":
        return [Output(append_one_hot(proto.graph, names[0], runtime.classes), "probabilities")]
    if runtime.way == "predict_proba":
        return [Output(names[1], "probabilities", label, runtime.threshold)]
    # A binary decision value comes as one column or as two, by estimator.
    return [Output(names[1], "margin", label), Output(names[1], "logits", label)]


def _labels_of_their_own(estimator: Any) -> bool:
    """Tell whether an estimator's labels may differ from its largest score, as a support vector machine's do."""
    last = estimator
    while True:
        if hasattr(last, "steps"):
            last = last.steps[-1][1]
        elif hasattr(last, "best_estimator_"):
            last = last.best_estimator_
        else:
            break
    return type(last).__name__ in ("SVC", "NuSVC", "TunedThresholdClassifierCV", "FixedThresholdClassifier")


def _tensor_type(one: Feed) -> Any:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    kinds = {"str": StringTensorType, "float64": DoubleTensorType, "float32": FloatTensorType}
    return kinds[one.dtype]([None, len(one.columns)])
