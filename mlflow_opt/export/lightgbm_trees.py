"""LightGBM's trees as one ONNX TreeEnsemble, decision by decision as LightGBM takes them.

Written here, and not left to a general converter, because three things decide whether predictions stay what they were:
which way a missing value goes (LightGBM has three rules), categories (a set membership, not a chain of comparisons), and
thresholds compared in double precision (in single precision a value can cross the threshold it was split at).

Source: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", 2017; its `Tree::NumericalDecision` and
`Tree::CategoricalDecision`; ONNX operator ai.onnx.ml.TreeEnsemble, version 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_opt.export.tree_columns import LEQ, MEMBER, TreeColumns

# What LightGBM takes for zero where missing_type is Zero.
_ZERO = 1.0000000180025095e-35
# LightGBM dumps an infinite threshold, which sends everything but a missing value left, as this number.
_DUMPED_INFINITY = 1e300
_IDENTITY = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg", "custom", "")
_EXPONENTIAL = ("poisson", "gamma", "tweedie")


@dataclass(frozen=True)
class Link:
    """How a booster turns the sum of its trees into its answer: the function, its slope, and the number of columns."""

    kind: str
    slope: float
    columns: int


def link_of(booster: Any) -> Link:
    """Read a booster's link function.

    Raises:
        ValueError: the objective has one that is not known here.
    """
    columns = booster.num_model_per_iteration()
    said = str(booster.dump_model(num_iteration=1).get("objective", "")).split(" ")
    options = dict(part.split(":", 1) for part in said[1:] if ":" in part)
    name, slope = said[0], float(options.get("sigmoid", 1.0))
    if "sqrt" in said[1:]:
        return Link("square", 1.0, columns)
    if name == "binary":
        return Link("logistic", slope, columns)
    if name == "cross_entropy":
        return Link("logistic", 1.0, columns)
    if name == "multiclassova":
        return Link("logistic", slope, columns)
    if name == "multiclass":
        return Link("softmax", 1.0, columns)
    if name in _EXPONENTIAL:
        return Link("exponential", 1.0, columns)
    if name in _IDENTITY:
        return Link("identity", 1.0, columns)
    raise ValueError(
        f"LightGBM's objective '{name}' has no export; train with one of binary, multiclass, regression or {', '.join(_EXPONENTIAL)}."
    )


def tree_attributes(booster: Any, dtype: Any) -> tuple[dict[str, Any], bool]:
    """Write a booster's trees as the attributes of one TreeEnsemble node.

    Args:
        booster: a `lightgbm.Booster`.
        dtype: np.float64 keeps every decision as it was; np.float32 does so for features that are exact in it.

    Returns:
        The attributes, and whether the node's input is the features and then the features negated.

    Raises:
        ValueError: its leaves hold linear models.
    """
    dump = booster.dump_model()
    nodes = TreeColumns()
    per_iteration = int(dump["num_tree_per_iteration"])
    for number, tree in enumerate(dump["tree_info"]):
        if _has_linear_leaf(tree["tree_structure"]):
            raise ValueError("LightGBM trees with linear leaves (linear_tree=true) have no ONNX operator; train without linear_tree.")
        nodes.root.append(_grow(nodes, tree["tree_structure"], number % per_iteration))
    # A random forest of LightGBM answers with the mean over its iterations, which are fewer than its trees if there are classes.
    share = len(dump["tree_info"]) // per_iteration if dump.get("average_output") else 1
    doubled = nodes.likely_last(booster.num_feature(), dtype)
    return nodes.attributes(per_iteration, share, dtype), doubled


def booster_graph(booster: Any, name: str, dtype: Any) -> Any:
    """Make the graph of a booster: one (rows, features) matrix in, the booster's own answer out (a binary one as (rows, 1)).

    Args:
        booster: a `lightgbm.Booster`.
        name: of the graph's input.
        dtype: of the matrix, np.float32 or np.float64.
    """
    from onnx import TensorProto, helper

    element = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
    nodes, constants = booster_nodes(booster, name, "scores", dtype)
    inputs = [helper.make_tensor_value_info(name, element, [None, booster.num_feature()])]
    outputs = [helper.make_tensor_value_info("scores", element, [None, booster.num_model_per_iteration()])]
    graph = helper.make_graph(nodes, "booster", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def booster_nodes(booster: Any, taken: str, given: str, dtype: Any, prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Make the nodes and constants that lead from a matrix to the booster's answer.

    Args:
        booster: a `lightgbm.Booster`.
        taken: name of the matrix.
        given: name of the answer.
        dtype: of the matrix.
        prefix: of every name in between, where a graph holds more than one booster.
    """
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(value: Any) -> str:
        constants.append(numpy_helper.from_array(np.array(value), f"{prefix}constant_{len(constants)}"))
        return str(constants[-1].name)

    def then(operator: str, *inputs: str, **attributes: Any) -> str:
        made = helper.make_node(operator, list(inputs), [f"{prefix}{operator.lower()}_{len(nodes)}"], **attributes)
        nodes.append(made)
        return str(made.output[0])

    zeros = zero_features(booster)
    if zeros.any():
        # Where zero counts as missing it becomes NaN before the trees see it: their nodes know one missing value only.
        near = then("LessOrEqual", then("Abs", taken), constant(np.array(_ZERO, dtype)))
        taken = then("Where", then("And", near, constant(zeros[None, :])), constant(np.array(np.nan, dtype)), taken)
    attributes, doubled = tree_attributes(booster, dtype)
    if doubled:
        taken = then("Concat", taken, then("Neg", taken), axis=1)
    before = then("TreeEnsemble", taken, domain="ai.onnx.ml", **attributes)
    link = link_of(booster)
    if link.slope != 1.0:
        before = then("Mul", before, constant(np.array(link.slope, dtype)))
    if link.kind == "square":
        then("Mul", before, then("Abs", before))
    elif link.kind != "identity":
        operator = {"logistic": "Sigmoid", "softmax": "Softmax", "exponential": "Exp"}[link.kind]
        then(operator, before, **({"axis": 1} if link.kind == "softmax" else {}))
    nodes[-1].output[0] = given
    return nodes, constants


def zero_features(booster: Any) -> np.ndarray:
    """Tell for each feature whether its splits take zero for missing (`zero_as_missing`)."""
    found = np.zeros(booster.num_feature(), dtype=bool)
    for split in _splits(booster):
        if split["decision_type"] == "<=" and split["missing_type"] == "Zero":
            found[int(split["split_feature"])] = True
    return found


def _splits(booster: Any) -> Iterator[dict[str, Any]]:
    stack = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while stack:
        one = stack.pop()
        if "split_index" in one:
            yield one
            stack += [one["left_child"], one["right_child"]]


def _has_linear_leaf(node: dict[str, Any]) -> bool:
    stack = [node]
    while stack:
        one = stack.pop()
        if one.get("leaf_coeff"):
            return True
        stack += [one[side] for side in ("left_child", "right_child") if side in one]
    return False


def _grow(nodes: TreeColumns, tree: dict[str, Any], target: int) -> int:
    if "split_index" not in tree:
        return nodes.only_leaf(float(tree["leaf_value"]), target)
    # A stack and not recursion: a leaf-wise tree can be as deep as it has leaves.
    root = _open(nodes, tree)
    stack = [(tree, root)]
    while stack:
        one, at = stack.pop()
        ends = []
        for side in ("left_child", "right_child"):
            child = one[side]
            if "split_index" in child:
                ends.append((_open(nodes, child), False))
                stack.append((child, ends[-1][0]))
            else:
                ends.append((nodes.leaf(float(child["leaf_value"]), target), True))
        nodes.join(at, ends[0], ends[1])
    return root


def _open(nodes: TreeColumns, split: dict[str, Any]) -> int:
    feature, likely = int(split["split_feature"]), _rows(split["left_child"]) > _rows(split["right_child"])
    if split["decision_type"] == "==":
        members = [float(value) for value in str(split["threshold"]).split("||")]
        nodes.members += [*members, float("nan")]
        return nodes.decision(feature, MEMBER, 0.0, missing_true=False)
    threshold, kind = float(split["threshold"]), split["missing_type"]
    if threshold >= _DUMPED_INFINITY:
        threshold = float("inf")
    if kind == "None":
        # LightGBM reads a missing value as zero here.
        return nodes.decision(feature, LEQ, threshold, missing_true=threshold >= 0, likely=likely)
    return nodes.decision(feature, LEQ, threshold, missing_true=bool(split["default_left"]), likely=likely)


def _rows(node: dict[str, Any]) -> float:
    """Count the training rows that came to a node; 0 in a model that does not say."""
    return float(node.get("internal_count", node.get("leaf_count", 0)))
