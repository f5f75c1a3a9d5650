"""An XGBoost model as a graph of one TreeEnsemble in single precision, which is what XGBoost itself compares and sums in.

Source: Chen & Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016; the JSON model of XGBoost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.tree_columns import LESS, NodeArrays, TreeColumns
from mlflow_opt.flavours.boosting import XgboostRuntime
from mlflow_opt.flavours.contracts import to_table
from mlflow_opt.models import Model

_INPUT, _SCORES = "features", "scores"
# Objective -> how the base score becomes a margin, and the margins the answer.
_LINKS = {
    "binary:logistic": ("logit", "Sigmoid"),
    "reg:logistic": ("logit", "Sigmoid"),
    "binary:logitraw": ("logit", ""),
    "multi:softprob": ("", "Softmax"),
    "count:poisson": ("log", "Exp"),
    "reg:gamma": ("log", "Exp"),
    "reg:tweedie": ("log", "Exp"),
    "reg:squarederror": ("", ""),
    "reg:squaredlogerror": ("", ""),
    "reg:absoluteerror": ("", ""),
    "reg:pseudohubererror": ("", ""),
    "reg:quantileerror": ("", ""),
    "rank:pairwise": ("", ""),
    "rank:ndcg": ("", ""),
    "rank:map": ("", ""),
}


def export_xgboost(model: Model, example: Any) -> Iterator[OnnxGraph]:
    """Export the trees that the model predicts with: all of them, or those up to its best iteration.

    Raises:
        ValueError: a booster that is no sum of trees (`gblinear`, `dart`), or an objective without an ONNX form.
    """
    from onnx import TensorProto, helper

    runtime: XgboostRuntime = model.runtime
    table = to_table(example, runtime.names, model.signature)
    said = read_booster(runtime.booster, runtime.iterations)
    nodes, constants = booster_nodes(said, _INPUT, _SCORES)
    inputs = [helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, [None, runtime.booster.num_features()])]
    outputs = [helper.make_tensor_value_info(_SCORES, TensorProto.FLOAT, [None, columns_of(said)])]
    graph = helper.make_graph(nodes, "booster", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    output = Output(_SCORES, "positive" if runtime.binary else "probabilities" if columns_of(said) > 1 else "values")
    yield OnnxGraph(proto, Binding((Feed(_INPUT, "float32", tuple(table.columns) if runtime.names else ()),), output))


def read_booster(booster: Any, iterations: int) -> dict[str, Any]:
    """Read a booster's JSON form.

    Args:
        booster: an `xgboost.Booster`.
        iterations: how many of its boosting rounds count, 0 for all.

    Raises:
        ValueError: it is no sum of trees, or its objective has no ONNX form.
    """
    kept = booster[:iterations] if iterations else booster
    learner: dict[str, Any] = json.loads(kept.save_raw("json"))["learner"]
    kind, objective = learner["gradient_booster"]["name"], learner["objective"]["name"]
    if kind != "gbtree":
        raise ValueError(f"only XGBoost's booster 'gbtree' has an export, got '{kind}'; train with booster='gbtree'.")
    if objective not in _LINKS:
        raise ValueError(f"XGBoost's objective '{objective}' has no export; train with one of {', '.join(_LINKS)}.")
    return learner


def columns_of(learner: dict[str, Any]) -> int:
    """Count the columns of a booster's answer."""
    return max(1, int(learner["learner_model_param"]["num_class"]), int(learner["learner_model_param"]["num_target"]))


def booster_nodes(learner: dict[str, Any], taken: str, given: str, prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Make the nodes and constants that lead from a single-precision matrix to the booster's answer."""
    from onnx import helper, numpy_helper

    columns, targets = TreeColumns(), columns_of(learner)
    trees = learner["gradient_booster"]["model"]
    for target, tree in zip(trees["tree_info"], trees["trees"], strict=True):
        values = np.array(tree["split_conditions"], np.float32)
        missing_left = np.array(tree["default_left"], bool)
        nodes = NodeArrays(tree["left_children"], tree["right_children"], tree["split_indices"], values, missing_left, values)
        columns.grow(nodes, target, LESS)
    to_margin, link = _LINKS[learner["objective"]["name"]]
    base = np.atleast_1d(np.array(json.loads(learner["learner_model_param"]["base_score"].replace("[-E", "[-0E")), float))
    base = np.log(base / (1 - base)) if to_margin == "logit" else np.log(base) if to_margin == "log" else base
    constants = [numpy_helper.from_array(base.astype(np.float32).reshape(1, -1), f"{prefix}base")]
    summed, margin = f"{prefix}sum", f"{prefix}margin" if link else given
    made = [
        helper.make_node("TreeEnsemble", [taken], [summed], domain="ai.onnx.ml", **columns.attributes(targets, 1, np.float32)),
        helper.make_node("Add", [summed, constants[0].name], [margin]),
    ]
    if link:
        axis: dict[str, Any] = {"axis": 1} if link == "Softmax" else {}
        made.append(helper.make_node(link, [margin], [given], **axis))
    return made, constants
