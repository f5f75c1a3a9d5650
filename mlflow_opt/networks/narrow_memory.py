"""A copy of a recurrent network with a smaller memory: what a student of an LSTM, a GRU or a plain RNN is made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mlflow_opt.networks.blueprints import RECURRENT
from mlflow_opt.networks.widths import resize, tell_widths

# Fewer numbers than this remember next to nothing.
_LEAST = 4


def is_recurrent(module: nn.Module) -> bool:
    """Tell whether a network has a memory that could be smaller."""
    return any(isinstance(layer, nn.RNNBase) for layer in module.modules())


def with_smaller_memory(module: nn.Module, inputs: Mapping[str, np.ndarray], share: float) -> nn.Module:
    """Copy a network with a share of the state of its recurrent layers, and new weights in these and in what they feed.

    What follows a smaller state is found by running some rows: a layer that gets fewer numbers than it was made for takes as
    many as it gets.

    Args:
        module: left unchanged.
        inputs: some rows.
        share: of the widths, in (0, 1).

    Raises:
        ValueError: the network's own code holds the width of its state.
    """
    made = copy.deepcopy(module).eval()
    for name, layer in list(made.named_modules()):
        if isinstance(layer, nn.RNNBase):
            said = {key: getattr(layer, key) for key in RECURRENT} | {"hidden_size": max(_LEAST, round(share * layer.hidden_size))}
            parent, _, key = name.rpartition(".")
            # The type checker knows no constructor of a layer's type.
            kind: Any = type(layer)
            setattr(made.get_submodule(parent), key, kind(**said))
    hooks = [layer.register_forward_pre_hook(_take_what_comes) for layer in made.modules()]
    try:
        with torch.no_grad():
            few = tuple(torch.from_numpy(array[:2]) for array in inputs.values())
            wanted, got = module.eval()(*few).shape, made(*few).shape
    except RuntimeError as error:
        raise ValueError(f"a network's code must not hold the width of its state for a smaller one to be made: {error}.") from error
    finally:
        for hook in hooks:
            hook.remove()
    if wanted != got:
        raise ValueError(f"a smaller state must leave a network's answers as wide as they were, {wanted} became {got}.")
    return made


def _take_what_comes(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Make a layer as wide as its input."""
    width = args[0].shape[-1] if args and isinstance(args[0], torch.Tensor) and args[0].ndim else 0
    if isinstance(layer, nn.Linear) and layer.in_features != width:
        resize(layer, "weight", layer.weight.new_zeros(layer.out_features, width))
    elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and layer.normalized_shape != (width,):
        for name, parameter in list(layer.named_parameters()):
            resize(layer, name, torch.ones(width) if name == "weight" else torch.zeros_like(parameter[:1]).expand(width))
    elif isinstance(layer, nn.RNNBase) and layer.input_size != width:
        for name, parameter in list(layer.named_parameters()):
            if name.startswith("weight_ih_l0"):
                resize(layer, name, parameter.new_zeros(parameter.shape[0], width))
    else:
        return
    tell_widths(layer)
