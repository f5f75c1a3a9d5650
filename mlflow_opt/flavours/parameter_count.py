"""How many numbers a model has learnt, by flavour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlflow_opt.models import Model


def count_parameters(model: Model) -> int:
    """Count the learnt numbers of a model: network weights, linear coefficients, thresholds and leaf values of trees.

    Counts of different flavours say different things; compare within one. A pyfunc model counts 0: nobody can look into it.
    """
    if model.flavour == "torch":
        return sum(int(one.numel()) for one in model.native.parameters())
    if model.flavour == "onnx":
        return _of_graph(model)
    if model.flavour == "lightgbm":
        return _of_booster(getattr(model.native, "booster_", model.native))
    if model.flavour == "xgboost":
        trees = model.native.get_booster() if hasattr(model.native, "get_booster") else model.native
        return len(trees.trees_to_dataframe())
    return _of_estimator(model.native) if model.flavour == "sklearn" else 0


def _of_graph(model: Model) -> int:
    import onnx

    from mlflow_opt.flavours.flavours import onnx_file

    graph = onnx.load(str(onnx_file(model)), load_external_data=False).graph
    weights = sum(math.prod(one.dims) for one in graph.initializer)
    values = {"nodes_values", "target_weights", "class_weights", "leaf_weights", "nodes_splits", "coefficients", "intercepts"}
    weights += sum(
        len(one.floats) or math.prod(one.t.dims)
        for node in graph.node
        for one in node.attribute
        if one.name.removesuffix("_as_tensor") in values
    )
    return int(weights)


def _of_booster(booster: Any) -> int:
    trees = booster.dump_model()["tree_info"]
    return sum(2 * int(tree["num_leaves"]) - 1 for tree in trees)


def _of_estimator(estimator: Any) -> int:
    if hasattr(estimator, "booster_"):
        return _of_booster(estimator.booster_)
    if hasattr(estimator, "tree_"):
        return int(estimator.tree_.node_count)
    own = sum(np.size(getattr(estimator, name)) for name in ("coef_", "intercept_") if hasattr(estimator, name))
    own += sum(np.size(one) for name in ("coefs_", "intercepts_") for one in getattr(estimator, name, ()))
    return own + sum(_of_estimator(one) for one in _parts(estimator))


def _parts(estimator: Any) -> list[Any]:
    if hasattr(estimator, "estimators_"):
        return [one for one in np.ravel(np.array(estimator.estimators_, dtype=object)) if hasattr(one, "predict")]
    if hasattr(estimator, "steps"):
        return [one for _, one in estimator.steps if hasattr(one, "fit")]
    return [one for one in (getattr(estimator, "best_estimator_", None),) if one is not None]
