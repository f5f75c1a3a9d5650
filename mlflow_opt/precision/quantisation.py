"""Integer arithmetic for a float graph after training: where the bits go, how ranges are found, what stays in float.

References: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; Nagel et al. 2021, "A white paper on neural network quantization".
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

Feeds = Mapping[str, np.ndarray]

# Operators that carry the weights and the time; the others are quantised with them where the runtime can.
HEAVY = ("Conv", "MatMul", "Gemm")
CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Scheme:
    """One way to place the bits.

    Args:
        name: of the variant.
        placement: `static` (activations and weights, ranges calibrated), `dynamic` (ranges at each call), `weights` (weights only).
        activations: `uint8`, `int8` or `uint16`.
        weights: `int8` or `uint8`.
        per_channel: one scale per output channel of the weights instead of one per tensor.
        reduce_range: 7-bit weights, so that pairs of products cannot saturate 16-bit sums on CPUs without VNNI.
        calibration: how the activations' ranges are found: `minmax`, `entropy`, `percentile`.
        weight_bits: of the weights' grid; fewer than 8 are stored in 8 and compute no faster, and show what training can recover.
    """

    name: str
    placement: Literal["static", "dynamic", "weights"] = "static"
    activations: Literal["uint8", "int8", "uint16"] = "uint8"
    weights: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    weight_bits: int = 8

    @property
    def largest(self) -> int:
        """Return the largest integer that a weight may have; the smallest is its negative."""
        return 64 if self.reduce_range and self.weight_bits == 8 else 2 ** (self.weight_bits - 1) - 1


def schemes_for(features: frozenset[str], *, every: bool = False) -> list[Scheme]:
    """Order the schemes worth trying by what the CPU's instruction set computes well.

    Args:
        features: of the CPU, as `cpu_features` names them.
        every: also the schemes that are known to be slow here, to see it.

    Example:
        >>> [scheme.name for scheme in schemes_for(frozenset({"avx2"}))][:2]
        ['u8s8_reduced', 'u8s8_reduced_per_tensor']
    """
    safe = not any("vnni" in feature or feature == "asimddp" for feature in features)
    mark = "_reduced" if safe else ""
    best = Scheme(f"u8s8{mark}", reduce_range=safe)
    chosen = [
        best,
        replace(best, name=f"u8s8{mark}_per_tensor", per_channel=False),
        replace(best, name=f"u8s8{mark}_entropy", calibration="entropy"),
        replace(best, name=f"u8s8{mark}_percentile", calibration="percentile"),
        Scheme("u8u8", weights="uint8", per_channel=False),
        Scheme("dynamic", placement="dynamic", reduce_range=safe),
        Scheme("weights_only", placement="weights"),
    ]
    if every:
        chosen += [Scheme("s8s8", activations="int8"), Scheme("a16w8", activations="uint16")]
        chosen += [Scheme("u8s8_full_range")] if safe else [Scheme("u8s8_reduced", reduce_range=True)]
    return chosen


@dataclass(frozen=True)
class Grid:
    """Where a tensor's integers lie: value = scale * (integer - zero_point).

    Args:
        scale: one, or one a channel.
        zero_point: an integer; weights have 0.
        axis: of the channels, -1 for one scale.
        unsigned: whether the integers are 0 to 255 instead of -128 to 127.
    """

    scale: np.ndarray
    zero_point: int = 0
    axis: int = -1
    unsigned: bool = False


def quantised(
    proto: onnx.ModelProto,
    scheme: Scheme,
    feeds: Sequence[Feeds],
    *,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    grids: Mapping[str, Grid] | None = None,
) -> Any:
    """Quantise a float graph by one scheme.

    Args:
        proto: the float graph, with `prepared` applied.
        scheme: where the bits go.
        feeds: batches of calibration rows as the graph's inputs.
        only: names of the only operators to quantise, all if empty.
        keep: names of operators that stay in float.
        grids: tensors whose integers are known, from training; the others' are calibrated.

    Raises:
        ValueError: the graph has no operator that this scheme quantises.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not heavy_operators(proto):
        raise ValueError(f"quantize needs a network with {', '.join(HEAVY)} weights, this graph has none; use `compile` for trees.")
    if scheme.placement == "weights":
        return weights_quantised(proto)
    weight_type = QuantType[{"int8": "QInt8", "uint8": "QUInt8"}[scheme.weights]]
    common = {"weight_type": weight_type, "per_channel": scheme.per_channel, "reduce_range": scheme.reduce_range}
    common |= {"nodes_to_quantize": list(only), "nodes_to_exclude": list(keep)}
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "float.onnx", Path(folder) / "quantised.onnx"
        onnx.save(proto, given)
        if scheme.placement == "dynamic":
            # A dynamically quantised convolution (ConvInteger) is many times slower than the float one on CPUs.
            quantize_dynamic(given, out, op_types_to_quantize=["MatMul", "Gemm"], **common)
        else:
            # Attention's own products, its softmax and its mask lose far more in static integers than they gain in time.
            if not only and any(node.op_type == "Softmax" for node in proto.graph.node[:-1]):
                common["nodes_to_quantize"] = heavy_operators(proto)
            known = (coarse_grids(proto, scheme) if scheme.weight_bits < 8 else {}) | dict(grids or {})
            _quantise_static((given, out), scheme, feeds, common | {"extra_options": {"TensorQuantOverrides": _overrides(known)}})
        return onnx.load(out)


def _quantise_static(files: tuple[Path, Path], scheme: Scheme, feeds: Sequence[Feeds], common: Mapping[str, Any]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    # The calibrators print what they collect; the recipe's own log says what matters.
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            *files,
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType[{"uint8": "QUInt8", "int8": "QInt8", "uint16": "QUInt16"}[scheme.activations]],
            calibrate_method=_method(scheme.calibration),
            **common,
        )


def coarse_grids(proto: onnx.ModelProto, scheme: Scheme) -> dict[str, Grid]:
    """Give the weights of the heavy operators grids of fewer than 8 bits, as wide as the largest weight."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type not in HEAVY or node.input[1] not in stored:
            continue
        weights = numpy_helper.to_array(stored[node.input[1]])
        axis = channel_axis(node, weights.ndim)
        others = tuple(at for at in range(weights.ndim) if at != axis) if scheme.per_channel else None
        scale = np.maximum(np.abs(weights).max(axis=others), np.finfo(np.float32).tiny) / scheme.largest
        found[node.input[1]] = Grid(np.asarray(scale, np.float32), axis=axis if scheme.per_channel else -1)
    return found


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Name the axis of an operator's weights that its output channels lie on."""
    return 0 if node.op_type == "Conv" or any(one.name == "transB" and one.i for one in node.attribute) else rank - 1


def _overrides(grids: Mapping[str, Grid]) -> dict[str, list[dict[str, Any]]]:
    from onnxruntime.quantization import QuantType

    made: dict[str, list[dict[str, Any]]] = {}
    for name, grid in grids.items():
        kind, integer = (QuantType.QUInt8, np.uint8) if grid.unsigned else (QuantType.QInt8, np.int8)
        zero = np.array(grid.zero_point, integer)
        channel = {} if grid.axis < 0 else {"axis": grid.axis}
        scales = np.asarray(grid.scale, np.float32).reshape(-1)
        made[name] = [{"quant_type": kind, "scale": np.array(one, np.float32), "zero_point": zero, **channel} for one in scales]
    return made


def weights_quantised(proto: onnx.ModelProto) -> Any:
    """Store the weights of the heavy operators as int8 with one scale per output channel; everything is computed in float."""
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    for at, node in reversed(list(enumerate(made.graph.node))):
        if node.op_type not in HEAVY or node.input[1] not in stored:
            continue
        weights, name = numpy_helper.to_array(stored[node.input[1]]), f"{node.name}_weights"
        axis = channel_axis(node, weights.ndim)
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scale = np.maximum(np.abs(weights).max(axis=others), np.finfo(np.float32).tiny) / 127
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        integers = np.clip(np.round(weights / scale.reshape(shape)), -127, 127).astype(np.int8)
        made.graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
        made.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
        node.input[1] = name
        made.graph.node.insert(at, onnx.helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis))
    used = {name for node in made.graph.node for name in node.input}
    for tensor in [tensor for tensor in made.graph.initializer if tensor.name not in used]:
        made.graph.initializer.remove(tensor)
    return made


def prepared(proto: onnx.ModelProto) -> Any:
    """Fold constants, fuse batch norms and infer shapes, as the quantiser needs it; answers stay the same to rounding."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        # By file, because a graph in memory is handed on with its weights outside of it, which shape inference cannot read.
        given, out = Path(folder) / "given.onnx", Path(folder) / "prepared.onnx"
        onnx.save(proto, given)
        # Symbolic shape inference stops at operators that it does not know and adds nothing to fixed-rank networks.
        quant_pre_process(given, out, skip_symbolic_shape=True)
        return onnx.load(out)


def heavy_operators(proto: onnx.ModelProto) -> list[str]:
    """Name the operators that carry weights and time, in graph order."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return [node.name for node in proto.graph.node if node.op_type in HEAVY and any(name in stored for name in node.input)]


def batches_of(prepared_rows: Feeds) -> list[Feeds]:
    """Cut a graph's inputs into batches of one length for calibration."""
    rows = len(next(iter(prepared_rows.values())))
    if rows > CALIBRATION_BATCH:
        # Calibrators stack the batches' outputs, so all must be of one length.
        rows -= rows % CALIBRATION_BATCH
    return [{name: array[at : at + CALIBRATION_BATCH] for name, array in prepared_rows.items()} for at in range(0, rows, CALIBRATION_BATCH)]


def outputs_of(proto: onnx.ModelProto, feeds: Sequence[Feeds]) -> np.ndarray:
    """Answer all batches with a graph: its last output, which holds the scores."""
    import onnxruntime

    live = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(live.run(None, dict(feed))[-1], dtype=np.float64) for feed in feeds])


def _reader(feeds: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    return Reader()


def _method(name: str) -> Any:
    from onnxruntime.quantization import CalibrationMethod

    return {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}[name]
