"""What each operation of an exported graph does to labels: which elements it needs together, and where they go.

The operations are torch's own (`aten`), as `torch.export` writes them, so that a user's layer of any class is followed as
long as it computes with these. An operation that is not here fixes all that it touches: nothing before it is pruned wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlflow_opt.pruning import channel_moves as moves
from mlflow_opt.pruning.channel_labels import Ints, Ledger, Value, Weight
from mlflow_opt.pruning.channel_trace import Call, Product, Trace, unknown

Rule = Callable[[Trace, Call], Any]

# Element by element: an element of the answer needs the elements at its place, and nothing else.
ELEMENTWISE = frozenset(
    (
        *("abs", "add", "alias", "celu", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "detach", "div", "dropout", "elu"),
        *("exp", "feature_dropout", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "lift_fresh_copy", "log"),
        *("log_sigmoid", "masked_fill", "maximum", "minimum", "mish", "mul", "neg", "pow", "reciprocal", "relu", "relu6", "rsqrt"),
        *("rsub", "selu", "sigmoid", "silu", "softplus", "sqrt", "square", "sub", "tanh", "threshold", "to", "type_as", "where"),
        "_to_copy",
    )
)
# The channel axis goes on, the places after it are gathered.
SPATIAL = frozenset(
    (
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "upsample_bilinear2d", "upsample_nearest2d"),
    )
)
RESHAPES = frozenset(("flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view", "_unsafe_view"))
TRANSPOSES = frozenset(("permute", "t", "transpose", "numpy_T"))


def follow(trace: Trace, call: Call) -> Any:
    """Follow labels through one operation.

    Returns:
        A `Value`, a `Weight` if a parameter was only turned or cut, or a tuple of values.
    """
    rule = _RULES.get(call.name) or (_elementwise if call.name in ELEMENTWISE else unknown)
    weights = any(isinstance(one, Weight) for one in call.operands)
    if weights and call.name not in _TAKE_WEIGHTS and call.name not in ELEMENTWISE:
        rule = unknown
    return rule(trace, call)


def _elementwise(trace: Trace, call: Call) -> Value:
    values = [one for one in call.operands if isinstance(one, Value)]
    weights = [one for one in call.operands if isinstance(one, Weight)]
    if not values:
        return unknown(trace, call)
    result = values[0]
    for one in values[1:]:
        result = trace.ledger.combine(result, one, np.broadcast_shapes(result.shape, one.shape))
    for weight in weights:
        trace.ledger.bind(result, weight)
    ahead = (1,) * (len(call.shape) - len(result.shape))
    return Value(call.shape, result.labels.reshape(ahead + result.labels.shape))


def _linear(trace: Trace, call: Call) -> Value:
    value, weight, bias = call.args[0], call.args[1], call.arg(2, "bias")
    if not isinstance(value, Value) or not isinstance(weight, Weight):
        return unknown(trace, call)
    ledger = trace.ledger
    inputs = ledger.along(value, len(value.shape) - 1)
    ledger.join(inputs, ledger.of_axis(weight, 1))
    outputs = ledger.of_axis(weight, 0)
    if isinstance(bias, Weight):
        ledger.join(outputs, ledger.of_axis(bias, 0))
    if weight.axes[0] is not None:
        trace.producers.append((weight.name, weight.axes[0][0]))
    trace.products.append(Product(math.prod(call.shape[1:-1]) * math.prod(weight.shape), (outputs, inputs)))
    return Value(call.shape, outputs.reshape((1,) * (len(call.shape) - 1) + (-1,)))


def _convolution(trace: Trace, call: Call) -> Value:
    value, weight, bias = call.args[0], call.args[1], call.arg(2, "bias")
    if not isinstance(value, Value) or not isinstance(weight, Weight) or len(value.shape) != len(weight.shape):
        return unknown(trace, call)
    ledger, groups = trace.ledger, int(call.arg(6, "groups", 1))
    inputs, outputs = ledger.along(value, 1), ledger.of_axis(weight, 0)
    if groups == 1:
        ledger.join(inputs, ledger.of_axis(weight, 1))
    else:
        _join_groups(ledger, weight, inputs, groups)
        trace.grouped[weight.name] = inputs
    if isinstance(bias, Weight):
        ledger.join(outputs, ledger.of_axis(bias, 0))
    trace.producers.append((weight.name, 0))
    macs = math.prod(call.shape[2:]) * math.prod(weight.shape)
    trace.products.append(Product(macs, (outputs, ledger.of_axis(weight, 1))))
    labels = outputs.reshape((1, -1) + (1,) * (len(call.shape) - 2))
    return Value(call.shape, labels)


def _join_groups(ledger: Ledger, weight: Weight, inputs: Ints, groups: int) -> None:
    """Keep groups equal: either a group goes as a whole, or the same places go in every group, whichever leaves more units."""
    a, b = inputs.reshape(groups, -1), ledger.of_axis(weight, 0).reshape(groups, -1)
    if groups >= a.shape[1]:
        ledger.join(a, a[:, :1])
        ledger.join(b, a[:, :1])
        ledger.fix(ledger.of_axis(weight, 1))
        return
    ledger.join(a, ledger.of_axis(weight, 1)[None])
    ledger.join(b, b[:1])


def _matmul(trace: Trace, call: Call) -> Value:
    first, second = call.args[0], call.args[1]
    if isinstance(second, Weight) and isinstance(first, Value) and len(second.shape) == 2:
        turned = Weight(second.shape[::-1], second.name, second.axes[::-1])
        return _linear(trace, Call("linear", (first, turned), {}, call.shape, call.module))
    if not (isinstance(first, Value) and isinstance(second, Value)) or min(len(first.shape), len(second.shape)) < 2:
        return unknown(trace, call)
    ledger = trace.ledger
    rows = Value((*first.shape[:-1], 1), ledger.join_along(first.labels, [first.labels.ndim - 1]))
    columns = Value((*second.shape[:-2], 1, second.shape[-1]), ledger.join_along(second.labels, [second.labels.ndim - 2]))
    result = ledger.combine(rows, columns, call.shape)
    heads = [axis for axis in ledger.varying(result) if axis < len(call.shape) - 2]
    followed = tuple(ledger.along(result, axis) for axis in heads)
    trace.products.append(Product(math.prod(call.shape[1:]) * first.shape[-1], followed))
    return result


def _attention(trace: Trace, call: Call) -> Any:
    query, key, value = call.args[:3]
    mask = call.arg(3, "attn_mask")
    if not all(isinstance(one, Value) for one in (query, key, value)) or query.shape[:-2] != key.shape[:-2]:
        return unknown(trace, call)
    turned = Value((*key.shape[:-2], key.shape[-1], key.shape[-2]), np.swapaxes(key.labels, -1, -2))
    shape = (*query.shape[:-1], key.shape[-2])
    scores = _matmul(trace, Call("matmul", (query, turned), {}, shape, call.module))
    if isinstance(mask, Value):
        scores = trace.ledger.combine(scores, mask, shape)
    scores = Value(shape, trace.ledger.join_along(scores.labels, [len(shape) - 1]))
    return _matmul(trace, Call("matmul", (scores, value), {}, call.shape, call.module))


def _prelu(trace: Trace, call: Call) -> Value:
    value, weight = call.args[:2]
    if isinstance(value, Value) and weight.shape == (1,):
        return value
    return _batch_norm(trace, call)


def _batch_norm(trace: Trace, call: Call) -> Value:
    value = call.args[0]
    if not isinstance(value, Value):
        return unknown(trace, call)
    channels = trace.ledger.along(value, 1)
    for one in call.operands:
        if isinstance(one, Weight):
            trace.ledger.join(channels, trace.ledger.of_axis(one, 0))
    return trace.ledger.compressed(value)


def _joined_along(axes: Callable[[Call, int], Sequence[int]]) -> Rule:
    """Make the rule of an operation whose answer keeps its shape and needs whole axes together (softmax, normalisations)."""

    def rule(trace: Trace, call: Call) -> Value:
        value = call.args[0]
        if not isinstance(value, Value):
            return unknown(trace, call)
        labels = trace.ledger.join_along(value.labels, axes(call, len(value.shape)))
        for one in call.operands:
            if isinstance(one, Weight):
                trace.ledger.bind(Value(value.shape, labels), one)
        return Value(value.shape, labels)

    return rule


def _reduce(trace: Trace, call: Call) -> Value:
    value = call.args[0]
    given = call.arg(1, "dim")
    axes = range(len(value.shape)) if given is None or given == [] else [given] if isinstance(given, int) else given
    dropped = sorted({axis % len(value.shape) for axis in axes})
    labels = trace.ledger.join_along(value.labels, dropped)
    if len(call.shape) != len(value.shape):
        labels = np.squeeze(labels, axis=tuple(dropped))
    return Value(call.shape, labels)


def _spatial(trace: Trace, call: Call) -> Any:
    value = call.args[0]
    ledger = trace.ledger
    labels = ledger.join_along(value.labels, range(2, len(value.shape)))
    pooled = Value(call.shape, labels)
    return (pooled, ledger.untracked(call.shape)) if call.name.endswith("indices") else pooled


def _embedding(trace: Trace, call: Call) -> Value:
    weight = call.args[0]
    if not isinstance(weight, Weight):
        return unknown(trace, call)
    trace.ledger.fix(trace.ledger.of_axis(weight, 0))
    trace.producers.append((weight.name, 1))
    return Value(call.shape, trace.ledger.of_axis(weight, 1).reshape((1,) * (len(call.shape) - 1) + (-1,)))


def _item(trace: Trace, call: Call) -> Any:
    parts = call.args[0]
    return parts[call.args[1]] if isinstance(parts, tuple) else trace.ledger.untracked(call.shape)


def _last(call: Call, axes: int) -> Sequence[int]:
    return range(axes - len(call.args[1]), axes)


def _named(call: Call, axes: int) -> Sequence[int]:
    return [int(call.arg(1, "dim", -1)) % axes]


_RULES: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "prelu": _prelu,
    "layer_norm": _joined_along(_last),
    "rms_norm": _joined_along(_last),
    "group_norm": _joined_along(lambda _, axes: range(1, axes)),
    "softmax": _joined_along(_named),
    "log_softmax": _joined_along(_named),
    "constant_pad_nd": moves.pad,
    "pad": moves.pad,
    "expand": moves.expand,
    "cat": moves.concatenate,
    "chunk": moves.split,
    "split": moves.split,
    "split_with_sizes": moves.split,
    "unbind": moves.split,
    "select": moves.select,
    "slice": moves.cut,
    "embedding": _embedding,
    "getitem": _item,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(RESHAPES, moves.reshape),
    **dict.fromkeys(TRANSPOSES, moves.transpose),
}
_TAKE_WEIGHTS = frozenset(
    {"linear", "matmul", "bmm", "batch_norm", "prelu", "layer_norm", "rms_norm", "expand", "slice", "embedding"}
) | frozenset({"conv1d", "conv2d", "conv3d", *RESHAPES, *TRANSPOSES})
