"""A network that can be trained: the user's own module, the data as it takes them, and its answers as logits.

Networks answer with logits, one logit, probabilities or values in the target's own units. Losses, temperature, mixup and
calibration speak of logits, and of values near 0 and 1, so that a thin module around the network translates during
training; what comes out of training is the network alone, of the user's own class.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mlflow_opt.data import Batch, Part, Split, n_rows, take
from mlflow_opt.flavours.model_files import TRAINABLE
from mlflow_opt.flavours.torch_modules import TorchRuntime, outside_vocabulary
from mlflow_opt.models import Model
from mlflow_opt.networks.regularisers import calls_of
from mlflow_opt.networks.trainable import load_trainable
from mlflow_opt.networks.training import Arrays, Epoch, Fitted, InterruptedTraining, Loss, TrainSettings, fit
from mlflow_opt.records import Task

Form = Literal["logits", "logit", "probabilities", "probability", "values"]
_TINY = 1e-7
_LOOKED_AT = 256
_CHUNK, _COMPARED = 512, 32


class Judged(nn.Module):
    """A network whose answers are (n, classes) logits, or (n,) standardised values.

    Args:
        network: what is trained.
        form: what it answers.
        scale: mean and spread of a regression's target.
    """

    def __init__(self, network: nn.Module, form: Form, scale: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.network, self.form, self.scale = network, form, scale

    def forward(self, *arrays: Tensor) -> Tensor:
        """Answer with logits or standardised values."""
        scores: Tensor = self.network(*arrays)
        if self.form == "values":
            return (scores.reshape(len(scores)) - self.scale[0]) / self.scale[1]
        if self.form == "logits":
            return scores
        single = scores.reshape(len(scores)) if self.form in ("logit", "probability") else scores
        if self.form == "logit":
            return torch.stack([torch.zeros_like(single), single], dim=1)
        chances = torch.stack([1 - single, single], dim=1) if self.form == "probability" else single
        return chances.clamp_min(_TINY).log()


@dataclass(frozen=True)
class NetworkLearner:
    """A module and how it is trained on a data set.

    Args:
        model: where it came from; its signature names the inputs.
        module: as it came, trained; never changed.
        runtime: turns rows into the module's inputs.
        task: what is predicted.
        form: what the module answers.
        scale: mean and spread of a regression's target among the train rows.
    """

    model: Model
    module: nn.Module
    runtime: TorchRuntime
    task: Task
    form: Form
    scale: tuple[float, float] = (0.0, 1.0)

    def inputs(self, rows: Batch) -> dict[str, np.ndarray]:
        """Give the arrays that the module takes, under the names of its arguments."""
        # Read-only memory, which pandas and memory maps give out, is not for torch.
        return {name: np.require(array, requirements=["C", "W"]) for name, array in self.runtime.arrays(rows).items()}

    def arrays(self, part: Part) -> Arrays:
        """Give a part's rows as the module takes them, with class numbers or standardised targets."""
        if self.task.classes:
            return Arrays(self.inputs(part.rows), np.searchsorted(np.array(self.task.classes), part.labels))
        return Arrays(self.inputs(part.rows), ((part.labels - self.scale[0]) / self.scale[1]).astype(np.float32))

    def scores(self, module: nn.Module, rows: Batch) -> np.ndarray:
        """Answer rows with a module in the learner's place, in the form of the model's own scores."""
        runtime = TorchRuntime(self.model, module.eval())
        chunks = [take(rows, slice(at, at + _CHUNK)) for at in range(0, n_rows(rows), _CHUNK)]
        return np.concatenate([runtime.scores(runtime.call(runtime.prepare(chunk))) for chunk in chunks])

    def judged(self, module: nn.Module) -> Judged:
        """Wrap a module that answers as the learner's own does."""
        return Judged(module, self.form, self.scale)

    def fresh(self, seed: int, rows: Arrays, module: nn.Module | None = None) -> nn.Module:
        """Copy a network, the learner's own if none is given, with new random weights that suit the target's units; see `fresh`."""
        made = fresh(self.module if module is None else module, seed)
        return _rescaled(made, self._last_layer(made, rows), self.scale, undo=False)

    def fit(
        self,
        module: nn.Module,
        parts: tuple[Arrays, Arrays],
        settings: TrainSettings,
        loss: Loss | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Fitted:
        """Train a copy of a module; see `training.fit`.

        Args:
            module: it must take and answer what the learner's own does.
            parts: rows to learn from, and rows that decide which epoch was best.
            settings: how.
            loss: of logits or standardised values; the usual one if not given.
            on_epoch: called after each epoch.

        Returns:
            The module alone, with the weights of its best epoch.

        Raises:
            ValueError: an input is out of the module's range, or the loss is not a number.
            InterruptedTraining: on Ctrl-C, with the best weights so far.
        """
        try:
            last = self._last_layer(module, parts[0])
            scale = (0.0, 1.0) if last else self.scale
            judged = Judged(_rescaled(module, last, self.scale, undo=True), self.form, scale)
            fitted = fit(judged, *parts, settings, loss, on_epoch)
        except InterruptedTraining as stop:
            raise InterruptedTraining(_alone(stop.so_far, last, self.scale)) from stop
        except (IndexError, RuntimeError) as error:
            raise ValueError(self._trouble(error, parts[0])) from error
        return _alone(fitted, last, self.scale)

    def _last_layer(self, module: nn.Module, rows: Arrays) -> str:
        """Name the linear layer whose answer is a regression's, "" if there is none that could be scaled."""
        few = {name: array[:_COMPARED] for name, array in rows.inputs.items()}
        calls = calls_of(module, few) if self.form == "values" else []
        last = calls[-1] if calls else None
        if last is None or not isinstance(last.layer, nn.Linear) or parametrize.is_parametrized(last.layer) or last.layer.bias is None:
            return ""
        given = tuple(torch.from_numpy(array) for array in few.values())
        with torch.no_grad():
            wanted = Judged(module, self.form, self.scale).eval()(*given)
            got = Judged(_rescaled(module, last.name, self.scale, undo=True), self.form).eval()(*given)
        return last.name if torch.allclose(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())) else ""

    def _trouble(self, error: Exception, rows: Arrays) -> str:
        if isinstance(error, IndexError) and (told := outside_vocabulary(self.module, rows.inputs)):
            return told
        shapes = ", ".join(f"{name} {array.shape}" for name, array in rows.inputs.items())
        return f"the network must take the data's arrays ({shapes}) in training: {error}; give arrays of the shapes that it was built for."


def learner_for(model: Model, split: Split, module: nn.Module | None = None) -> NetworkLearner:
    """Read from a model how its network is trained on a data set.

    Helps every recipe that trains: the architecture, the inputs and the form of the answer stay the user's own.

    Args:
        model: a torch model, or a variant that carries its network in `trainable/`.
        split: its calibration rows show what the network answers.
        module: another network to be trained in the model's place, a student for its teacher; None takes the model's own.

    Raises:
        ValueError: there is no network to train, or it answers in another form than the task asks for.
    """
    module = network_of(model) if module is None else module.eval()
    runtime = TorchRuntime(model, module)
    rows = take(split.calibration.rows, slice(0, _LOOKED_AT))
    with torch.inference_mode():
        scores = module(*(torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in runtime.arrays(rows).values()))
    form = _form(scores, n_rows(rows), split.task)
    if split.task.classes:
        return NetworkLearner(model, module, runtime, split.task, form)
    labels = split.train.labels
    return NetworkLearner(model, module, runtime, split.task, form, (float(labels.mean()), float(labels.std()) or 1.0))


def network_of(model: Model) -> nn.Module:
    """Find the network that can go on being trained; the caller gets a copy.

    Raises:
        ValueError: an ONNX graph alone, a torch program that is fixed, or no network at all.
    """
    name = model.uri or str(model.path)
    if model.flavour == "torch":
        module: nn.Module = model.native
        if type(module).__name__ == "GraphModule":
            raise ValueError(
                f"a network must be a module to be trained, '{name}' was saved as a torch.export program (pt2), whose behaviour is fixed; "
                "save it with mlflow.pytorch.log_model(..., serialization_format='pickle')."
            )
        return copy.deepcopy(module).requires_grad_(True)
    if (model.path / TRAINABLE / "network.json").is_file():
        found: nn.Module = load_trainable(model.path)
        return found
    raise ValueError(
        f"this recipe trains the network, and '{name}' ({model.flavour}) holds nothing to train on arrays; "
        "give the torch model that it was made from."
    )


def fresh(module: nn.Module, seed: int) -> nn.Module:
    """Copy a module with new random weights, as its layers draw them when they are made.

    Raises:
        ValueError: a layer has weights of its own and no way to draw them anew.
    """
    made = copy.deepcopy(module)
    # The caller's random numbers are left as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in made.named_modules():
            draw: Any = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if draw is not None:
                draw()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"a layer must have reset_parameters() to start afresh, {name or 'the network'} ({type(layer).__name__}) has weights "
                    "and none; write it, or pass start=given to go on from the weights that are there."
                )
    return made


def with_weights(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Copy a module and give it the weights, in evaluation mode."""
    made = copy.deepcopy(module)
    made.load_state_dict(weights)
    return made.eval()


def usual_settings(rows: int, epochs: int, learning_rate: float, seed: int) -> TrainSettings:
    """Give settings that train most small networks: AdamW, clipped, at least thirty steps an epoch.

    Args:
        rows: train rows.
        epochs: at most.
        learning_rate: the highest; 0 takes 0.002.
        seed: of every random choice.
    """
    # Fewer steps leave the statistics of batch normalisation unsettled.
    batch = max(16, min(128, rows // 30))
    return TrainSettings(
        epochs=epochs, batch_size=batch, learning_rate=learning_rate or 2e-3, weight_decay=0.01, clip_norm=1.0, patience=0, seed=seed
    )


def _alone(fitted: Fitted, last: str, scale: tuple[float, float]) -> Fitted:
    inner = fitted.module.network if isinstance(fitted.module, Judged) else fitted.module
    return dataclasses.replace(fitted, module=_rescaled(inner, last, scale, undo=False).eval())


def _rescaled(module: nn.Module, last: str, scale: tuple[float, float], *, undo: bool) -> nn.Module:
    """Copy a network whose last layer answers in the target's units, or undo that, so that steps of 0.001 suit any unit."""
    if not last:
        return module
    made = copy.deepcopy(module)
    # The type checker knows no weights on a Module.
    layer: Any = made.get_submodule(last)
    mean, spread = scale
    with torch.no_grad():
        if undo:
            layer.weight.div_(spread)
            layer.bias.sub_(mean).div_(spread)
        else:
            layer.weight.mul_(spread)
            layer.bias.mul_(spread).add_(mean)
    return made


def _form(scores: Any, rows: int, task: Task) -> Form:
    if not isinstance(scores, Tensor) or len(scores) != rows:
        raise ValueError(f"a network must answer with one tensor, a row each, got {type(scores).__name__}; wrap it in a module that does.")
    width = scores[0].numel()
    wanted = 1 if not task.classes else len(task.classes)
    if width not in {1, 2} if wanted == 2 else width != wanted:
        raise ValueError(f"the network must answer {wanted} numbers a row for this target, got {width}; give the data it was made for.")
    if not task.classes:
        return "values"
    is_share = bool(((scores >= 0) & (scores <= 1)).all())
    if width == 1:
        return "probability" if is_share else "logit"
    sums_to_one = is_share and bool(((scores.sum(dim=1) - 1).abs() < 1e-3).all())
    return "probabilities" if sums_to_one else "logits"
