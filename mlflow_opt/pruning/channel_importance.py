"""How much a network would miss each channel, neuron or head, and each layer a share of them.

References: Molchanov et al. 2019, "Importance estimation for neural network pruning" (Taylor: the squared sum of gradient
times weight over all that goes with a unit); Liu et al. 2017, "Learning efficient convolutional networks through network
slimming" (the scale of batch normalisation); Li et al. 2017, "Pruning filters for efficient ConvNets" (norms, sensitivity).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_opt.networks.losses import Arrays, Minibatch, plain_loss
from mlflow_opt.pruning.channel_graph import Couplings
from mlflow_opt.pruning.channel_labels import FIXED
from mlflow_opt.pruning.channel_pruning import masked
from mlflow_opt.pruning.channel_widths import LEVELS, weakest_first

Importance = Literal["taylor", "magnitude", "batchnorm"]
# Wraps a network so that its answers are logits or standardised values.
Judge = Callable[[nn.Module], nn.Module]
_BATCH = 64


def importances(module: nn.Module, couplings: Couplings, measure: Importance, rows: Arrays, judge: Judge) -> dict[int, float]:
    """Estimate what each unit contributes; only values within one family are comparable.

    Args:
        module: is not changed.
        couplings: of it.
        measure: `taylor` looks at gradients on the rows, `magnitude` at weights, `batchnorm` at scales of normalisation.
        rows: some hundred rows with targets; used by `taylor` alone.
        judge: wraps the module for the loss.

    Returns:
        unit -> importance; units that the measure does not see (without normalisation) are absent.

    Raises:
        ValueError: the network has no batch normalisation on anything that could be removed.
    """
    if measure == "taylor":
        return _taylor(module, couplings, rows, judge)
    parameters = dict(module.named_parameters())
    if measure == "batchnorm":
        scales = {f"{name}.weight" for name, one in module.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)}
        parameters = {name: tensor for name, tensor in parameters.items() if name in scales}
    found = _summed(couplings, {name: tensor.detach().square() for name, tensor in parameters.items()})
    if not found:
        raise ValueError("importance=batchnorm needs batch normalisation on the layers to prune, this network has none; use taylor.")
    return {unit: value**0.5 for unit, value in found.items()}


def sensitivities(
    module: nn.Module, couplings: Couplings, importance: Mapping[int, float], rows: Arrays, judge: Judge
) -> dict[str, tuple[float, ...]]:
    """Measure each family's sensitivity: how much the loss grows when a quarter, half and three quarters of it are set to zero.

    Args:
        module: is not changed.
        couplings: of it.
        importance: of units; the least important go first.
        rows: that no training has seen.
        judge: wraps the module for the loss.

    Returns:
        family -> growth of the loss at each of `LEVELS`, never falling along them.
    """
    before = _loss(judge(module), rows)
    found = {}
    for family in couplings.families:
        ranked = weakest_first(family, importance)
        losses = [_loss(judge(masked(module, couplings, ranked[: round(level * len(ranked))])), rows) - before for level in LEVELS]
        found[family.name] = tuple(float(one) for one in np.maximum.accumulate(np.maximum(losses, 0.0)))
    return found


def _taylor(module: nn.Module, couplings: Couplings, rows: Arrays, judge: Judge) -> dict[int, float]:
    network = copy.deepcopy(module).eval().requires_grad_(True)
    judged, loss = judge(network), plain_loss()
    total: dict[int, float] = {}
    for batch in _batches(rows):
        network.zero_grad()
        torch.autograd.backward(loss(judged, batch))
        terms = {name: one.grad * one.detach() for name, one in network.named_parameters() if one.grad is not None}
        for unit, value in _summed(couplings, terms).items():
            total[unit] = total.get(unit, 0.0) + value**2
    return total


def _batches(rows: Arrays) -> Iterator[Minibatch]:
    for start in range(0, len(rows.targets), _BATCH):
        part = slice(start, start + _BATCH)
        inputs = {name: torch.from_numpy(array[part]) for name, array in rows.inputs.items()}
        yield Minibatch(inputs, torch.from_numpy(rows.targets[part]), torch.arange(start, start + len(rows.targets[part])))


def _summed(couplings: Couplings, terms: Mapping[str, Tensor]) -> dict[int, float]:
    """Add up a term of every weight over the unit it belongs to."""
    found: dict[int, float] = {}
    for (name, axis), units in couplings.axes.items():
        if name not in terms or not (units != FIXED).any():
            continue
        others = [one for one in range(terms[name].ndim) if one != axis]
        sums = (terms[name].sum(others) if others else terms[name]).double().numpy()
        for unit, value in zip(units.tolist(), sums.tolist(), strict=True):
            found[unit] = found.get(unit, 0.0) + value
    found.pop(FIXED, None)
    return found


def _loss(module: nn.Module, rows: Arrays) -> float:
    from mlflow_opt.networks.losses import evaluate

    return evaluate(module, rows)[0]


def table(found: Mapping[str, Sequence[float]], couplings: Couplings) -> str:
    """Write sensitivities as a table, the most sensitive family first.

    Returns:
        Markdown.
    """
    head = "| layer | units | " + " | ".join(f"loss at {level:.0%} removed" for level in LEVELS) + " |"
    counts = {family.name: len(family.units) for family in couplings.families}
    ranked = sorted(found, key=lambda name: -found[name][len(LEVELS) // 2])
    body = [f"| {name} | {counts[name]} | " + " | ".join(f"{value:+.4f}" for value in found[name]) + " |" for name in ranked]
    return "\n".join([head, "|---" * (2 + len(LEVELS)) + "|", *body])
