"""The trees of an ONNX graph taken out, to be changed, and put back: whatever library grew them, and whatever stands around them.

Every export of this project holds its trees as TreeEnsemble nodes. Changing them there works alike for LightGBM, XGBoost and
scikit-learn, bare or inside pipelines and ensembles, and for a variant that was compiled before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.graph_edits import keep_outputs
from mlflow_opt.export.tree_columns import LEQ, LESS, MEMBER, TreeColumns

_OPERATOR = "TreeEnsemble"


@dataclass(frozen=True)
class Site:
    """Where trees stand in a graph.

    Args:
        output: what their sum is called.
        taken: the matrix of features that they decide on.
        columns: the trees; every decision reads the features as they are.
        targets: columns of the sum.
        dtype: of thresholds and leaves.
    """

    output: str
    taken: str
    columns: TreeColumns
    targets: int
    dtype: Any


def sites_of(graph: OnnxGraph, rows: Any) -> list[tuple[Site, np.ndarray]]:
    """Find the trees of a graph and the features that they see of some rows.

    Args:
        graph: an export, or the graph of a variant.
        rows: a batch.

    Returns:
        For each TreeEnsemble its site and a matrix (rows, features).

    Raises:
        ValueError: there are no trees, or they are written in an older form of ONNX.
    """
    nodes = list(graph.proto.graph.node)
    found = [node for node in nodes if node.op_type == _OPERATOR]
    if not found:
        old = sorted({node.op_type for node in nodes if node.op_type.startswith(_OPERATOR)})
        raise ValueError(
            f"trees must be written as ONNX's {_OPERATOR}, this graph has {', '.join(old) or 'none'}; "
            "give a LightGBM, XGBoost or scikit-learn model of trees, or a variant that `compile` made of one."
        )
    taken = [_source(nodes, node.input[0]) for node in found]
    matrices = _computed(graph, taken, rows)
    return [(_read(node, name, matrix.shape[1]), matrix) for node, name, matrix in zip(found, taken, matrices, strict=True)]


def with_trees(graph: OnnxGraph, sites: Sequence[tuple[Site, int]]) -> OnnxGraph:
    """Put changed trees in the place of those that stand there.

    Args:
        graph: where the sites were found; it is left as it is.
        sites: each with the number of features of its matrix; the likely way of a decision is put last again.
    """
    from onnx import helper

    proto = type(graph.proto)()
    proto.CopyFrom(graph.proto)
    changed = {site.output: (site, width) for site, width in sites}
    nodes: list[Any] = []
    for node in proto.graph.node:
        if node.output[0] not in changed:
            nodes.append(node)
            continue
        site, width = changed[node.output[0]]
        given, columns = site.taken, copy.deepcopy(site.columns)
        if columns.likely_last(width, site.dtype):
            given = f"{site.output}_both"
            nodes.append(helper.make_node("Neg", [site.taken], [f"{site.output}_negated"]))
            nodes.append(helper.make_node("Concat", [site.taken, f"{site.output}_negated"], [given], axis=1))
        attributes = columns.attributes(site.targets, 1, site.dtype)
        nodes.append(helper.make_node(_OPERATOR, [given], [site.output], domain="ai.onnx.ml", name=node.name, **attributes))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    # What only the old order of ways needed goes with it.
    keep_outputs(proto.graph, [one.name for one in proto.graph.output])
    return replace(graph, proto=proto)


def scores_of(graph: OnnxGraph, rows: Any) -> np.ndarray:
    """Answer rows with a graph: (rows, classes) of a classifier, (rows,) of a regressor."""
    session = dropin_code.open_session(graph.proto.SerializeToString(), dropin_code.SessionOptions())
    output = graph.binding.output
    raw = dropin_code.run(session, [output.name], dropin_code.feed(rows, graph.binding.inputs))[0]
    return dropin_code.probabilities(np.asarray(raw), output) if output.kind != "values" else dropin_code.scores(raw, output)


def _source(nodes: Sequence[Any], name: str) -> str:
    """Name the matrix behind an input that holds it and then its negative."""
    made = {one: node for node in nodes for one in node.output}
    joined = made.get(name)
    if joined is None or joined.op_type != "Concat" or len(joined.input) != 2:
        return name
    second = made.get(joined.input[1])
    doubled = second is not None and second.op_type == "Neg" and second.input[0] == joined.input[0]
    return str(joined.input[0]) if doubled else name


def _computed(graph: OnnxGraph, names: Sequence[str], rows: Any) -> list[np.ndarray]:
    """Compute values inside a graph."""
    from onnx import helper

    feeds = dropin_code.feed(rows, graph.binding.inputs)
    inner = [name for name in dict.fromkeys(names) if name not in feeds]
    if not inner:
        return [feeds[name] for name in names]
    proto = type(graph.proto)()
    proto.CopyFrom(graph.proto)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    session = dropin_code.open_session(proto.SerializeToString(), dropin_code.SessionOptions(graph_level="disable"))
    found = feeds | dict(zip(inner, dropin_code.run(session, inner, feeds), strict=True))
    return [np.asarray(found[name]) for name in names]


def _read(node: Any, taken: str, width: int) -> Site:
    from onnx import helper, numpy_helper

    said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    splits, weights = (numpy_helper.to_array(said[name]) for name in ("nodes_splits", "leaf_weights"))
    columns = TreeColumns(
        feature=list(said["nodes_featureids"]),
        mode=numpy_helper.to_array(said["nodes_modes"]).astype(int).tolist(),
        split=splits.astype(float).tolist(),
        true_id=list(said["nodes_truenodeids"]),
        true_leaf=list(said["nodes_trueleafs"]),
        false_id=list(said["nodes_falsenodeids"]),
        false_leaf=list(said["nodes_falseleafs"]),
        missing_true=list(said.get("nodes_missing_value_tracks_true", [0] * len(splits))),
        members=numpy_helper.to_array(said["membership_values"]).astype(float).tolist() if "membership_values" in said else [],
        root=list(said["tree_roots"]),
        leaf_value=weights.astype(float).tolist(),
        leaf_target=list(said["leaf_targetids"]),
        likely=[False] * len(splits),
    )
    if not {LEQ, LESS, MEMBER}.issuperset(columns.mode):
        raise ValueError("trees must decide by <=, < or membership, these do otherwise; export the model again with this project.")
    _turn_back(columns, width, splits.dtype)
    return Site(str(node.output[0]), taken, columns, int(said.get("n_targets", 1)), splits.dtype)


def _turn_back(columns: TreeColumns, width: int, dtype: Any) -> None:
    """Undo `TreeColumns.likely_last`."""
    feature, mode = np.array(columns.feature), np.array(columns.mode)
    turned = (feature >= width) & (mode == LEQ)
    split = np.array(columns.split, dtype)
    with np.errstate(over="ignore"):
        split_back = -np.nextafter(split, np.array(np.inf, dtype))
    columns.split = np.where(turned, split_back, split).tolist()
    columns.feature = np.where(turned, feature - width, feature).tolist()
    columns.missing_true = (np.array(columns.missing_true) ^ turned).tolist()
    for one, other in (("true_id", "false_id"), ("true_leaf", "false_leaf")):
        true, false = np.array(getattr(columns, one)), np.array(getattr(columns, other))
        setattr(columns, one, np.where(turned, false, true).tolist())
        setattr(columns, other, np.where(turned, true, false).tolist())
