"""How many multiplications a network in ONNX needs for one row: an honest size of its arithmetic, and no forecast of its latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflow_opt.models import Model
from mlflow_opt.rows.batches import Batch, take

Shapes = Mapping[str, tuple[int, ...]]
# What multiplies nearly all there is to multiply; the rest (scales, activations) is left out, as is usual.
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"}) | _RECURRENT


def macs_of(model: Model, rows: Batch) -> float:
    """Count the multiplications of convolutions, matrix products and recurrent layers for one row.

    Args:
        model: an ONNX model, or a folder with one.
        rows: some rows as the model takes them; the first is answered once to see the sizes that the graph leaves open.
    """
    import onnx

    from mlflow_opt.flavours.flavours import onnx_file

    proto = onnx.load(str(onnx_file(model)))
    layers = [node for node in proto.graph.node if node.op_type in _LAYERS]
    shapes = _shapes(proto, layers, model.prepare(take(rows, slice(0, 1))))
    return sum(_of_node(node, shapes) for node in layers)


def _shapes(proto: Any, layers: list[Any], feeds: Mapping[str, np.ndarray]) -> Shapes:
    """Run a graph once and look at what goes into its layers and comes out; inferring shapes gives up at computed reshapes."""
    import onnxruntime

    known = {one.name: tuple(one.dims) for one in proto.graph.initializer} | {name: array.shape for name, array in feeds.items()}
    wanted = dict.fromkeys(name for node in layers for name in (*node.input[:3], node.output[0]) if name and name not in known)
    ends = [one.name for one in proto.graph.output]
    proto.graph.output.extend(type(proto.graph.output[0])(name=name) for name in wanted if name not in ends)
    options = onnxruntime.SessionOptions()
    # Fused nodes would have other names.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    live = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = live.run(list(wanted), dict(feeds)) if wanted else []
    return known | {name: array.shape for name, array in zip(wanted, found, strict=True)}


def _of_node(node: Any, shapes: Shapes) -> float:
    first, weight = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in _RECURRENT:
        # Steps first, then rows.
        return float(first[0] * first[1] * (math.prod(weight) + math.prod(shapes[node.input[2]])))
    out = shapes[node.output[0]]
    if node.op_type == "Conv":
        return float(math.prod(weight) * math.prod(out[2:]))
    is_turned = any(one.name == "transA" and one.i for one in node.attribute)
    return float(math.prod(out) * first[0 if is_turned else -1])
