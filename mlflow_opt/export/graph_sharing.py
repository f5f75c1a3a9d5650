"""What a graph computes more than once, computed once.

The members of an ensemble often begin alike: the same columns, the same codes. Exported one beside the other every one
brings its own, and at one row that can cost more than the models. ONNX Runtime merges equal operators itself, but not
where their constants are equal and not the same, which is the rule in converted models.

Source: Cocke, "Global common subexpression elimination", 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mlflow_opt.export.exporting import OnnxGraph


def shared(graph: OnnxGraph) -> OnnxGraph:
    """Merge a graph's equal constants, and operators that do the same to the same; the answers stay the same to the last bit.

    Helps graphs that were put together from several models. Does not help a single model, whose converter repeats little. A
    graph with loops or branches is given back as it is.

    Args:
        graph: it is not changed.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto)
    if any(_has_graph(node) for node in proto.graph.node):
        return graph
    _skip_identities(proto.graph)
    names = _distinct_constants(proto.graph)
    _merge_nodes(proto.graph, names)
    used = {name for node in proto.graph.node for name in node.input} | {one.name for one in proto.graph.output}
    _keep(proto.graph.initializer, (one for one in proto.graph.initializer if one.name in used))
    del proto.graph.value_info[:]
    return replace(graph, proto=proto)


def _skip_identities(graph: Any) -> None:
    outputs = {one.name for one in graph.output}
    through = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity" and node.output[0] not in outputs}
    for node in graph.node:
        for at, name in enumerate(node.input):
            origin = name
            while origin in through:
                origin = through[origin]
            node.input[at] = origin
    _keep(graph.node, (node for node in graph.node if node.output[0] not in through))


def _distinct_constants(graph: Any) -> dict[str, str]:
    """Keep the first of equal constants; name -> the name that stands for it."""
    firsts: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for one in graph.initializer:
        names[one.name] = firsts.setdefault(_content(one, "name", "doc_string"), one.name)
    _keep(graph.initializer, (one for one in graph.initializer if names[one.name] == one.name))
    return names


def _merge_nodes(graph: Any, names: dict[str, str]) -> None:
    outputs = {one.name for one in graph.output}
    firsts: dict[bytes, Any] = {}
    kept = []
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
        # How many outputs there are is part of what an operator does; what they are called is not.
        key = _content(node, "name", "doc_string", "output") + bytes(len(node.output))
        first = firsts.setdefault(key, node)
        if first is node or outputs.intersection(node.output) or node.op_type.startswith("Random"):
            kept.append(node)
        else:
            names.update(zip(node.output, first.output, strict=True))
    _keep(graph.node, kept)


def _content(message: Any, *without: str) -> bytes:
    plain = type(message)()
    plain.CopyFrom(message)
    for field in without:
        plain.ClearField(field)
    if hasattr(plain, "attribute"):
        # Attributes are a set; the same ones may be written in another order.
        _keep(plain.attribute, sorted(plain.attribute, key=lambda one: str(one.name)))
    return bytes(plain.SerializeToString(deterministic=True))


def _keep(repeated: Any, kept: Iterable[Any]) -> None:
    # Copied before the list that owns them is emptied.
    copies = [type(one).FromString(one.SerializeToString()) for one in kept]
    del repeated[:]
    repeated.extend(copies)


def _has_graph(node: Any) -> bool:
    return any(one.HasField("g") or one.graphs for one in node.attribute)
