"""Quantise a network to 8-bit integers after training, with the scheme that this CPU computes well and the data allows.

Helps when the network spends its time in convolutions or matrix products and the CPU has integer dot products (AVX-512
VNNI, AVX-VNNI): there U8S8 runs 2-3x faster than float in the same runtime. With AVX2 alone the gain is smaller and
full-range U8S8 saturates its 16-bit sums, so that `reduce_range` (7-bit weights) is tried first. Does not help trees and
linear models, networks that are bound by memory traffic or by the cost of the call itself, and CPUs where int8 is
emulated; then the recipe says so with the figures and keeps float. Smaller is not faster: weight-only int8 is a quarter of
the size and no faster, and is tried to show it.

Where every scheme loses too much quality, the most sensitive operators stay in float: their sensitivity is the output
error when only that operator is quantised, and the smallest number of them is found by bisection.

References: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; Nagel et al. 2021, "A white paper on neural network quantization"; Wu et al. 2020, "Integer quantization for
deep learning inference: principles and empirical evaluation" (calibration methods, partial quantisation by sensitivity).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlflow_opt import choosing, exporting, session
from mlflow_opt.fingerprint import cpu_features
from mlflow_opt.outcome import Row
from mlflow_opt.records import Variant, Verdict
from mlflow_opt.signature import run

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
    """

    name: str
    placement: Literal["static", "dynamic", "weights"] = "static"
    activations: Literal["uint8", "int8", "uint16"] = "uint8"
    weights: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"


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


def quantised(proto: onnx.ModelProto, scheme: Scheme, feeds: Sequence[Feeds], *, only: Sequence[str] = (), keep: Sequence[str] = ()) -> Any:
    """Quantise a float graph by one scheme.

    Args:
        proto: the float graph, with `prepared` applied.
        scheme: where the bits go.
        feeds: batches of calibration rows as the graph's inputs.
        only: names of the only operators to quantise, all if empty.
        keep: names of operators that stay in float.

    Raises:
        ValueError: the graph has no operator that this scheme quantises.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

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
            # The calibrators print what they collect; the recipe's own log says what matters.
            with contextlib.redirect_stdout(io.StringIO()):
                quantize_static(
                    given,
                    out,
                    _reader(feeds),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType[{"uint8": "QUInt8", "int8": "QInt8", "uint16": "QUInt16"}[scheme.activations]],
                    calibrate_method=_method(scheme.calibration),
                    **common,
                )
        return onnx.load(out)


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
        axis = 0 if node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute) else weights.ndim - 1
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


def sensitivities(proto: onnx.ModelProto, scheme: Scheme, feeds: Sequence[Feeds]) -> dict[str, float]:
    """Measure, for every heavy operator, the relative output error when only that operator is quantised.

    One operator at a time leaves interactions out (Wu et al. 2020, section 5.2), which is why the fallback afterwards
    scores real candidates instead of adding these numbers up.
    """
    wanted = _outputs(proto, feeds)
    found = {}
    for name in heavy_operators(proto):
        got = _outputs(quantised(proto, scheme, feeds, only=[name]), feeds)
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


def advise(rows: Sequence[Row], headline: str, features: frozenset[str]) -> list[str]:
    """Say what the figures mean: the runtime's share, the quantisation's share, and whether int8 pays on this CPU."""
    timed = {row.name: row for row in rows if "latency_p50_ms" in row.metrics}
    if "fp32" not in timed or "baseline" not in timed:
        return []
    integer = [row for row in timed.values() if row.name not in ("fp32", "baseline")]
    if not integer:
        return []
    float_ms, base_ms = (timed[name].metrics["latency_p50_ms"] for name in ("fp32", "baseline"))
    fastest = min(integer, key=lambda row: row.metrics["latency_p50_ms"])
    gain = float_ms / fastest.metrics["latency_p50_ms"]
    lost = fastest.metrics.get(f"drop_{headline}", float("nan"))
    found = [
        (
            f"The runtime alone gives {base_ms / float_ms:.2f}x over the baseline. The fastest scheme, {fastest.name}, gives {gain:.2f}x "
            f"over float in the same runtime and loses {lost:+.4f} {headline} on the selection rows."
        )
    ]
    vnni = "with" if any("vnni" in feature for feature in features) else "without"
    if gain < 1.05:
        found.append(f"int8 does not pay for this network on this CPU ({vnni} VNNI): keep float in ONNX Runtime, or shrink the network.")
    slower = [row for row in integer if row.metrics["latency_p50_ms"] > float_ms]
    smaller = [row.name for row in slower if row.metrics["size_mb"] < 0.6 * timed["fp32"].metrics["size_mb"]]
    if smaller:
        found.append(f"Smaller but slower than float here: {', '.join(smaller)}.")
    return found


def quantize(
    *,
    model: str = "",
    data: str = "fashion_mnist",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    schemes: Literal["auto", "all"] = "auto",
    fallback: bool = True,
    calibration_rows: int = 512,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Quantise a network to 8-bit integers after training (PTQ), choosing the scheme by this CPU and by measurement.

    Helps networks that spend their time in convolutions or matrix products, most on CPUs with VNNI. Does not help trees,
    linear models or tiny networks; the recipe says so with the figures and registers nothing.

    Example:
        mlflow run . -e quantize -P model=models:/digits/3 -P data=holdout.npz -P register_as=digits

    Args:
        model: MLflow model URI of a network (torch or ONNX); empty trains the default network on the data.
        data: npz, folder, MLflow URI or a bundled name.
        target: name of the target array or column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        schemes: `auto` tries what this CPU computes well, `all` also what is known to be slow here.
        fallback: keep the most sensitive operators in float where every scheme loses too much.
        calibration_rows: most rows used to find the ranges of activations.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model has no operator that can be quantised, or the data does not fit it.

    References:
        Jacob et al. 2018; Nagel et al. 2021; Wu et al. 2020.
    """
    with session.start("quantize", locals()) as work:
        graph = exporting.to_onnx(work.model, work.example, work.task)
        float_proto = prepared(graph.proto)
        wanted = schemes_for(cpu_features(), every=schemes == "all")
        work.expect(len(wanted) + 1)
        float_model = work.dropin("fp32", graph)
        work.add(Variant("fp32", float_model, {"placement": "none"}))
        feeds = _feeds(float_model.prepare(work.calibration(calibration_rows)))

        def save(scheme: Scheme, keep: Sequence[str] = ()) -> Any:
            return work.dropin(scheme.name, replace(graph, proto=quantised(float_proto, scheme, feeds, keep=keep)))

        drops = {scheme: work.add(Variant(scheme.name, save(scheme), asdict(scheme))) for scheme in wanted}
        bound = choosing.quality_bound(work.policy, work.headline)
        if fallback and drops[wanted[0]] > bound:
            mixed = replace(wanted[0], name="mixed")
            scores = sensitivities(float_proto, mixed, feeds)
            ranked = sorted(scores, key=lambda name: -scores[name])
            keep = fewest_in_float(ranked, lambda names: work.drop(save(mixed, names)), bound)
            work.add(Variant("mixed", save(mixed, keep), {**asdict(mixed), "kept_in_float": len(keep)}))
        return work.conclude(lambda rows: advise(rows, work.headline, cpu_features()))


def _feeds(prepared_rows: Feeds) -> list[Feeds]:
    rows = len(next(iter(prepared_rows.values())))
    if rows > CALIBRATION_BATCH:
        # Calibrators stack the batches' outputs, so all must be of one length.
        rows -= rows % CALIBRATION_BATCH
    return [{name: array[at : at + CALIBRATION_BATCH] for name, array in prepared_rows.items()} for at in range(0, rows, CALIBRATION_BATCH)]


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


def _outputs(proto: onnx.ModelProto, feeds: Sequence[Feeds]) -> np.ndarray:
    import onnxruntime

    live = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(live.run(None, dict(feed))[-1], dtype=np.float64) for feed in feeds])


if __name__ == "__main__":
    run(quantize)
