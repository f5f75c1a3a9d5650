"""Set single weights of a network to zero: at once, over training, or by training that draws them there.

Zeros make a file compress well. They do not make a dense runtime faster: ONNX Runtime multiplies by them like by any other
number. What would help is removing whole channels (`channel_pruning`), 8-bit integers, or a sparse runtime.

References: Han et al. 2015, "Learning both weights and connections for efficient neural networks" (magnitude, fine-tuning);
Zhu & Gupta 2017, "To prune, or not to prune" (the gradual schedule).
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mlflow_opt.networks.losses import Loss, Minibatch

Scope = Literal["global", "layer"]
# Masks change this often while sparsity grows: at every step the network would have no time to recover.
_EVERY = 10
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def with_masks(module: nn.Module, amount: float, scope: Scope = "global") -> nn.Module:
    """Copy a network with its smallest weights held at zero, also through training, until `settled` makes it plain again.

    Args:
        module: is not changed.
        amount: share of the weights of linear and convolution layers, in [0, 1).
        scope: `global` ranks all weights together, so that large layers give more; `layer` takes the share from each layer.

    Returns:
        A network of the same class whose layers carry masks of `torch.nn.utils.prune`.

    Raises:
        ValueError: the amount is out of range, or there is no layer with weights to prune.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"a sparsity must be in [0, 1), got {amount}; 0.7 sets 70% of the weights to zero, 1 would leave nothing.")
    made = copy.deepcopy(module)
    _mask(made, amount, scope)
    return made


def settled(module: nn.Module) -> nn.Module:
    """Make masks permanent: a plain network again, whose masked weights are zero; it is changed and given back."""
    for layer in _layers(module):
        if hasattr(layer, "weight_orig"):
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    return module


def gradual_loss(loss: Loss, final: float, steps: int, scope: Scope = "global") -> Loss:
    """Make a loss whose training raises sparsity from what it is to `final`, fast at first and slowly at the end.

    The sparsity after t of T steps is `final * (1 - (1 - t / T) ** 3)` (Zhu & Gupta 2017, without their waiting period: the
    network given is trained already). Masks are renewed every ten steps. How far it has come is a buffer of the network, so
    that a training that goes on from a checkpoint goes on with it.

    Args:
        loss: of the training.
        final: sparsity at the end.
        steps: minibatches after which it is reached; fewer than the training has, so that it can recover.
        scope: see `with_masks`.
    """

    def growing(module: nn.Module, batch: Minibatch) -> Tensor:
        count = _counter(module)
        if int(count) % _EVERY == 0 or int(count) == steps:
            _mask(module, final * (1 - (1 - min(1.0, int(count) / steps)) ** 3), scope)
        count += 1
        return loss(module, batch)

    return growing


def countable(module: nn.Module) -> nn.Module:
    """Copy a network with the buffer that `gradual_loss` counts in, and empty masks."""
    made = with_masks(module, 0.0)
    made.register_buffer("pruning_steps", torch.zeros((), dtype=torch.int64))
    return made


def uncounted(module: nn.Module) -> nn.Module:
    """Take the buffer of `countable` away again; the network is changed and given back."""
    del module.pruning_steps
    return module


def sparsity(module: nn.Module) -> float:
    """Give the share of zeros among the weights of linear and convolution layers."""
    weights = [one.weight for one in _layers(module)]
    zeros, total = sum(int((one == 0).sum()) for one in weights), sum(int(one.numel()) for one in weights)
    return zeros / max(1, total)


def compressed_mb(folder: Path) -> float:
    """Give the size of a model's largest file after compression (zlib), in megabytes: what zeros save on disk and on the wire."""
    files = [folder] if folder.is_file() else [one for one in folder.rglob("*.onnx") if one.is_file()]
    return sum(len(zlib.compress(one.read_bytes(), 6)) for one in files) / 1e6


def _counter(module: nn.Module) -> Tensor:
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] == "pruning_steps":
            return buffer
    raise ValueError("gradual pruning counts its steps in the network, this one has no counter; train what `countable` gave.")


def _layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, _LAYERS)]


def _mask(module: nn.Module, amount: float, scope: Scope) -> None:
    """Renew the masks by the weights behind them: a weight that was zero may come back if it has grown."""
    layers = _layers(module)
    if not layers:
        raise ValueError("a network must have linear or convolution layers for its weights to be pruned, this one has none.")
    # Without gradients the masked weight is plain data, and the network can be copied.
    with torch.no_grad():
        sizes = [getattr(layer, "weight_orig", layer.weight).detach().abs() for layer in layers]
        shared = _threshold(torch.cat([one.flatten() for one in sizes]), amount) if scope == "global" else None
        for layer, size in zip(layers, sizes, strict=True):
            mask = (size > (_threshold(size.flatten(), amount) if shared is None else shared)).to(size.dtype)
            if hasattr(layer, "weight_mask"):
                layer.weight_mask.copy_(mask)
            else:
                prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]


def _threshold(sizes: Tensor, amount: float) -> float:
    count = int(amount * sizes.numel())
    return float(sizes.kthvalue(count).values) if count else -1.0
