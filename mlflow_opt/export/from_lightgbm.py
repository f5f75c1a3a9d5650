"""A LightGBM model, booster or scikit-learn API, as a graph of one TreeEnsemble."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.lightgbm_trees import booster_graph
from mlflow_opt.flavours.boosting import LightgbmRuntime, category_columns
from mlflow_opt.flavours.contracts import to_table
from mlflow_opt.models import Model

_INPUT = "features"


def export_booster(model: Model, example: Any, dtype: Any = np.float64) -> Iterator[OnnxGraph]:
    """Export in double precision, which keeps every decision, or in single, whose nodes take a quarter less memory.

    A model trained on pandas categories is fed their codes: the binding looks them up in the training categories.

    Args:
        model: of the flavour `lightgbm`.
        example: some rows.
        dtype: np.float64 or np.float32.

    Raises:
        ValueError: the objective or the leaves have no ONNX form.
    """
    runtime: LightgbmRuntime = model.runtime
    table = to_table(example, runtime.names, model.signature)
    named = category_columns(table, len(runtime.categories)) if runtime.categories else []
    categories = {column: tuple(_plain(value) for value in values) for column, values in zip(named, runtime.categories, strict=True)}
    feed = Feed(_INPUT, np.dtype(dtype).name, tuple(table.columns) if runtime.names else (), categories)
    output = Output("scores", "positive" if runtime.binary else "values" if runtime.single else "probabilities")
    yield OnnxGraph(booster_graph(runtime.booster, _INPUT, dtype), Binding((feed,), output))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
