"""Remove channels, neurons and attention heads from a network, and check that what is left computes what it should.

What it should compute is said by the masked network: the same one with the removed parts set to zero. Every removal is
compared with it on real rows before anybody gets the result, because a module's own code may hold sizes that no graph shows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_opt.networks.widths import Numbers, resize, set_numbers, tell_widths
from mlflow_opt.pruning.channel_graph import Couplings, Sized

logger = logging.getLogger(__name__)
Inputs = Mapping[str, np.ndarray]
# Far more than single precision's rounding through a deep network, far less than a wrong channel makes.
_TOLERANCE = 2e-3
_COMPARED_ROWS = 16


def masked(module: nn.Module, couplings: Couplings, removed: Collection[int]) -> nn.Module:
    """Copy a network with the units set to zero: what the network without them must compute.

    Args:
        module: is not changed.
        couplings: of it.
        removed: units of its families.
    """
    made = copy.deepcopy(module)
    values = dict([*made.named_parameters(), *made.named_buffers()])
    with torch.no_grad():
        for name, axis, gone in couplings.touched(removed):
            # A variance of zero would be divided by.
            values[name].index_fill_(axis, torch.from_numpy(gone), 1.0 if name.endswith("running_var") else 0.0)
    return made


def without(module: nn.Module, couplings: Couplings, removed: Collection[int], inputs: Inputs) -> nn.Module:
    """Copy a network without some units: their weights are gone, and it is smaller.

    Args:
        module: is not changed.
        couplings: of it.
        removed: units of its families; every layer must keep one.
        inputs: some rows, on which the result is compared with `masked`.

    Raises:
        ValueError: a layer would be empty, or the module's code cannot compute with the sizes that are left.
    """
    layer, count = couplings.emptied(removed)
    if layer:
        raise ValueError(f"a layer must keep a channel, neuron or head, '{layer}' would lose all of its {count}; lower the rate.")
    tensors = [torch.from_numpy(np.require(one[:_COMPARED_ROWS], requirements=["C", "W"])) for one in inputs.values()]
    cut = _cut(module, couplings, removed)
    with torch.no_grad():
        wanted = masked(module, couplings, removed).eval()(*tensors)
        for numbers in _ways(cut, couplings.sized, removed):
            made = copy.deepcopy(cut)
            set_numbers(made, numbers)
            doubt = _difference(made.eval(), tensors, wanted)
            if not doubt:
                return made.train(module.training)
    raise ValueError(
        f"a pruned network must compute what the masked one does, this one does not ({doubt}); write the sizes in its forward as "
        "attributes (self.heads) or leave them to torch (-1)."
    )


def _cut(module: nn.Module, couplings: Couplings, removed: Collection[int]) -> nn.Module:
    made = copy.deepcopy(module)
    layers = dict(made.named_modules())
    changed = {}
    for name, axis, _ in couplings.touched(removed):
        prefix, _, own = name.rpartition(".")
        layer = layers[prefix]
        kept = torch.from_numpy(couplings.kept((name, axis), removed))
        resize(layer, own, getattr(layer, own).index_select(axis, kept))
        changed[prefix] = layer
    for prefix, layer in changed.items():
        tell_widths(layer)
        inputs = couplings.grouped.get(f"{prefix}.weight" if prefix else "weight")
        if inputs is not None:
            layer.in_channels = int((~np.isin(inputs, list(removed))).sum())
            layer.groups = layer.in_channels // layer.weight.shape[1]
    return made


def _ways(module: nn.Module, sized: Sequence[Sized], removed: Collection[int]) -> list[Numbers]:
    """List which attributes a module's code may know its sizes by: none, those named after heads, any of the old size."""

    def matching(accept: Callable[[str], bool]) -> Numbers:
        found: Numbers = {}
        layers = dict(module.named_modules())
        for one in sized:
            old, new = len(one.labels), int((~np.isin(one.labels, list(removed))).sum())
            for name, value in vars(layers.get(one.module, module)).items():
                if old != new and type(value) is int and value == old and accept(name):
                    found.setdefault(one.module, {})[name] = new
        return found

    ways = [{}, matching(lambda name: "head" in name and not name.endswith(("dim", "size"))), matching(lambda _: True)]
    return [way for at, way in enumerate(ways) if way not in ways[:at]]


def _difference(module: nn.Module, inputs: Sequence[Tensor], wanted: Tensor) -> str:
    """Say how a network's answers differ from what is wanted, "" if they do not."""
    try:
        found: Tensor = module(*inputs)
    # What torch raises for tensors that do not fit.
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    if found.shape != wanted.shape:
        return f"its answer has the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    far = float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    return f"answers differ by {far:.2g} of their size" if not far <= _TOLERANCE else ""
