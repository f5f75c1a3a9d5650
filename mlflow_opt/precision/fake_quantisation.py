"""Train a network with the rounding that it will be run with, so that its weights learn to live on the integers' grid.

Weights and inputs of linear and convolutional layers are rounded in the forward pass; gradients pass the rounding as if it were
not there, and the grids' steps are learnt with the weights. torch's own `torch.ao.quantization` is on its way out and not used.

References: Esser et al. 2020, "Learned step size quantization" (LSQ); Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons" (straight-through); Jacob et al. 2018 (folded batch normalisation).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from mlflow_opt.precision.quantisation import HEAVY, Grid, Scheme, channel_axis

if TYPE_CHECKING:
    import onnx

_INPUT = "mlflow_opt_input_grid"
_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_RANGE_ROWS = 256
_STEPS_TRIED = 29


@dataclass(frozen=True)
class Learnt:
    """What training found of one layer: the weights on their grid, that grid, and the grid of the layer's input."""

    weight: np.ndarray
    grid: Grid
    input_grid: Grid


class RoundedWeight(nn.Module):
    """Rounds weights to a symmetric grid whose step is learnt.

    The logarithm of the step is trained, unlike in the paper: Adam takes steps of one size, which would be huge for a step
    of 0.001; a logarithm makes them relative, and keeps the step positive.

    Args:
        weight: the layer's weights, to begin with.
        largest: integer of the grid.
        per_channel: one step for each output channel.
    """

    def __init__(self, weight: Tensor, largest: int, *, per_channel: bool) -> None:
        super().__init__()
        flat = weight.detach().reshape(len(weight), -1) if per_channel else weight.detach().reshape(1, -1)
        self.log_step = nn.Parameter(_closest_step(flat, largest).log())
        self.largest = largest

    def forward(self, weight: Tensor) -> Tensor:
        """Round the weights."""
        step = self.step(weight.ndim)
        integers = (weight / step).clamp(-self.largest, self.largest)
        return _straight_through(integers) * step

    def step(self, rank: int) -> Tensor:
        """Return the step, shaped for weights of a rank."""
        return self.log_step.exp().reshape(-1, *[1] * (rank - 1))


class RoundedInput(nn.Module):
    """Rounds a layer's input to 0...255 with a step that is learnt; the zero point stays where the calibration rows put it."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        step = max(high - low, 1e-8) / 255
        self.zero_point = int(np.clip(round(-low / step), 0, 255))
        self.log_step = nn.Parameter(torch.tensor([step]).log())

    def forward(self, values: Tensor) -> Tensor:
        """Round the input."""
        step = self.log_step.exp()
        integers = (values / step + self.zero_point).clamp(0, 255)
        return (_straight_through(integers) - self.zero_point) * step


def folded(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> nn.Module:
    """Copy a network with each batch normalisation folded into the layer before it, as the runtime will compute it.

    Args:
        module: trained; left unchanged.
        inputs: some rows, to see which layer feeds which.

    Raises:
        ValueError: the folded network answers otherwise, because a layer feeds something else too.
    """
    made = copy.deepcopy(module).eval()
    rows = _rows(inputs, 32)
    wanted = _answers(made, rows)
    for layer_name, norm_name in _pairs(made, rows):
        layer, norm = made.get_submodule(layer_name), made.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        given = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *given)
        parent, _, key = norm_name.rpartition(".")
        setattr(made.get_submodule(parent), key, nn.Identity())
    far = float((_answers(made, rows) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
    if far > 1e-3:
        raise ValueError(
            f"batch normalisation must follow the only user of its layer to be folded, here answers change by {far:.2g}; "
            "train the network with rounding in a form without batch normalisation."
        )
    return made


def rounded(module: nn.Module, inputs: Mapping[str, np.ndarray], scheme: Scheme) -> nn.Module:
    """Copy a folded network so that its linear and convolutional layers round weights and inputs, ready to be trained.

    Args:
        module: without batch normalisation, see `folded`; left unchanged.
        inputs: calibration rows, whose extremes are the inputs' first ranges.
        scheme: of the integers; weights are rounded to `scheme.largest`, per channel or not.

    Raises:
        ValueError: no layer can be rounded.
    """
    made = copy.deepcopy(module).eval()
    ranges = _ranges(made, _rows(inputs, _RANGE_ROWS))
    if not ranges:
        raise ValueError("training with rounding needs linear or convolutional layers, the network calls none; quantise it after training.")
    wanted = _mean_answers(made, list(ranges), _rows(inputs, _RANGE_ROWS))
    for name, (low, high) in ranges.items():
        # The type checker knows no weight on a Module.
        layer = cast(Any, made.get_submodule(name))
        layer.add_module(_INPUT, RoundedInput(low, high))
        layer.register_forward_pre_hook(_round_input)
        step = RoundedWeight(layer.weight, scheme.largest, per_channel=scheme.per_channel)
        parametrize.register_parametrization(layer, "weight", step)
    _balance(made, wanted, _rows(inputs, _RANGE_ROWS))
    return made


def taken_apart(trained: nn.Module, module: nn.Module) -> tuple[nn.Module, list[Learnt]]:
    """Split a network that was trained with rounding into a plain one, its weights on their grids, and these grids.

    Args:
        trained: a trained copy of what `rounded` gave.
        module: what it was made from.
    """
    made, learnt = copy.deepcopy(module).eval(), []
    for name, layer in trained.named_modules():
        given = getattr(layer, _INPUT, None)
        if given is None:
            continue
        rounding = layer.parametrizations.weight[0]
        weight = layer.weight.detach()
        plain = made.get_submodule(name)
        plain.weight = nn.Parameter(weight.clone())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().clone())
        step = rounding.log_step.detach().exp().numpy()
        grid = Grid(step, axis=0) if len(step) > 1 or len(weight) == 1 else Grid(step.reshape(()))
        zero_step = given.log_step.detach().exp().numpy().reshape(())
        learnt.append(Learnt(weight.numpy(), grid, Grid(zero_step, given.zero_point, unsigned=True)))
    rest = {name: value for name, value in trained.state_dict().items() if name in made.state_dict()}
    made.load_state_dict(rest | {name: value for name, value in made.state_dict().items() if name not in rest})
    return made, learnt


def grids_of(proto: onnx.ModelProto, learnt: list[Learnt]) -> dict[str, Grid]:
    """Name the tensors of an exported graph whose grids training has found.

    Weights are recognised by their values: exporters rename and transpose them.

    Args:
        proto: the float graph of the network that `taken_apart` gave, with `prepared` applied.
        learnt: the layers' grids.
    """
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found: dict[str, Grid] = {}
    for node in proto.graph.node:
        if node.op_type not in HEAVY or node.input[1] not in stored:
            continue
        weights = stored[node.input[1]]
        match = next((one for one in learnt if _is_same(weights, one.weight)), None)
        if match is None:
            continue
        axis = channel_axis(node, weights.ndim) if match.grid.axis >= 0 else -1
        found[node.input[1]] = Grid(match.grid.scale, axis=axis)
        found[node.input[0]] = match.input_grid
    return found


def _is_same(stored: np.ndarray, weight: np.ndarray) -> bool:
    return any(stored.shape == one.shape and np.array_equal(stored, one) for one in ((weight, weight.T) if weight.ndim == 2 else (weight,)))


def _closest_step(flat: Tensor, largest: int) -> Tensor:
    """Choose the step of each row that rounds its weights with the least squared error, unlike LSQ, whose start is one formula."""
    widest = flat.abs().amax(dim=1).clamp_min(1e-8) / largest
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in torch.linspace(1.0, 0.3, _STEPS_TRIED):
        step = widest * share
        error = ((flat / step[:, None]).round().clamp(-largest, largest) * step[:, None] - flat).square().sum(dim=1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def _balance(module: nn.Module, wanted: Mapping[str, Tensor], rows: tuple[Tensor, ...]) -> None:
    """Move biases so that each layer's mean answer is what it was without rounding: training then begins near the float network."""
    for name, mean in wanted.items():
        layer: Any = module.get_submodule(name)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias += mean - _mean_answers(module, [name], rows)[name]


def _mean_answers(module: nn.Module, names: Sequence[str], rows: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Average the answers of layers over rows and places, one value a channel, in the order in which they are called."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, _args: Any, output: Tensor) -> None:
            channel = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
            found[name] = output.mean(dim=[axis for axis in range(output.ndim) if axis != channel])

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        _answers(module, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _straight_through(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()


def _round_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(layer, _INPUT)(args[0]), *args[1:])


def _pairs(module: nn.Module, rows: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    """Find each batch normalisation whose input is just what a layer gave, by running some rows."""
    made_by: list[tuple[Tensor, str]] = []
    found: list[tuple[str, str]] = []

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(layer, _ROUNDED):
                made_by.append((output, name))
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                found.extend((giver, name) for given, giver in made_by if given is args[0])

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in module.named_modules() if not any(layer.children())]
    try:
        _answers(module, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _ranges(module: nn.Module, rows: tuple[Tensor, ...]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}

    def note(name: str) -> Any:
        def hook(_layer: nn.Module, args: Any) -> None:
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, float(args[0].min())), max(high, float(args[0].max()))

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in module.named_modules() if isinstance(layer, _ROUNDED)]
    try:
        _answers(module, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _answers(module: nn.Module, rows: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        answers: Tensor = module(*rows)
    return answers


def _rows(inputs: Mapping[str, np.ndarray], rows: int) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array[:rows]) for array in inputs.values())
