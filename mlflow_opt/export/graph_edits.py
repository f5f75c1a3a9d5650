"""Small edits of a finished ONNX graph: which outputs it keeps, labels as columns, one set of operator versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_TREES_ML = 5
_OLD_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")


def keep_outputs(graph: Any, names: Sequence[str]) -> None:
    """Drop every other output, and the nodes and constants that only they needed."""
    kept = [one for name in names for one in graph.output if one.name == name]
    del graph.output[:]
    graph.output.extend(kept)
    needed = {one.name for one in kept}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    constants = [one for one in graph.initializer if one.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def append_one_hot(graph: Any, labels: str, classes: Any) -> str:
    """Append columns that are 1 where an output of labels names their class, and name this new output."""
    from onnx import TensorProto, helper, numpy_helper

    known = np.asarray(classes)
    constants = {"label_codes": np.arange(len(known), dtype=np.int64)[None, :], "label_column": np.array([-1, 1], np.int64)}
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    keys: dict[str, Any] = (
        {"keys_strings": [str(one) for one in known]} if known.dtype.kind in "UOT" else {"keys_int64s": [int(one) for one in known]}
    )
    codes: dict[str, Any] = {"values_int64s": list(range(len(known))), "default_int64": -1}
    if known.dtype.kind not in "UOT":
        # LabelEncoder has no version from whole numbers to whole numbers before 4, so it goes by floats, exact up to 2^24.
        codes = {"values_floats": [float(at) for at in range(len(known))], "default_float": -1.0}
    graph.node.extend(
        [
            helper.make_node("LabelEncoder", [labels], ["label_found"], domain="ai.onnx.ml", **keys, **codes),
            helper.make_node("Cast", ["label_found"], ["label_code"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["label_code", "label_column"], ["label_row"]),
            helper.make_node("Equal", ["label_row", "label_codes"], ["label_same"]),
            helper.make_node("Cast", ["label_same"], ["label_scores"], to=TensorProto.FLOAT),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("label_scores", TensorProto.FLOAT, [None, len(known)]))
    return "label_scores"


def settle_opsets(proto: Any) -> None:
    """Raise ai.onnx.ml to the version that has TreeEnsemble, where the graph uses it.

    Raises:
        ValueError: the graph also has the older tree operators, which that version took away.
    """
    kinds = {node.op_type for node in proto.graph.node}
    if "TreeEnsemble" not in kinds:
        return
    old = sorted(kinds.intersection(_OLD_TREES))
    if old:
        raise ValueError(f"one graph cannot hold {', '.join(old)} beside TreeEnsemble")
    for one in proto.opset_import:
        if one.domain == "ai.onnx.ml":
            one.version = _TREES_ML
    proto.ir_version = max(proto.ir_version, 10)


def infer_output_types(proto: Any) -> None:
    """Let an output's element type be what its node gives, where the converter only guessed it."""
    from onnx import shape_inference

    declared = {one.name: one for one in proto.graph.output}
    bare = type(proto)()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for one in bare.graph.output:
        one.ClearField("type")
    for one in shape_inference.infer_shapes(bare).graph.output:
        element = one.type.tensor_type.elem_type
        if element:
            declared[one.name].type.tensor_type.elem_type = element
    del proto.graph.value_info[:]
