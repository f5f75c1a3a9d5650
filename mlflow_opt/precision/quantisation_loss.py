"""Keep quality while quantising: which operators suffer, which stay in float, and biases that make up for the mean error.

References: Wu et al. 2020, "Integer quantization for deep learning inference" (sensitivity, partial quantisation); Nagel et
al. 2019, "Data-free quantization through weight equalization and bias correction" (section 4.2, here with data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_opt.precision.quantisation import Feeds, Scheme, heavy_operators, outputs_of, quantised

if TYPE_CHECKING:
    import onnx

_INT32 = np.iinfo(np.int32)


def sensitivities(proto: onnx.ModelProto, scheme: Scheme, feeds: Sequence[Feeds]) -> dict[str, float]:
    """Measure, for every heavy operator, the relative output error when only that operator is quantised.

    One operator at a time leaves interactions out (Wu et al. 2020, section 5.2), which is why the fallback afterwards
    scores real candidates instead of adding these numbers up.
    """
    wanted = outputs_of(proto, feeds)
    found = {}
    for name in heavy_operators(proto):
        got = outputs_of(quantised(proto, scheme, feeds, only=[name]), feeds)
        found[name] = float(np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))
    return found


def fewest_in_float(ranked: Sequence[str], drop_when_kept: Callable[[Sequence[str]], float], bound: float) -> list[str]:
    """Find by bisection the fewest of the most sensitive operators that must stay in float for the drop to be within the bound.

    The drop is taken to shrink as more operators stay in float. Where noise breaks that, the answer is still one whose
    drop was seen to be within the bound, only perhaps not the smallest.

    Args:
        ranked: operators, the most sensitive first.
        drop_when_kept: quality lost when these operators stay in float.
        bound: largest drop allowed.

    Returns:
        the operators to keep in float; all of them if nothing less was within the bound.
    """
    low, high = 0, len(ranked)
    while low + 1 < high:
        middle = (low + high) // 2
        if drop_when_kept(ranked[:middle]) <= bound:
            high = middle
        else:
            low = middle
    return list(ranked[:high])


def least_in_float(kept: Sequence[str], drop_when_kept: Callable[[Sequence[str]], float], bound: float, *, trials: int) -> list[str]:
    """Quantise kept operators one by one, the least sensitive first, as long as the drop stays within the bound.

    Bisection keeps the most sensitive operators, all of them down to a rank; this takes back those that were kept only
    because a more harmful one has a higher rank.

    Args:
        kept: operators in float, the most sensitive first, with a drop within the bound.
        drop_when_kept: quality lost when these operators stay in float.
        bound: largest drop allowed.
        trials: at most so many candidates are scored.

    Returns:
        the operators that must stay in float.

    Example:
        >>> least_in_float(["a", "b", "c"], lambda names: 0.0 if "b" in names else 1.0, 0.01, trials=9)
        ['b']
    """
    left = list(kept)
    for name in list(reversed(kept))[:trials]:
        fewer = [one for one in left if one != name]
        if drop_when_kept(fewer) <= bound:
            left = fewer
    return left


def bias_corrected(proto: onnx.ModelProto, integer: onnx.ModelProto, feeds: Sequence[Feeds]) -> Any:
    """Move the integer biases of a quantised graph so that each operator's mean output on calibration rows is the float one.

    Rounding weights shifts an operator's mean output, which a mean over rows does not average out: the error of a
    regression gets a bias. One operator after the other is corrected in graph order, each with the ones before it corrected
    already. Operators without a bias of their own are left alone.

    Args:
        proto: the float graph.
        integer: the same quantised statically, in QDQ form.
        feeds: batches of calibration rows as the graph's inputs.

    Returns:
        A corrected copy; answers that were right on average stay so.
    """
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(integer)
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    makers = {name: node for node in made.graph.node for name in node.output}
    targets = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    floats = {node.name: node.output[0] for node in proto.graph.node}
    wanted = _means(proto, [floats[node.name] for node in targets if node.name in floats], feeds)
    for node in targets:
        dequantise = makers.get(node.input[2])
        if node.name not in floats or dequantise is None or dequantise.input[0] not in stored:
            continue
        got = _means(made, [node.output[0]], feeds)[node.output[0]]
        integers, scale = (numpy_helper.to_array(stored[name]) for name in dequantise.input[:2])
        moved = integers + np.round((wanted[floats[node.name]] - got) / scale)
        tensor = numpy_helper.from_array(np.clip(moved, _INT32.min, _INT32.max).astype(np.int32), dequantise.input[0])
        stored[dequantise.input[0]].CopyFrom(tensor)
    return made


def _means(proto: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, np.ndarray]:
    """Average tensors within a graph over rows and places, one value a channel, integer arithmetic simulated in float."""
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    # Optimised, the tensors asked for would be fused away.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    live = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums, rows = [0.0] * len(names), 0
    for feed in feeds:
        for at, output in enumerate(live.run(None, dict(feed))):
            # Channels are the second axis of pictures, the last of a matrix: the same where there are two.
            others = tuple(axis for axis in range(output.ndim) if axis != min(1, output.ndim - 1))
            sums[at] = sums[at] + output.mean(axis=others, dtype=np.float64) * len(output)
        rows += len(next(iter(feed.values())))
    return {name: np.asarray(total) / rows for name, total in zip(names, sums, strict=True)}
