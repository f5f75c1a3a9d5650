"""Any model as an ONNX graph plus the binding that feeds it: the form every technique here works on and every variant ships in.

An export is never taken on trust: its scores on the example rows are compared with the model's own, and an export that
differs is refused. That costs one prediction and catches converters that are wrong for a corner of a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_code import Binding
from mlflow_opt.models import Model
from mlflow_opt.records import Task

logger = logging.getLogger(__name__)

# Larger than the rounding of single precision through a deep network, far smaller than what moves a decision that matters.
_TOLERANCE = 2e-3
_CHECKED_ROWS = 200


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX model and how it is fed: `binding.inputs` turn a batch into its inputs, `binding.output` holds the scores."""

    proto: Any
    binding: Binding


def to_onnx(model: Model, example: Any, task: Task, *, single: bool = False) -> OnnxGraph:
    """Export a model to ONNX.

    Helps nearly always: ONNX Runtime answers one row 1.7-4 times as fast as torch and 20-100 times as fast as scikit-learn.
    Does not help where the model is already a single large matrix product. scikit-learn and LightGBM are exported in double
    precision wherever ONNX Runtime has the operators, so that no value crosses the threshold it was split at.

    Args:
        model: of any flavour but `pyfunc`, which nobody can look into.
        example: some hundred rows of the data, to type the inputs and to compare the export with the model.
        task: its classes must be the model's.
        single: compute trees and pipelines in single precision: less memory to walk through, and a row may change its side of
            a threshold where its own number is none of single precision.

    Raises:
        ValueError: the model cannot be exported, or the export does not answer as the model does.
    """
    exporters: dict[str, Callable[[Model, Any], Iterator[OnnxGraph]]] = {
        "sklearn": _sklearn,
        "lightgbm": _lightgbm,
        "xgboost": _xgboost,
        "torch": _torch,
        "onnx": _onnx,
    }
    if single:
        exporters = {"sklearn": _sklearn_single, "lightgbm": _lightgbm_single}
    if model.flavour not in exporters:
        raise ValueError(
            f"only models of the flavours {', '.join(exporters)} can be exported, got {model.flavour}; "
            "a pyfunc hides what it computes: log the model inside it under its own flavour."
        )
    rows = head(example, _CHECKED_ROWS)
    wanted = model.predict(rows)
    _check_width(wanted, task)
    doubt = ""
    for graph in exporters[model.flavour](model, rows):
        doubt = compare(graph, rows, wanted)
        if not doubt:
            return _settled(graph)
        logger.info("An export of %s is not used: %s", model.uri or model.path, doubt)
    raise ValueError(f"an export must answer as the model does, and this one does not: {doubt}; the model has no ONNX form here.")


def _settled(graph: OnnxGraph) -> OnnxGraph:
    """Take out of an export what differs from process to process: the same model must give the same file."""
    # skl2onnx names each graph at random, and lists the operator sets in the order of a Python set.
    graph.proto.graph.name = "model"
    graph.proto.opset_import.sort(key=lambda one: one.domain)
    return graph


def _check_width(scores: np.ndarray, task: Task) -> None:
    columns = scores.shape[1] if scores.ndim == 2 else 1
    if task.kind != "regression" and columns not in (1, len(task.classes)):
        raise ValueError(
            f"the model must score the {len(task.classes)} classes of the data, it gives {columns} columns; "
            "give data that holds every class of the model, and no other."
        )


def compare(graph: OnnxGraph, rows: Any, wanted: np.ndarray) -> str:
    """Compare an export's scores with the model's own.

    Returns:
        What is wrong with it in one clause, `""` if nothing.
    """
    try:
        session = dropin_code.open_session(graph.proto.SerializeToString(), dropin_code.SessionOptions())
        feeds = dropin_code.feed(rows, graph.binding.inputs)
        raw = session.run([graph.binding.output.name], feeds)[0]
        got = dropin_code.scores(np.asarray(raw), graph.binding.output)
    except runtime_errors() as error:
        return f"ONNX Runtime or the form of its answer refuses it ({_first_line(error)})"
    if got.shape != wanted.shape:
        return f"its scores have the shape {got.shape}, the model's {wanted.shape}"
    if not np.array_equal(np.isnan(got), np.isnan(wanted)):
        return "its scores are NaN where the model's are not, or the other way round"
    scale = max(1.0, float(np.nanmax(np.abs(wanted)))) if wanted.size else 1.0
    far = float(np.nanmax(np.abs(got - wanted), initial=0.0)) / scale if wanted.size else 0.0
    return f"scores differ by up to {far:.3g} of their size" if far > _TOLERANCE else ""


def runtime_errors() -> tuple[type[Exception], ...]:
    """List what a graph's call may raise: ONNX Runtime has classes of its own that share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception)]
    return (*kinds, RuntimeError, ValueError)


def head(batch: Any, rows: int) -> Any:
    """Take the first rows of a table or of a dictionary of arrays."""
    if isinstance(batch, pd.DataFrame):
        return batch.iloc[:rows]
    if isinstance(batch, dict):
        return {name: array[:rows] for name, array in batch.items()}
    return batch[:rows]


def _sklearn(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_sklearn import export_estimator

    return export_estimator(model, example)


def _lightgbm(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_lightgbm import export_booster

    return export_booster(model, example)


def _sklearn_single(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_sklearn import export_estimator

    return export_estimator(model, example, (np.float32,))


def _lightgbm_single(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_lightgbm import export_booster

    return export_booster(model, example, np.float32)


def _xgboost(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_xgboost import export_xgboost

    return export_xgboost(model, example)


def _torch(model: Model, example: Any) -> Iterator[OnnxGraph]:
    from mlflow_opt.export.from_torch import export_network

    return export_network(model, example)


def _onnx(model: Model, example: Any) -> Iterator[OnnxGraph]:
    del example
    import onnx

    from mlflow_opt.flavours.flavours import onnx_file

    yield OnnxGraph(onnx.load(str(onnx_file(model))), model.binding)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
