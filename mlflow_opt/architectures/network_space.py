"""Which networks a search may propose for some arrays: the built-in spaces, MobileNetV2 to compare with, a user's own.

Widths are multiples of 8, which is what runtimes compute at once. Sources of the ranges: Sandler et al. 2018 (inverted
residuals, expansion), Howard et al. 2019, "Searching for MobileNetV3" (kernels of 5), Tan et al. 2019, "MnasNet" (a choice a stage).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from mlflow_opt.architectures.searched_networks import SearchedCNN, SearchedEncoder, SearchedMLP, Stage, mobilenet_stages
from mlflow_opt.data import Split
from mlflow_opt.measurement.own_metrics import function_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Kind = Literal["picture", "numbers", "tokens", "series"]
# Pictures below this size lose too much if the first convolution halves them.
_SMALL, _HALVED_FROM = 64, 24
_STAGES = 3


@dataclass(frozen=True)
class Facts:
    """What a space must know about the data.

    Args:
        kind: of the array.
        shape: of one row.
        target: `{"outputs", "shift", "spread"}`.
        layout: of a picture, `""` otherwise.
        divisor: of pixels.
        vocabulary: token ids, 0 if there are none.
        mean, scale: of each number in the train rows, for numbers and series.
    """

    kind: Kind
    shape: tuple[int, ...]
    target: dict[str, Any]
    layout: str = ""
    divisor: float = 1.0
    vocabulary: int = 0
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        """Return the channels of a picture."""
        return {"hw": 1, "hwc": self.shape[-1], "chw": self.shape[0]}[self.layout]

    @property
    def scale_of_target(self) -> tuple[float, float]:
        """Return mean and spread of a regression's target, (0, 1) for a classifier."""
        return self.target["shift"], self.target["spread"]

    @property
    def side(self) -> int:
        """Return the smaller side of a picture."""
        return min(self.shape[1:] if self.layout == "chw" else self.shape[:2])


def facts_of(split: Split, single: bool = False) -> Facts:
    """Read what the space must know from the train rows.

    Args:
        split: of the data.
        single: whether a binary classifier answers one logit, as the model to replace does.

    Raises:
        ValueError: the data are a table, several arrays, or of a shape that no built-in network takes.
    """
    rows = split.train.rows
    if not isinstance(rows, dict) or len(rows) != 1:
        raise ValueError("nas builds networks for one array (pictures, numbers, token ids or series), got a table or several; give an npz.")
    array, labels = next(iter(rows.values())), split.train.labels
    target: dict[str, Any] = {"outputs": 1 if single else max(1, len(split.task.classes)), "shift": 0.0, "spread": 1.0}
    if not split.task.classes:
        target |= {"shift": float(labels.mean()), "spread": float(labels.std()) or 1.0}
    shape, flat = tuple(array.shape[1:]), array.reshape(-1, array.shape[-1])
    if array.dtype == np.uint8 and len(shape) in (2, 3):
        return Facts("picture", shape, target, "hw" if len(shape) == 2 else "hwc", 255.0)
    if array.dtype.kind == "f" and len(shape) == 3:
        return Facts("picture", shape, target, "chw")
    if array.dtype.kind in "iu" and len(shape) == 1:
        # Ids that only later rows have must have a place too; gate rows are not looked at.
        highest = max(
            int(next(iter(part.rows.values())).max())
            for part in (split.train, split.calibration, split.selection)
            if isinstance(part.rows, dict)
        )
        return Facts("tokens", shape, target, vocabulary=highest + 1)
    if array.dtype.kind == "f" and len(shape) in (1, 2):
        spread = flat.std(axis=0)
        scale = tuple(float(one) if one > 0 else 1.0 for one in spread)
        return Facts("numbers" if len(shape) == 1 else "series", shape, target, mean=tuple(map(float, flat.mean(axis=0))), scale=scale)
    raise ValueError(
        "nas knows pictures (uint8 (n, h, w[, c]) or float (n, c, h, w)), numbers (n, f), token ids (n, steps) and series (n, steps, f), "
        f"got {array.dtype} of shape (n, {', '.join(map(str, shape))}); give a space of your own (space=path.py:function)."
    )


def build(trial: BaseTrial, facts: Facts, space: str, seed: int) -> nn.Module:
    """Build the network that a trial proposes, with weights drawn by the seed.

    Args:
        trial: is asked for every choice.
        facts: of the data.
        space: `path.py:function` of the user's own, called with (trial, shape, outputs); `""` for the built-in one.
        seed: of the weights.

    Raises:
        ValueError: the user's function fails, or gives no module.
    """
    # The caller's random numbers are left as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _own(trial, facts, space) if space else _standardised(_BUILDERS[facts.kind](trial, facts), facts)


def anchors(ranges: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the smallest network of a space and the one in its middle: what a search tries first, so that its front starts wide.

    Example:
        >>> from optuna.distributions import CategoricalDistribution, IntDistribution
        >>> anchors({"width": IntDistribution(8, 48, step=8), "kernel": CategoricalDistribution((3, 5))})
        [{'width': 8, 'kernel': 3}, {'width': 24, 'kernel': 3}]

    Args:
        ranges: Optuna's distributions by name; of a choice the first is taken.
    """
    return [{name: _at(one, share) for name, one in ranges.items()} for share in (0.0, 0.5)]


def mobilenet(facts: Facts, seed: int, multiplier: float = 0.5) -> nn.Module:
    """Build MobileNetV2 for small pictures, half as wide as the paper's."""
    small = facts.side < _SMALL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = int(1280 * multiplier)
        return SearchedCNN(
            _picture(facts), facts.target, mobilenet_stages(multiplier, small), int(32 * multiplier), _stem_stride(facts), head
        )


def _at(distribution: Any, share: float) -> Any:
    """Read a value off a distribution at a share of its extent."""
    if hasattr(distribution, "choices"):
        return distribution.choices[0]
    low, high, step = distribution.low, distribution.high, distribution.step
    if step:
        return low + step * int(share * (high - low) / step)
    return low * (high / low) ** share if distribution.log else low + share * (high - low)


def _own(trial: BaseTrial, facts: Facts, space: str) -> nn.Module:
    function = function_of(space, "space", ("trial", "shape", "outputs"))
    try:
        made = function(trial, facts.shape, facts.target["outputs"])
    # A user's function raises whatever it likes; the search goes on and tells what it was.
    except Exception as error:
        raise ValueError(f"the space '{space}' must build a network, it raised {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"the space '{space}' must return a torch.nn.Module, got {type(made).__name__}.")
    return made


def _standardised(module: nn.Module, facts: Facts) -> nn.Module:
    if facts.mean and isinstance(module, (SearchedMLP, SearchedEncoder)):
        module.mean.copy_(torch.tensor(facts.mean))
        module.scale.copy_(torch.tensor(facts.scale))
    return module


def _picture(facts: Facts) -> dict[str, Any]:
    return {"channels": facts.channels, "layout": facts.layout, "divisor": facts.divisor}


def _stem_stride(facts: Facts) -> int:
    return 2 if facts.side >= _HALVED_FROM else 1


def _cnn(trial: BaseTrial, facts: Facts) -> nn.Module:
    stem = trial.suggest_int("stem", 8, 32, step=8)
    stages: list[Stage] = []
    for at in range(_STAGES):
        widest = 48 * 2**at
        stages.append(
            {
                "width": trial.suggest_int(f"width_{at}", 8 * 2**at, widest, step=8),
                "depth": trial.suggest_int(f"depth_{at}", 1, 3),
                "kernel": trial.suggest_categorical(f"kernel_{at}", (3, 5)),
                "expansion": trial.suggest_categorical(f"expansion_{at}", (0, 1, 2, 4)),
                "stride": 2 if at or facts.side >= _SMALL else 1,
                "skip": trial.suggest_categorical(f"skip_{at}", (True, False)),
            }
        )
    return SearchedCNN(_picture(facts), facts.target, stages, stem, _stem_stride(facts))


def _mlp(trial: BaseTrial, facts: Facts) -> nn.Module:
    depth = trial.suggest_int("depth", 1, 4)
    widths = [trial.suggest_int(f"width_{at}", 8, 256, step=8) for at in range(4)][:depth]
    activation = trial.suggest_categorical("activation", ("relu", "gelu", "silu", "tanh"))
    return SearchedMLP(facts.shape[0], facts.target, widths, str(activation), bool(trial.suggest_categorical("normalise", (True, False))))


def _encoder(trial: BaseTrial, facts: Facts) -> nn.Module:
    heads = trial.suggest_categorical("heads", (1, 2, 4, 8))
    size = trial.suggest_categorical("head_size", (8, 16, 32))
    depth = trial.suggest_int("depth", 1, 4)
    features = facts.shape[-1] if facts.kind == "series" else 0
    sequence = {"steps": facts.shape[0], "vocabulary": facts.vocabulary, "features": features}
    return SearchedEncoder(facts.target, sequence, int(heads) * int(size), int(heads), depth, trial.suggest_int("expansion", 1, 4))


_BUILDERS: dict[Kind, Callable[[Any, Facts], nn.Module]] = {"picture": _cnn, "numbers": _mlp, "tokens": _encoder, "series": _encoder}
