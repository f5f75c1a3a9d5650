"""Give a new network the weights of one that was trained before, wherever their shapes overlap.

A network that starts from a relative's weights is worth comparing after an epoch or two, where a fresh one says little; this
is what makes a search over architectures affordable. It favours later trials a little, because their weights have seen more
rows: what a search finds is therefore trained afresh before anything is claimed of it.

References: Real et al. 2017, "Large-scale evolution of image classifiers" (inheritance of matching weights); Elsken et al. 2019,
"Efficient multi-objective neural architecture search via Lamarckian evolution" (LEMONADE).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Shapes = Mapping[str, Sequence[int]]


def inherit(module: nn.Module, donor: Mapping[str, Tensor]) -> tuple[nn.Module, float]:
    """Copy a network and fill it with a donor's weights.

    Tensors meet by name, channels in their order from the first one, kernels by their middle. What the donor lacks stays as
    it was drawn.

    Args:
        module: freshly built; it is not changed.
        donor: weights by name.

    Returns:
        The network, and the share of its weights that were inherited.
    """
    made = copy.deepcopy(module)
    state = made.state_dict()
    with torch.no_grad():
        for name, mine in state.items():
            if name in donor and donor[name].ndim == mine.ndim and mine.ndim:
                mine[_middle(mine, donor[name])] = donor[name][_middle(donor[name], mine)]
    return made, shared({name: one.shape for name, one in state.items()}, {name: one.shape for name, one in donor.items()})


def shared(mine: Shapes, donor: Shapes) -> float:
    """Give the share of a network's numbers that a donor of these shapes could fill.

    Example:
        >>> shared({"layer.weight": (4, 8)}, {"layer.weight": (2, 16)})
        0.5
    """
    total = sum(math.prod(shape) for shape in mine.values())
    met = sum(
        math.prod(min(a, b) for a, b in zip(shape, donor[name], strict=True))
        for name, shape in mine.items()
        if name in donor and len(donor[name]) == len(shape)
    )
    return met / total if total else 0.0


def _middle(tensor: Tensor, other: Tensor) -> tuple[slice, ...]:
    """Cut the part of a tensor that has a counterpart in the other: the first channels, the middle of a kernel."""
    cut = []
    for axis, (size, theirs) in enumerate(zip(tensor.shape, other.shape, strict=True)):
        start = (size - min(size, theirs)) // 2 if axis >= 2 else 0
        cut.append(slice(start, start + min(size, theirs)))
    return tuple(cut)
