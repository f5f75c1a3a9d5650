"""Several graphs as one that answers their weighted average, with what they have in common computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.graph_sharing import shared

_SCORES = "average"
_MAIN = ("", "ai.onnx")
_OLD_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")


def averaged(graphs: Sequence[OnnxGraph], weights: Sequence[float], threshold: float = 0.5) -> OnnxGraph:
    """Merge graphs into one that answers the weighted mean of their probabilities, or of their values.

    Helps ensembles of few members: one call, one copy of each input, no work done twice. Does not help a forest, whose
    trees belong into one operator.

    Args:
        graphs: exported models of one task, all of them classifiers or all regressors.
        weights: one a graph, above 0.
        threshold: probability from which the average of two classes answers the later one.

    Raises:
        ValueError: the graphs are written for different operator sets, or an input cannot be shared.
    """
    from onnx import compose, helper, numpy_helper

    graphs = _alike(graphs)
    feeds = _joined_feeds([one.binding for one in graphs])
    parts = [compose.add_prefix(one.proto, f"m{at}_") for at, one in enumerate(graphs)]
    nodes: list[Any] = []
    constants: list[Any] = []
    for at, (part, one) in enumerate(zip(parts, graphs, strict=True)):
        for feed in one.binding.inputs:
            nodes += _entrance(f"m{at}_{feed.name}", feed, feeds, constants)
        nodes += part.graph.node
        constants += part.graph.initializer
    tails = [_scores_of(f"m{at}_{one.binding.output.name}", one.binding.output, at) for at, one in enumerate(graphs)]
    for at, (made, name) in enumerate(tails):
        nodes += made
        constants.append(numpy_helper.from_array(np.array(weights[at] / sum(weights)), f"share_{at}"))
        nodes.append(helper.make_node("Mul", [name, f"share_{at}"], [f"weighed_{at}"]))
    nodes.append(helper.make_node("Sum", [f"weighed_{at}" for at in range(len(graphs))], [_SCORES]))
    constants += _tail_constants()
    regression = graphs[0].binding.output.kind == "values"
    output = Output(_SCORES, "values") if regression else Output(_SCORES, "probabilities", threshold=threshold)
    return shared(OnnxGraph(_model(graphs, feeds, nodes, constants), Binding(feeds, output)))


def _model(graphs: Sequence[OnnxGraph], feeds: Sequence[Feed], nodes: list[Any], constants: list[Any]) -> Any:
    from onnx import TensorProto, helper

    kinds = {"str": TensorProto.STRING} | {
        name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")
    }
    inputs = [helper.make_tensor_value_info(one.name, kinds[one.dtype], [None, len(one.columns)]) for one in feeds]
    shape = [None] if graphs[0].binding.output.kind == "values" else [None, None]
    output = helper.make_tensor_value_info(_SCORES, TensorProto.DOUBLE, shape)
    made = helper.make_graph(nodes, "model", inputs, [output], constants)
    versions: dict[str, int] = {}
    for one in graphs:
        for opset in one.proto.opset_import:
            versions[opset.domain] = max(opset.version, versions.get(opset.domain, 0))
    opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())]
    return helper.make_model(made, opset_imports=opsets, ir_version=max(10, *(one.proto.ir_version for one in graphs)))


def _alike(graphs: Sequence[OnnxGraph]) -> list[OnnxGraph]:
    """Rewrite graphs for the newest operator set among them; converters declare the oldest that will do."""
    newest = max(_main_opset(one) for one in graphs)
    return [_raised(one, newest) for one in graphs]


def _raised(graph: OnnxGraph, newest: int) -> OnnxGraph:
    from onnx import defs, version_converter

    own = _main_opset(graph)
    nodes = graph.proto.graph.node
    # Of ai.onnx.ml only the tree operators changed their meaning, and the exporters here write the newer one.
    old = sorted({node.op_type for node in nodes}.intersection(_OLD_TREES))
    if old:
        raise ValueError(f"members must hold no {', '.join(old)}, which newer operator sets lack; give the models they were exported from.")
    if all(_since(defs, node.op_type, own) == _since(defs, node.op_type, newest) for node in nodes if node.domain in _MAIN):
        return graph
    try:
        return replace(graph, proto=version_converter.convert_version(graph.proto, newest))
    except RuntimeError as error:
        raise ValueError(
            f"members must be written for one operator set, got {own} beside {newest}, and rewriting failed ({error}); export them alike."
        ) from error


def _main_opset(graph: OnnxGraph) -> int:
    return max(int(one.version) for one in graph.proto.opset_import if one.domain in _MAIN)


def _since(defs: Any, operator: str, version: int) -> int:
    return int(defs.get_schema(operator, version, "").since_version)


def _joined_feeds(bindings: Sequence[Binding]) -> tuple[Feed, ...]:
    """Join the members' inputs: of one type one matrix with every column that some member asks for."""
    found: dict[tuple[str, str], Feed] = {}
    for feed in (one for binding in bindings for one in binding.inputs):
        if not feed.columns:
            raise ValueError(
                f"members must take a table's columns by name, the input '{feed.name}' takes an array; save them with a signature."
            )
        place = _place(feed)
        old = found.get(place, replace(feed, name=f"{feed.dtype}_{len(found)}", columns=(), known={}))
        columns = tuple(dict.fromkeys([*old.columns, *feed.columns]))
        # A text that one member refuses the ensemble refuses.
        known = {name: _both(old.known.get(name), feed.known.get(name)) for name in (*old.known, *feed.known)}
        found[place] = replace(old, columns=columns, known=known)
    return tuple(found.values())


def _both(first: Sequence[str] | None, second: Sequence[str] | None) -> Sequence[str]:
    if first is None or second is None:
        return list(first or second or ())
    return [one for one in first if one in second]


def _place(feed: Feed) -> tuple[str, str]:
    # LightGBM's category codes depend on the model, so such matrices are shared with their like only.
    return feed.dtype, repr((sorted(feed.categories.items()), feed.columns)) if feed.categories else ""


def _entrance(name: str, feed: Feed, feeds: Sequence[Feed], constants: list[Any]) -> list[Any]:
    from onnx import helper, numpy_helper

    whole = next(
        one for one in feeds if (one.dtype, one.categories) == (feed.dtype, feed.categories) and set(feed.columns) <= set(one.columns)
    )
    if whole.columns == feed.columns:
        return [helper.make_node("Identity", [whole.name], [name])]
    at = np.array([whole.columns.index(column) for column in feed.columns], dtype=np.int64)
    constants.append(numpy_helper.from_array(at, f"{name}_columns"))
    return [helper.make_node("Gather", [whole.name, f"{name}_columns"], [name], axis=1)]


def _scores_of(name: str, output: Output, at: int) -> tuple[list[Any], str]:
    """Write what turns a member's scores output into probabilities (rows, classes) or values (rows,), in double precision."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", [name], [f"double_{at}"], to=TensorProto.DOUBLE)]
    given = f"double_{at}"

    def then(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [f"tail_{at}_{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    if output.kind == "values":
        return nodes, then("Reshape", given, "one_value")
    if output.kind == "logits":
        return nodes, then("Softmax", given, axis=1)
    if output.kind in ("positive", "margin"):
        later = then("Reshape", given, "one_column")
        later = then("Sigmoid", later) if output.kind == "margin" else later
        return nodes, then("Concat", then("Sub", "one", later), later, axis=1)
    return nodes, given


def _tail_constants() -> list[Any]:
    from onnx import numpy_helper

    values = {"one_value": np.array([-1]), "one_column": np.array([-1, 1]), "one": np.array(1.0)}
    return [numpy_helper.from_array(value, name) for name, value in values.items()]
