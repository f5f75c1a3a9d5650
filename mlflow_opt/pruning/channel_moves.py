"""What operations that only move elements do to labels: reshapes, transposes, concatenations, splits, slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_opt.pruning.channel_labels import Value, Weight
from mlflow_opt.pruning.channel_trace import Call, Reshaped, Trace, unknown


def pad(trace: Trace, call: Call) -> Value:
    """Follow padding: of places it changes nothing, of channels it is unknown."""
    value, pads = call.args[0], list(call.args[1])
    padded = [len(value.shape) - 1 - at // 2 for at, size in enumerate(pads) if size]
    if set(padded) & set(trace.ledger.varying(value)):
        return unknown(trace, call)
    return Value(call.shape, trace.ledger.compressed(value).labels)


def reshape(trace: Trace, call: Call) -> Any:
    """Follow labels into a new shape, and note it: what is removed must leave a grid."""
    value = call.args[0]
    if isinstance(value, Weight):
        return _reshape_weight(trace, call, value)
    labels = trace.ledger.full(value).reshape(call.shape)
    result = trace.ledger.compressed(Value(call.shape, labels))
    if trace.ledger.varying(result):
        trace.reshaped.append(Reshaped(call.module, result))
    return result


def _reshape_weight(trace: Trace, call: Call, weight: Weight) -> Any:
    """Follow a parameter that gets or loses axes of size 1 (a layer's scale for pictures); any other reshape of one is unknown."""
    kept = [where for where, size in zip(weight.axes, weight.shape, strict=True) if size != 1]
    if [size for size in weight.shape if size != 1] != [size for size in call.shape if size != 1]:
        return unknown(trace, call)
    left = iter(kept)
    return Weight(call.shape, weight.name, tuple(next(left) if size != 1 else None for size in call.shape))


def transpose(trace: Trace, call: Call) -> Any:
    """Follow axes that change their places."""
    del trace
    value = call.args[0]
    axes = list(range(len(value.shape)))
    if call.name == "permute":
        axes = [axis % len(axes) for axis in call.args[1]]
    elif call.name == "transpose":
        a, b = (axis % len(axes) for axis in call.args[1:3])
        axes[a], axes[b] = axes[b], axes[a]
    else:
        axes.reverse()
    if isinstance(value, Weight):
        return Weight(call.shape, value.name, tuple(value.axes[axis] for axis in axes))
    return Value(call.shape, value.labels.transpose(axes))


def expand(trace: Trace, call: Call) -> Any:
    """Follow a tensor that is repeated along axes of size 1."""
    value = call.args[0]
    if isinstance(value, Weight):
        ahead = len(call.shape) - len(value.shape)
        fits = all(new == old for new, old in zip(call.shape[ahead:], value.shape, strict=True) if old != 1)
        shape = (1,) * ahead + value.shape
        return Weight(shape, value.name, (None,) * ahead + value.axes) if fits else unknown(trace, call)
    more = (1,) * (len(call.shape) - len(value.shape))
    result = trace.ledger.compressed(Value(call.shape, value.labels.reshape(more + value.labels.shape)))
    if trace.ledger.varying(result):
        trace.reshaped.append(Reshaped(call.module, result))
    return result


def concatenate(trace: Trace, call: Call) -> Value:
    """Follow tensors put one after the other: each keeps its own labels."""
    parts = call.args[0]
    if not all(isinstance(one, Value) for one in parts):
        return unknown(trace, call)
    axis = int(call.arg(1, "dim", 0)) % len(call.shape)
    labels = np.concatenate([trace.ledger.full(one) for one in parts], axis=axis)
    return trace.ledger.compressed(Value(call.shape, labels))


def split(trace: Trace, call: Call) -> Any:
    """Follow `chunk`, `split` and `unbind` into parts of one size: the same places go from every part."""
    value = call.args[0]
    given = call.args[1] if call.name != "unbind" and len(call.args) > 1 else None
    axis = int(call.arg(1 if call.name == "unbind" else 2, "dim", 0)) % len(value.shape)
    size = value.shape[axis]
    count = size if given is None else _parts(size, size // given if call.name == "chunk" else given)
    if not isinstance(value, Value) or not count or size % count:
        unknown(trace, call)
        return None
    shape = (*value.shape[:axis], count, size // count, *value.shape[axis + 1 :])
    labels = trace.ledger.full(value).reshape(shape)
    shared = trace.ledger.join_along(labels, [axis]).squeeze(axis)
    if call.name == "unbind":
        shared = shared.squeeze(axis)
    part = trace.ledger.compressed(Value(tuple(shared.shape), shared))
    if trace.ledger.varying(part) and call.name != "unbind":
        trace.reshaped.append(Reshaped(call.module, part))
    return (part,) * count


def _parts(size: int, given: Any) -> int:
    if isinstance(given, int):
        return size // given if size % given == 0 else 0
    return len(given) if len(set(given)) == 1 else 0


def select(trace: Trace, call: Call) -> Any:
    """Follow one index of an axis; the others along it are like it."""
    value = call.args[0]
    axis = int(call.args[1]) % len(value.shape)
    if isinstance(value, Weight):
        return unknown(trace, call)
    labels = trace.ledger.join_along(value.labels, [axis]).squeeze(axis)
    return trace.ledger.compressed(Value(call.shape, labels))


def cut(trace: Trace, call: Call) -> Any:
    """Follow a slice of places; a slice of channels is unknown."""
    value = call.args[0]
    if call.shape == value.shape:
        return value
    axis = int(call.arg(1, "dim", 0)) % len(value.shape)
    if isinstance(value, Weight):
        # Positions up to a length: that axis of a table of positions stays, the others go on.
        return _sliced_weight(trace, call, value, axis)
    if axis in trace.ledger.varying(value):
        return unknown(trace, call)
    return Value(call.shape, trace.ledger.compressed(value).labels)


def _sliced_weight(trace: Trace, call: Call, weight: Weight, axis: int) -> Weight:
    where = weight.axes[axis]
    if where is None:
        return weight
    trace.ledger.fix(trace.ledger.of_axis(weight, axis))
    indices = where[1][slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step"))]
    axes = (*weight.axes[:axis], (where[0], indices), *weight.axes[axis + 1 :])
    return Weight(call.shape, weight.name, axes)
