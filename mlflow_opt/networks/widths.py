"""Give a network's layers other widths: parameters of another size, and the numbers by which its code knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Attributes that say a layer's width, by the parameter and its axis that hold it.
_WIDTHS: dict[str, dict[str, tuple[str, int | None]]] = {
    "Linear": {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    "BatchNorm": {"num_features": ("weight", 0)},
    "InstanceNorm": {"num_features": ("weight", 0)},
    "LayerNorm": {"normalized_shape": ("weight", None)},
    "RMSNorm": {"normalized_shape": ("weight", None)},
    "Embedding": {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    "PReLU": {"num_parameters": ("weight", 0)},
}
Numbers = dict[str, dict[str, int]]


def fit_widths(module: Any, weights: Mapping[str, Any]) -> None:
    """Give every parameter and buffer the shape of its weights, and its layer the widths that follow.

    Args:
        module: a `torch.nn.Module`; it is changed, its values are not set.
        weights: by the names of its state.
    """
    for prefix, layer in module.named_modules():
        own = {
            name: weights.get(f"{prefix}.{name}" if prefix else name)
            for name, _ in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        }
        changed = {name: new for name, new in own.items() if new is not None and new.shape != getattr(layer, name).shape}
        for name, new in changed.items():
            resize(layer, name, new)
        if changed:
            tell_widths(layer)


def resize(layer: Any, name: str, values: Any) -> None:
    """Exchange a parameter or buffer of a layer for one of another size, of the same type."""
    import torch

    old = getattr(layer, name)
    new = values.detach().clone().to(old.dtype)
    setattr(layer, name, torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new)


def tell_widths(layer: Any) -> None:
    """Set the numbers by which one of torch's layers knows its widths, from its parameters."""
    import torch

    kind = type(layer).__name__
    if isinstance(layer, torch.nn.MultiheadAttention):
        from mlflow_opt.networks.narrow_attention import narrow

        narrow(layer)
    elif hasattr(layer, "weight_hh_l0"):
        layer.input_size, layer.hidden_size = layer.weight_ih_l0.shape[1], layer.weight_hh_l0.shape[1]
    elif kind.startswith("Conv"):
        across, down = (1, 0) if "Transpose" in kind else (0, 1)
        depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
        layer.groups = layer.weight.shape[0] if depthwise else layer.groups
        layer.out_channels, layer.in_channels = layer.weight.shape[across], layer.weight.shape[down] * layer.groups
    for family, widths in _WIDTHS.items():
        if kind.startswith(family):
            for attribute, (parameter, axis) in widths.items():
                shape = tuple(getattr(layer, parameter).shape)
                setattr(layer, attribute, shape if axis is None else shape[axis])


def numbers_changed(module: Any, original: Any) -> Numbers:
    """List the whole numbers among the attributes of a network's modules that differ from those of another of its class.

    They are what a pruned network's own code computes with, such as a number of heads.
    """
    others = dict(original.named_modules())
    found = {
        path: {name: value for name, value in _numbers(one).items() if _numbers(others[path]).get(name, value) != value}
        for path, one in module.named_modules()
        if path in others
    }
    return {path: values for path, values in found.items() if values}


def set_numbers(module: Any, numbers: Numbers) -> None:
    """Set what `numbers_changed` listed."""
    modules = dict(module.named_modules())
    for path, values in numbers.items():
        for name, value in values.items():
            setattr(modules[path], name, value)


def _numbers(module: Any) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}
