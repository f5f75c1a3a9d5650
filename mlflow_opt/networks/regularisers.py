"""What keeps a network from learning its train rows by heart, put around the user's own module and taken off after training.

Dropout and batch normalisation act through hooks and are gone, or folded into the layers' weights, when training ends: the
network that comes out has the class, the layers and the speed of the one that went in.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from mlflow_opt.networks.losses import Loss, Minibatch, answer, compare

_OURS = "mlflow_opt_"
_NORM = f"{_OURS}norm"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
_NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm")


@dataclass(frozen=True)
class Called:
    """One call of a layer without children: its name and itself, and whether it answers one vector a row."""

    name: str
    layer: nn.Module
    flat: bool


def calls_of(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> list[Called]:
    """List the layers in the order in which a module calls them on some rows."""
    found: list[Called] = []

    def note(name: str, layer: nn.Module, _args: Any, output: Any) -> None:
        found.append(Called(name, layer, isinstance(output, Tensor) and output.ndim == 2))

    # What was put on a layer is no layer of the network's own.
    leaves = [
        (name, layer)
        for name, layer in module.named_modules()
        if _OURS not in name and all(_OURS in child for child, _ in layer.named_children())
    ]
    hooks = [layer.register_forward_hook(functools.partial(note, name)) for name, layer in leaves]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(*(torch.from_numpy(array[:2]) for array in inputs.values()))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def with_dropout(module: nn.Module, inputs: Mapping[str, np.ndarray], rate: float) -> nn.Module:
    """Copy a module with dropout: its own layers of it get the rate, and where there are none it is put before layers.

    It is put before each linear layer but the first layer of all, or, without such, before each convolution but the first,
    there on whole channels (Tompson et al. 2015, "Efficient object localization using convolutional networks").

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".

    Args:
        module: left unchanged.
        inputs: some rows, to see the order of the layers.
        rate: share of the values that are left out.

    Raises:
        ValueError: there is no place for it.
    """
    made = copy.deepcopy(module)
    # nn.Dropout's base class covers its variants, and is private; the name says the same.
    own = [layer for layer in made.modules() if "Dropout" in type(layer).__name__ and hasattr(layer, "p")]
    for layer in own:
        # setattr, because the type checker knows no `p` on a Module.
        setattr(layer, "p", rate)  # noqa: B010
    if own:
        return made
    weighted = [called.layer for called in calls_of(made, inputs) if isinstance(called.layer, _WEIGHTED)][1:]
    chosen = [layer for layer in weighted if isinstance(layer, nn.Linear)] or weighted
    if not chosen:
        raise ValueError("dropout needs a second linear or convolutional layer to stand before, the network has none.")
    for layer in dict.fromkeys(chosen):
        layer.register_forward_pre_hook(functools.partial(_drop, rate))
    return made


def with_batch_norm(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> nn.Module:
    """Copy a module with batch normalisation after each layer that has none, but for the last one.

    Linear layers that answer sequences, layers without a bias, and layers that are called twice are left alone: there it
    could not be folded away after training.

    Source: Ioffe, Szegedy 2015, "Batch normalization: accelerating deep network training".

    Raises:
        ValueError: there is no layer for it.
    """
    made = copy.deepcopy(module)
    calls = calls_of(made, inputs)
    weighted = [at for at, called in enumerate(calls) if isinstance(called.layer, _WEIGHTED)]
    names = [called.name for called in calls]
    placed = 0
    for at in weighted[:-1]:
        # The type checker knows no weight and no bias on a Module.
        layer, after = cast(Any, calls[at].layer), type(calls[at + 1].layer).__name__
        sequence = isinstance(layer, nn.Linear) and not calls[at].flat
        if after.startswith(_NORMALISING) or sequence or layer.bias is None or names.count(names[at]) > 1:
            continue
        layer.add_module(_NORM, _NORMS[type(layer)](layer.weight.shape[0]))
        layer.register_forward_hook(_normalise)
        placed += 1
    if not placed:
        raise ValueError("batch normalisation needs a layer that has none and is not the last, the network has no such layer.")
    return made


def taken_off(trained: nn.Module, module: nn.Module) -> nn.Module:
    """Give the plain module the weights of a trained one, batch normalisation folded in; answers are equal to rounding.

    Args:
        trained: made by `with_dropout` or `with_batch_norm`, and trained.
        module: what it was made from.
    """
    made = copy.deepcopy(module)
    weights = {name: tensor for name, tensor in trained.state_dict().items() if _NORM not in name}
    for name, layer in trained.named_modules():
        norm = getattr(layer, _NORM, None)
        if norm is None:
            continue
        fuse: Any = fuse_conv_bn_weights if isinstance(layer, _CONVOLUTIONS) else fuse_linear_bn_weights
        given = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weights[f"{name}.weight"], weights[f"{name}.bias"] = fuse(layer.weight, layer.bias, *given)
    made.load_state_dict(weights)
    return made.eval()


def mixup_loss(alpha: float, label_smoothing: float = 0.0) -> Loss:
    """Make a loss on blends of two rows each, whose targets are blended alike.

    Source: Zhang et al. 2018, "mixup: beyond empirical risk minimization". Whole pictures of bytes stay bytes, rounded.

    Args:
        alpha: of the Beta distribution that draws the blend; larger mixes more.
        label_smoothing: share of the target spread over all classes.
    """

    def loss(module: nn.Module, batch: Minibatch) -> Tensor:
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        order = torch.randperm(len(batch.targets))
        scores = answer(module, {name: _blend(rows, rows[order], share) for name, rows in batch.inputs.items()})
        first = compare(scores, batch.targets, label_smoothing)
        return share * first + (1 - share) * compare(scores, batch.targets[order], label_smoothing)

    return loss


def can_mix(inputs: Mapping[str, np.ndarray]) -> bool:
    """Tell whether rows can be blended: fractions and pictures of bytes can, token ids cannot."""
    return all(array.dtype.kind == "f" or (array.dtype == np.uint8 and array.ndim > 2) for array in inputs.values())


def zero_share(module: nn.Module) -> float:
    """Give the share of weights, biases and normalisation aside, that are exactly zero."""
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)


def _blend(rows: Tensor, others: Tensor, share: float) -> Tensor:
    if rows.is_floating_point():
        return share * rows + (1 - share) * others
    return (share * rows.float() + (1 - share) * others.float()).round().to(rows.dtype)


def _drop(rate: float, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not layer.training:
        return None
    if isinstance(layer, nn.Linear):
        return (F.dropout(args[0], rate), *args[1:])
    # One mask for a whole channel of a row.
    mask = F.dropout(torch.ones_like(args[0][(..., *[slice(0, 1)] * (args[0].ndim - 2))]), rate)
    return (args[0] * mask, *args[1:])


def _normalise(layer: nn.Module, _args: Any, output: Tensor) -> Tensor:
    normalised: Tensor = getattr(layer, _NORM)(output)
    return normalised
