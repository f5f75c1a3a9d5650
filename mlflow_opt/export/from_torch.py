"""A torch module as a graph, by torch's own exporter over `torch.export`."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph, compare, head
from mlflow_opt.flavours.contracts import columns_of
from mlflow_opt.flavours.torch_modules import TorchRuntime
from mlflow_opt.models import Model

_SCORES = "scores"
# The version that torch's exporter writes natively; a newer one goes through a converter that knows fewer operators.
_OPSET = 18
# A batch of one would be taken for a constant.
_TRACED_ROWS = 3
_COMPARED_ROWS = 200
# torch 2.13 warns of torch's own use of torch; none of it concerns the module.
_TORCHS_OWN = (
    (FutureWarning, r".*isinstance\(treespec, LeafSpec\)"),
    (FutureWarning, r".*_check_is_size"),
    (UserWarning, r".*The tensor attributes? .* assigned during export"),
    (DeprecationWarning, r".*"),
)


def export_network(model: Model, example: Any) -> Iterator[OnnxGraph]:
    """Export a module with any number of inputs and a free batch size; whole-number inputs keep a free length too.

    The exporter over `torch.export` is used and not the older one that traces: of attention the older one writes graphs that
    are wrong for another batch size, both quantise alike, and it is on its way out of torch.

    Raises:
        ValueError: an operator of the module has no ONNX form, or it has a fixed batch size.
    """
    yield graph_of(model.runtime, model, example)


def graph_of(runtime: TorchRuntime, model: Model, example: Any) -> OnnxGraph:
    """Export a runtime's module, bound to the inputs that a model's signature names; see `export_network`."""
    arrays = {name: np.resize(one, (_TRACED_ROWS, *one.shape[1:])) for name, one in runtime.arrays(example).items()}
    proto = export_module(runtime.native, arrays)
    # A table's columns are the one input of a network; arrays are named as the signature does, the graph's inputs as `forward`.
    columns = tuple(columns_of(model.signature, example.columns) or ()) if isinstance(example, pd.DataFrame) else ()
    feeds = [Feed(name, array.dtype.name, columns, key=runtime.key(name, at)) for at, (name, array) in enumerate(arrays.items())]
    wide = list(proto.graph.output[0].type.tensor_type.shape.dim)
    single = len(wide) == 1 or (len(wide) == 2 and wide[1].dim_value == 1)
    return OnnxGraph(proto, Binding(tuple(feeds), Output(_SCORES, "values" if single else "logits")))


def export_retrained(module: Any, model: Model, example: Any) -> OnnxGraph:
    """Export a module that was trained in a model's place.

    Args:
        module: takes and answers what the model's own does.
        model: gives the signature.
        example: some rows of the data, to compare the export with the module.

    Raises:
        ValueError: it cannot be exported, or the export does not answer as the module does.
    """
    runtime = TorchRuntime(model, module.eval())
    rows = head(example, _COMPARED_ROWS)
    graph = graph_of(runtime, model, rows)
    doubt = compare(graph, rows, runtime.scores(runtime.call(runtime.prepare(rows))))
    if doubt:
        raise ValueError(f"an export must answer as the network does, and this one does not: {doubt}; the network has no ONNX form here.")
    graph.proto.graph.name = "model"
    return graph


def export_module(module: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Export a module to an ONNX ModelProto with inputs of the arrays' names and the output `scores`.

    Args:
        module: a `torch.nn.Module` in evaluation mode.
        arrays: argument name -> example of three rows or more.

    Raises:
        ValueError: an operator has no ONNX form, or the module has a fixed batch size.
    """
    import torch

    names = list(arrays)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(one)) for one in arrays.values())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                input_names=names,
                output_names=[_SCORES],
                dynamic_shapes=tuple(_free_sizes(one) for one in tensors),
                opset_version=_OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(_trouble(error)) from error
    if program is None:
        raise ValueError("torch gave no graph for the module; export it to .onnx yourself and give that file.")
    proto = program.model_proto
    _forget_origin(proto)
    return proto


def _free_sizes(tensor: Any) -> dict[int, Any]:
    from torch.export import Dim

    free = {0: Dim.DYNAMIC}
    # Tokens come in sentences of any length; other inputs keep the size that the module was built for.
    if tensor.ndim > 1 and not tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        free[1] = Dim.AUTO
    return free


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter tells every time that torchvision's operators are not there, which nobody asked for.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in _TORCHS_OWN:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        registration.setLevel(level)


def _trouble(error: Exception) -> str:
    told: list[str] = []
    one: BaseException | None = error
    while one is not None:
        told.append(str(one))
        one = one.__cause__ or one.__context__
    whole = "\n".join(told)
    operators = sorted(set(re.findall(r"op='([\w.:]+)'|operator:? '?(aten[\w.:]+)", whole)))
    if operators:
        named = ", ".join(a or b for a, b in operators)
        return f"the network cannot be exported: its operator {named} has no ONNX form; replace it by operators that ONNX has."
    place = re.search(r"The following call raised this error:\n\s*File \"([^\"]*)\", line (\d+), in \w+\n\s*(.+)", whole)
    if "data-dependent" in whole and place:
        file, line, code = place.groups()
        return (
            f"the network cannot be exported: line {line} of {Path(file).name}, `{code.strip()}`, decides on a value that is known only "
            "when the network runs; write it with torch.where, or give an .onnx file."
        )
    if "specialized" in whole or "ConstraintViolation" in whole or "marked" in whole:
        return "the network cannot be exported with a free batch size: it fixes its own; save it again with an example of two rows or more."
    last = next((line for line in reversed(told[-1].splitlines()) if line.strip()), type(error).__name__)
    return f"the network cannot be exported ({last.strip()[:200]}); avoid decisions on values inside forward, or give an .onnx file."


def _forget_origin(proto: Any) -> None:
    """Remove the stack traces that the exporter writes into every node: they hold paths of the machine that exported."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
