"""The channels, neurons and attention heads of a network that can be removed, and what goes with each of them.

Why our own graph and not that of torch-pruning: its version 1.6.1 was tried on torch 2.13. It prunes plain residual
networks well, but it reads the graph from the names of autograd's functions, which do not say how a tensor was reshaped or
cut: a concatenation that is flattened into a linear layer, a `chunk` of channels, and attention of one's own with a fused
projection gave networks that no longer run, and in `nn.MultiheadAttention` it removes numbers inside the heads instead of
heads. `torch.export` says all of that, so that the graph here is small, and what it cannot follow stays as it is.

References: Fang et al. 2023, "DepGraph: towards any structural pruning" (coupled parameters); Michel, Levy, Neubig 2019, "Are
sixteen heads really better than one?" (heads as units).
"""

from __future__ import annotations

import logging
import math
import operator
import traceback
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlflow_opt.pruning.channel_labels import FIXED, Ints
from mlflow_opt.pruning.channel_rules import follow
from mlflow_opt.pruning.channel_trace import Call, Product, Trace

logger = logging.getLogger(__name__)
# A batch of one would let a batch axis pass for one of size 1.
_ROWS = 3


@dataclass(frozen=True)
class Family:
    """Units that are alike: the channels of coupled layers, the heads of an attention.

    Args:
        name: of the first layer that makes them.
        units: their labels, in that layer's order.
        width: outputs of that layer in one unit: 1 for channels, the size of a head for heads.
    """

    name: str
    units: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Sized:
    """A size that a module's own code may hold: how many of `labels` there are."""

    module: str
    labels: Ints


@dataclass(frozen=True)
class Couplings:
    """What can be removed from a network.

    Args:
        families: of units; every family keeps at least one unit.
        axes: (parameter, axis) -> the unit of each index, `FIXED` for what stays.
        grouped: grouped convolutions' weights -> the unit of each input channel.
        sized: sizes that code may hold as numbers.
        products: where the multiplications are.
    """

    families: tuple[Family, ...]
    axes: Mapping[tuple[str, int], Ints]
    grouped: Mapping[str, Ints]
    sized: tuple[Sized, ...]
    products: tuple[Product, ...]

    def macs(self, removed: Collection[int] = ()) -> float:
        """Count the multiplications for one row of what is left."""
        return sum(one.macs * math.prod(_left(axis, removed) for axis in one.axes) for one in self.products)

    def kept(self, key: tuple[str, int], removed: Collection[int]) -> Ints:
        """List the indices of a parameter's axis that are left."""
        return np.flatnonzero(~np.isin(self.axes[key], list(removed)))

    def spared(self, removed: Iterable[int]) -> list[int]:
        """Leave out of some units, in their order, those that would be the last of a layer, which may hold a part of a family only."""
        left = [set(units.tolist()) for units in self.axes.values()]
        homes: dict[int, list[set[int]]] = {}
        for axis in left:
            for unit in axis:
                homes.setdefault(unit, []).append(axis)
        gone = []
        for unit in removed:
            if all(len(axis) > 1 for axis in homes[unit]):
                gone.append(unit)
                for axis in homes[unit]:
                    axis.discard(unit)
        return gone

    def emptied(self, removed: Collection[int]) -> tuple[str, int]:
        """Name a layer that would lose all of an axis, and how many that are; ("", 0) if none would."""
        lost = ((name, len(units)) for (name, _), units in self.axes.items() if len(units) and np.isin(units, list(removed)).all())
        return next(((name.rpartition(".")[0] or name, count) for name, count in lost), ("", 0))

    def touched(self, removed: Collection[int]) -> Iterable[tuple[str, int, Ints]]:
        """Name each parameter, axis and the indices on it that are removed."""
        for (name, axis), units in self.axes.items():
            gone = np.flatnonzero(np.isin(units, list(removed)))
            if len(gone):
                yield name, axis, gone


def couplings_of(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> Couplings:
    """Find what can be removed from a network.

    Example:
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = couplings_of(layers.eval(), {"x": np.zeros((3, 4), np.float32)})
        >>> [(one.name, len(one.units)) for one in found.families]
        [('0', 8)]

    Args:
        module: in evaluation mode.
        arrays: some rows for each argument of its `forward`.

    Raises:
        ValueError: layers share weights, `forward` decides by values, or nothing can be removed.
    """
    _refuse_shared(module)
    program = _exported(module, arrays)
    trace = Trace()
    _follow_graph(program, trace)
    _keep_grids(trace)
    ledger = trace.ledger
    axes = ledger.parameters()
    families = _families(trace, axes)
    if not families:
        raise ValueError(
            "a network must have a layer whose channels, neurons or heads can be removed, this one has none: all are bound to its input, "
            f"its output or an operation that cannot be followed; its layers are {_kinds(module)}."
        )
    grouped = {name: ledger.roots(labels) for name, labels in trace.grouped.items()}
    sized = tuple(
        Sized(one.module, ledger.roots(ledger.along(one.value, axis))) for one in trace.reshaped for axis in ledger.varying(one.value)
    )
    products = tuple(Product(one.macs, tuple(ledger.roots(axis) for axis in one.axes)) for one in trace.products)
    return Couplings(families, axes, grouped, sized, products)


def require_followed(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a network whose `forward` decides by values: it can be neither exported nor compared with a pruned one.

    Args:
        module: in evaluation mode.
        arrays: some rows for each argument of its `forward`.

    Raises:
        ValueError: names the place.
    """
    _exported(module, arrays)


def _left(units: Ints, removed: Collection[int]) -> float:
    return 1.0 - float(np.isin(units, list(removed)).mean())


def _kinds(module: nn.Module) -> str:
    return ", ".join(sorted({type(one).__name__ for one in module.modules() if next(one.parameters(recurse=False), None) is not None}))


def _refuse_shared(module: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise ValueError(
                f"a network's layers must not share weights to be pruned, '{seen[id(parameter)]}' and '{name}' are one; "
                "give each layer its own (copy.deepcopy)."
            )
        seen[id(parameter)] = name


def _exported(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> Any:
    inputs = tuple(
        torch.from_numpy(np.require(np.resize(one, (_ROWS, *one.shape[1:])), requirements=["C", "W"])) for one in arrays.values()
    )
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            return torch.export.export(module, inputs, strict=False)
    # What a user's own forward raises while it is followed has no common class; each is this one message.
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"a network to prune must compute alike for all values, this one cannot be followed at {_place(error)} ({first[:150]}); "
            "use torch.where for decisions on values in its forward, or leave them out."
        ) from error


def _place(error: Exception) -> str:
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = [
        one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours) and not one.filename.startswith("<")
    ]
    return f"'{frames[-1].line}' (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else "its forward"


def _follow_graph(program: Any, trace: Trace) -> None:
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    known: dict[Any, Any] = {}
    for node in program.graph.nodes:
        shape = tuple(int(size) for size in getattr(node.meta.get("val"), "shape", ()))
        if node.op == "placeholder":
            known[node] = trace.ledger.add_parameter(named[node.name], shape) if node.name in named else trace.ledger.untracked(shape)
        elif node.op == "call_function":
            stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
            args, kwargs = (torch.fx.node.map_arg(one, lambda inner: known[inner]) for one in (node.args, node.kwargs))
            known[node] = follow(trace, Call(_operation(node.target), tuple(args), dict(kwargs), shape, stack[-1][0]))
        elif node.op == "output":
            follow(trace, Call("output", tuple(torch.fx.node.map_arg(node.args[0], lambda inner: known[inner])), {}, (), ""))


def _operation(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    schema = getattr(target, "_schema", None)
    name = str(schema.name).split("::")[-1] if schema is not None else str(target)
    return name.rstrip("_")


def _keep_grids(trace: Trace) -> None:
    """Join what a reshape needs together: of a tensor with channels on several axes only whole slices of one axis can go."""
    ledger, changed = trace.ledger, True
    while changed:
        changed = False
        for one in trace.reshaped:
            axes = ledger.varying(one.value)
            if len(axes) > 1:
                roots = ledger.roots(one.value.labels)
                # The axis that leaves most units: heads where the numbers of a head belong together already.
                best = max(axes, key=lambda axis: _slices(roots, axis))
                ledger.join_along(one.value.labels, [axis for axis in axes if axis != best])
                changed = True


def _slices(labels: Ints, axis: int) -> int:
    """Count the groups of slices along an axis that share no label with one another."""
    groups: list[set[int]] = []
    for part in np.moveaxis(labels, axis, 0):
        mine = {int(one) for one in np.unique(part)}
        apart = [group for group in groups if not group & mine]
        for group in groups:
            if group & mine:
                mine |= group
        groups = [*apart, mine]
    return len(groups)


def _families(trace: Trace, axes: Mapping[tuple[str, int], Ints]) -> tuple[Family, ...]:
    """Put units together that come out of one layer, or of layers that share units."""
    owner: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    makers = list(dict.fromkeys(trace.producers))
    for at, key in enumerate(makers):
        units = [int(one) for one in dict.fromkeys(axes[key].tolist()) if one != FIXED]
        touching = sorted({owner[one] for one in units if one in owner})
        home = touching[0] if touching else at
        members[home] = list(dict.fromkeys([*(one for other in touching for one in members.pop(other)), *units]))
        owner.update(dict.fromkeys(members[home], home))
    # A unit that is all of some axis cannot go: nothing would be left there.
    whole = {int(units[0]) for units in axes.values() if len(units) and (units == units[0]).all()}
    found = []
    for home, units in sorted(members.items()):
        left = tuple(one for one in units if one not in whole)
        name = makers[home][0].rpartition(".")[0] or makers[home][0]
        if len(left) > 1:
            found.append(Family(name, left, max(1, int((axes[makers[home]] == left[0]).sum()))))
    return tuple(found)
