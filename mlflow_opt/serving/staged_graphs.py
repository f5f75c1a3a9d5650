"""A graph cut in two behind its trees: the trees run for all waiting requests at once, what follows runs for each by itself.

A vectorised sigmoid gives a row other last bits beside other rows (see `operators.py`), and nearly every classifier of trees
ends in one. It is also next to nothing of the cost. So where everything that is uncertain comes after the trees, joining
stays exact: a request's share of their sums goes through the rest as if it had come alone. The cut is made only at outputs
of tree operators, which ONNX Runtime fuses with nothing, so that two sessions compute what one did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_code import SessionOptions
from mlflow_opt.export.graph_edits import keep_outputs
from mlflow_opt.serving.operators import ROW_BY_ROW

_TREES = "TreeEnsemble"
_ELEMENTS = {"tensor(float)": 1, "tensor(double)": 11}


class NoCut(ValueError):  # noqa: N818 - it says why a graph stays whole, which is no error of anybody
    """Why a graph is not cut."""


class StagedGraph:
    """The two sessions of a graph."""

    def __init__(self, path: Path, options: SessionOptions, wanted: Sequence[str]) -> None:
        """Cut a graph.

        Args:
            path: the ONNX file.
            options: of both sessions.
            wanted: the outputs that will be asked for.

        Raises:
            NoCut: what is uncertain does not come after trees alone, or there is no package onnx to cut with.
        """
        try:
            # The server's extra does not ask for it: without, requests are called one by one.
            import onnx
        except ModuleNotFoundError as error:
            raise NoCut("the package onnx is not installed") from error
        proto = onnx.load(str(path))
        cuts = _cuts(proto.graph, wanted)
        self._cuts = tuple(cuts)
        self._trees = dropin_code.open_session(_before(proto, cuts), options)
        kinds = {one.name: one.type for one in self._trees.get_outputs()}
        self._rest = dropin_code.open_session(_behind(proto, {name: kinds[name] for name in cuts}, wanted), options)

    def for_requests(self, sizes: Sequence[int]) -> Call:
        """Make a session for one call.

        Args:
            sizes: rows of each request, in order.
        """
        return Call(self._trees, self._rest, self._cuts, sizes)


class Call:
    """Stands for ONNX Runtime's session in one call for several requests."""

    def __init__(self, trees: Any, rest: Any, cuts: Sequence[str], sizes: Sequence[int]) -> None:
        """Take the two sessions, what goes from one to the other, and each request's rows."""
        self._trees, self._rest, self._cuts, self._sizes = trees, rest, cuts, sizes

    def run(self, names: list[str], feeds: Mapping[str, np.ndarray], options: Any) -> list[np.ndarray]:
        """Run the trees once and the rest for each request."""
        sums = self._trees.run(list(self._cuts), feeds, options)
        parts: list[list[np.ndarray]] = []
        start = 0
        for size in self._sizes:
            shares = {name: array[start : start + size] for name, array in zip(self._cuts, sums, strict=True)}
            parts.append(self._rest.run(names, shares, options))
            start += size
        return parts[0] if len(parts) == 1 else [np.concatenate(one) for one in zip(*parts, strict=True)]


def _cuts(graph: Any, wanted: Sequence[str]) -> list[str]:
    """Name the outputs of trees from which everything wanted is made, and before which nothing is uncertain."""
    maker = {name: node for node in graph.node for name in node.output}
    constants = {one.name for one in graph.initializer} | {name for name, node in maker.items() if node.op_type == "Constant"}
    certain: set[str] = {one.name for one in graph.input} | constants
    # ONNX keeps the nodes of a graph in an order in which each comes after what it takes.
    for node in graph.node:
        if node.op_type in ROW_BY_ROW and certain.issuperset(filter(None, node.input)):
            certain.update(node.output)
    found: dict[str, None] = {}
    asked = list(wanted)
    while asked:
        name = asked.pop()
        if not name or name in constants or name in found:
            continue
        if name not in maker:
            raise NoCut("not all of its answer is made from what trees give")
        if maker[name].op_type.startswith(_TREES) and name in certain and name not in wanted:
            found[name] = None
        else:
            asked += maker[name].input
    if not found:
        raise NoCut("it has no trees behind which to cut")
    return list(found)


def _before(proto: Any, cuts: Sequence[str]) -> bytes:
    from onnx import helper

    made = type(proto)()
    made.CopyFrom(proto)
    made.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in cuts if name not in {one.name for one in proto.graph.output}
    )
    keep_outputs(made.graph, cuts)
    return bytes(made.SerializeToString())


def _behind(proto: Any, kinds: Mapping[str, str], wanted: Sequence[str]) -> bytes:
    from onnx import helper

    if not _ELEMENTS.keys() >= set(kinds.values()):
        raise NoCut("its trees give neither single nor double precision")
    made = type(proto)()
    made.CopyFrom(proto)
    # Without the nodes that make them, what the trees give is asked of nobody.
    rest = [node for node in proto.graph.node if not set(node.output) & kinds.keys()]
    del made.graph.node[:]
    made.graph.node.extend(rest)
    del made.graph.input[:]
    made.graph.input.extend(helper.make_tensor_value_info(name, _ELEMENTS[kind], None) for name, kind in kinds.items())
    keep_outputs(made.graph, wanted)
    return bytes(made.SerializeToString())
