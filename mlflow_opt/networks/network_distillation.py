"""Teach a small network what a large one answers: softened answers, matched features, more rows, and narrower copies as students.

References: Hinton et al. 2015, "Distilling the knowledge in a neural network"; Romero et al. 2015, "FitNets: hints for thin deep
nets"; Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent" (the teacher answers the very rows
that the student sees).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlflow_opt.networks.losses import Arrays, Loss, Minibatch, answer, compare, shift_pictures
from mlflow_opt.networks.narrow_memory import is_recurrent, with_smaller_memory
from mlflow_opt.networks.network_learners import Judged
from mlflow_opt.networks.regularisers import calls_of

_PROJECTION, _SEEN = "mlflow_opt_projection", "mlflow_opt_seen"
_CHUNK = 512
# Fewer channels than this in a layer save next to nothing and cost quality.
_STEP = 4


@dataclass(frozen=True)
class Lesson:
    """Rows with the teacher's answers.

    Args:
        rows: inputs, and labels of those that have one (the others' are not looked at).
        answers: (n, classes) logits, or (n,) standardised values.
        labelled: which rows have a label.
    """

    rows: Arrays
    answers: np.ndarray
    labelled: np.ndarray


def lesson_of(rows: Arrays, teach: Callable[[Mapping[str, np.ndarray]], np.ndarray], unlabelled: Mapping[str, np.ndarray]) -> Lesson:
    """Ask the teacher about labelled rows, and about others if there are any.

    Args:
        rows: labelled.
        teach: answers inputs with logits or standardised values.
        unlabelled: inputs of the same names, or none.
    """
    inputs = {name: np.concatenate([array, unlabelled[name]]) for name, array in rows.inputs.items()} if unlabelled else dict(rows.inputs)
    count = len(next(iter(inputs.values()))) if inputs else 0
    missing = np.zeros(count - len(rows.targets), rows.targets.dtype)
    labelled = np.arange(count) < len(rows.targets)
    return Lesson(Arrays(inputs, np.concatenate([rows.targets, missing])), teach(inputs), labelled)


def multiplied(rows: Arrays, copies: int, seed: int) -> Arrays:
    """Add changed copies of rows that keep their label: pictures are moved about; of other rows there are none.

    Args:
        rows: labelled.
        copies: for each row.
        seed: of the changes.
    """
    if not copies or not all(is_picture(array) for array in rows.inputs.values()):
        return rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = {name: torch.from_numpy(array) for name, array in rows.inputs.items()}
        moved = [shift_pictures(tensors) for _ in range(copies)]
    inputs = {name: np.concatenate([array, *(one[name].numpy() for one in moved)]) for name, array in rows.inputs.items()}
    return Arrays(inputs, np.tile(rows.targets, 1 + copies))


def blended(rows: Arrays, copies: int, seed: int) -> dict[str, np.ndarray]:
    """Make unlabelled rows of pictures, numbers or series: each a blend of two rows; nothing for token ids.

    A teacher that answers blends shows its student the space between the rows, which no label can.

    Source: Zhang et al. 2018, "mixup", with the teacher's answer in place of the blended label, as in Beyer et al. 2022.
    """
    if not copies or not all(array.dtype.kind == "f" or is_picture(array) for array in rows.inputs.values()):
        return {}
    rng = np.random.default_rng(seed)
    count = copies * len(rows.targets)
    (one, other), share = rng.integers(0, len(rows.targets), (2, count)), rng.uniform(0, 0.5, count).astype(np.float32)

    def blend(array: np.ndarray) -> np.ndarray:
        part = share.reshape(-1, *[1] * (array.ndim - 1))
        mixed = (1 - part) * array[one] + part * array[other]
        return np.asarray(mixed if array.dtype.kind == "f" else np.rint(mixed), dtype=array.dtype)

    return {name: blend(array) for name, array in rows.inputs.items()}


def repeated(rows: Arrays, count: int) -> Arrays:
    """Repeat rows from the first on until there are so many: a student on labels alone then takes as many steps as a taught one."""
    index = np.arange(count) % len(rows.targets)
    return Arrays({name: array[index] for name, array in rows.inputs.items()}, rows.targets[index])


def is_picture(array: np.ndarray) -> bool:
    """Tell whether rows are pictures: bytes (height, width[, channels]), or fractions (channels, height, width)."""
    return (array.dtype == np.uint8 and array.ndim in (3, 4)) or (array.dtype.kind == "f" and array.ndim == 4)


def soft_loss(lesson: Lesson, temperature: float, mix: float) -> Loss:
    """Make the loss of learning from a teacher: softened answers, and a share of the labels.

    The softened part is multiplied by the square of the temperature, so that its gradients keep their size (Hinton 2015).

    Args:
        lesson: looked up by the rows' places.
        temperature: above 1 shows the student more of how alike the teacher finds the classes; a regression has none.
        mix: share of the labels, in [0, 1].

    Raises:
        ValueError: the temperature is not positive, or the mix is no share.
    """
    if not temperature > 0 or not 0 <= mix <= 1:
        raise ValueError(
            f"temperature must be above 0 and mix in [0, 1], got {temperature:g} and {mix:g}; 4 and 0.1 are usual for networks."
        )
    answers, labelled = torch.from_numpy(lesson.answers.astype(np.float32)), torch.from_numpy(lesson.labelled)

    def loss(module: nn.Module, batch: Minibatch) -> Tensor:
        scores, wanted = answer(module, batch.inputs), answers[batch.index].to(batch.targets.device)
        soft = _soft(scores, wanted, temperature)
        known = labelled[batch.index].to(batch.targets.device)
        if not mix or not known.any():
            return soft
        return (1 - mix) * soft + mix * compare(scores[known], batch.targets[known], 0.0)

    return loss


def matching_loss(loss: Loss, features: np.ndarray, weight: float = 1.0) -> Loss:
    """Add to a loss that the student's last features, projected, be the teacher's.

    Args:
        loss: of the answers.
        features: the teacher's, by the rows' places, (n, d); standardised here.
        weight: of this part.
    """
    spread = features.std(axis=0)
    wanted = torch.from_numpy(((features - features.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)).astype(np.float32))

    def joint(module: nn.Module, batch: Minibatch) -> Tensor:
        value = loss(module, batch)
        holder: Any = next(layer for layer in module.modules() if hasattr(layer, _PROJECTION))
        projected = getattr(holder, _PROJECTION)(getattr(holder, _SEEN))
        return value + weight * F.mse_loss(projected, wanted[batch.index].to(projected.device))

    return joint


def with_projection(student: nn.Module, inputs: Mapping[str, np.ndarray], width: int) -> nn.Module:
    """Copy a student with a linear map from its last features to as many as the teacher has; `taken_off` removes it.

    Raises:
        ValueError: the student does not end in a linear layer.
    """
    made = copy.deepcopy(student)
    # The type checker knows no widths on a Module.
    layer: Any = made.get_submodule(_last_linear(made, inputs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer.add_module(_PROJECTION, nn.Linear(layer.in_features, width))
    layer.register_forward_pre_hook(_see)
    return made


def features_of(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Give the input of a network's last linear layer for all rows, (n, d).

    Raises:
        ValueError: it does not end in a linear layer.
    """
    made = copy.deepcopy(module).eval()
    layer = made.get_submodule(_last_linear(made, inputs))
    layer.register_forward_pre_hook(_see)
    found = []
    rows = len(next(iter(inputs.values())))
    with torch.no_grad():
        for at in range(0, rows, _CHUNK):
            made(*(torch.from_numpy(array[at : at + _CHUNK]) for array in inputs.values()))
            found.append(getattr(layer, _SEEN).numpy().astype(np.float32))
    return np.concatenate(found)


def without_projection(trained: nn.Module, student: nn.Module) -> nn.Module:
    """Give the plain student the weights of its trained copy with a projection."""
    made = copy.deepcopy(student)
    made.load_state_dict({name: value for name, value in trained.state_dict().items() if _PROJECTION not in name})
    return made.eval()


def narrower(module: nn.Module, rows: Arrays, share: float) -> nn.Module:
    """Copy a network with a share of its channels, neurons and heads in every layer, the largest weights kept.

    Of a network with a memory the state is made smaller, with new weights.

    Args:
        module: the teacher; left unchanged.
        rows: some rows.
        share: of the widths, in (0, 1).

    Raises:
        ValueError: the share is none, or the network's code cannot be followed.
    """
    from mlflow_opt.pruning.channel_graph import couplings_of
    from mlflow_opt.pruning.channel_importance import importances
    from mlflow_opt.pruning.channel_pruning import without
    from mlflow_opt.pruning.channel_widths import even_widths, units_to_remove

    if not 0 < share < 1:
        raise ValueError(f"the student's share of the teacher's widths must lie in (0, 1), got {share:g}; 0.25 is usual.")
    if is_recurrent(module):
        return with_smaller_memory(module, rows.inputs, share)
    few = {name: array[:3] for name, array in rows.inputs.items()}
    couplings = couplings_of(module.eval(), few)
    ranked = importances(module, couplings, "magnitude", rows, lambda one: Judged(one, "logits"))
    removed = units_to_remove(couplings, even_widths(couplings, share, _STEP), ranked)
    return without(module, couplings, removed, rows.inputs)


def _soft(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    if wanted.ndim == 1:
        return F.mse_loss(scores.reshape(wanted.shape), wanted)
    targets = F.log_softmax(wanted / temperature, dim=1)
    return temperature**2 * F.kl_div(F.log_softmax(scores / temperature, dim=1), targets, reduction="batchmean", log_target=True)


def _last_linear(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> str:
    called = [one for one in calls_of(module, {name: array[:2] for name, array in inputs.items()}) if isinstance(one.layer, nn.Linear)]
    if not called or not called[-1].flat:
        raise ValueError("matching features needs networks that end in a linear layer over one vector a row; leave it out for others.")
    return called[-1].name


def _see(layer: nn.Module, args: tuple[Any, ...]) -> None:
    setattr(layer, _SEEN, args[0])
