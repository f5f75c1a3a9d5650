"""How every variant of a pruned network is trained, measured and written down: all of them alike.

A pruned network is compared with two others that nobody prunes: the network exported unchanged (`runtime_only`), which tells
what the runtime gives, and the network trained on for as many epochs (`dense_finetuned`), which tells what training gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mlflow_opt.models import Model
from mlflow_opt.records import Param, Variant
from mlflow_opt.runs import candidates
from mlflow_opt.session import Session
from mlflow_opt.workbench.retraining import Course

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.networks.losses import Arrays, Loss
    from mlflow_opt.networks.training import Fitted, TrainSettings
    from mlflow_opt.pruning.channel_graph import Couplings
    from mlflow_opt.pruning.channel_importance import Importance

Method = Literal["structured", "unstructured", "all"]
RUNTIME, DENSE = "runtime_only", "dense_finetuned"
# Rows for importance and sensitivity: more tell little more.
_ROWS = 512
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    Args:
        method: remove channels, neurons and heads (`structured`), set single weights to zero in every way, or `all`: structured,
            and one network with zeros beside it.
        rates: share of the multiplications removed, and of the weights set to zero.
        allowed_drop: most that the headline metric may lose; once a rate loses more, larger ones are left out.
        importance: by which units are ranked.
        epochs: of fine-tuning each variant.
        steps: in which units are removed, with fine-tuning after each.
        speedup: wanted over the unpruned network in the same runtime; 0 reads it from the policy.
    """

    method: Method = "structured"
    rates: tuple[float, ...] = (0.5, 0.7)
    allowed_drop: float = 0.01
    importance: Importance = "taylor"
    epochs: int = 6
    steps: int = 2
    speedup: float = 0.0

    def __post_init__(self) -> None:
        bad = [rate for rate in self.rates if not 0 < rate < 1]
        if bad or not self.rates:
            raise ValueError(f"rates must lie in (0, 1), got {bad or 'none'}; 0.7 removes 70%, 1 would leave an empty layer.")
        if self.epochs < 1 or self.steps < 1:
            raise ValueError(f"epochs and steps must be at least 1, got {self.epochs} and {self.steps}; give 1 or more.")
        if self.speedup < 0:
            raise ValueError(f"speedup must not be negative, got {self.speedup:g}; 0 takes what the policy asks for.")


@dataclass(frozen=True)
class Trainer:
    """Trains every variant alike and adds it with the figures that all of them share."""

    course: Course
    wish: Wish

    @property
    def module(self) -> nn.Module:
        """Return the network to prune."""
        return self.course.learner.module

    @property
    def loss(self) -> Loss:
        """Return the loss of fine-tuning: pictures are moved about, as in the training of the default network."""
        from mlflow_opt.networks.losses import augmented, plain_loss, shift_pictures

        arrays = self.course.train.inputs.values()
        pictures = all(one.ndim == 4 or (one.ndim == 3 and one.dtype.name == "uint8") for one in arrays)
        return augmented(plain_loss(), shift_pictures) if pictures else plain_loss()

    def settings(self, epochs: int) -> TrainSettings:
        """Return how a variant is trained."""
        from mlflow_opt.networks.network_learners import usual_settings

        return usual_settings(len(self.course.train.targets), epochs, _LEARNING_RATE, self.course.work.seed)

    def fit(self, name: str, module: nn.Module, epochs: int) -> Fitted:
        """Fine-tune a copy of a module."""
        return self.course.fit(name, module, self.settings(epochs), self.loss)

    def add(self, name: str, module: nn.Module, params: Mapping[str, Param], spent: int = 0) -> float:
        """Fine-tune for the epochs that are left of the wish, and add the variant; returns its headline drop."""
        fitted = self.fit(named_by_size(name, module), module, max(1, self.wish.epochs - spent))
        return self.add_trained(name, fitted.module, params, known_of(fitted, spent))

    def add_trained(self, name: str, module: nn.Module, params: Mapping[str, Param], known: Mapping[str, float]) -> float:
        """Add a network that is trained already; returns its headline drop."""
        return self._add(name, self.course.work.retrained(name, module), params, {**known, **self._counts(module)})

    def add_unpruned(self) -> Model:
        """Add the network as it is, in the runtime, and give the variant."""
        none = {"epochs_run": 0.0, "best_epoch": 0.0, "train_seconds": 0.0}
        counts = self._counts(self.module)
        made = self.course.work.retrained(RUNTIME, self.module)
        self._add(RUNTIME, made, {"method": "none"}, {**none, **counts})
        return made

    def couplings(self, module: nn.Module) -> Couplings:
        """Find what can be removed from a network."""
        from mlflow_opt.pruning.channel_graph import couplings_of

        return couplings_of(module, {name: one[:3] for name, one in self.course.validation.inputs.items()})

    def importances(self, module: nn.Module, graph: Couplings) -> dict[int, float]:
        """Rank the units of a network on some train rows."""
        from mlflow_opt.pruning.channel_importance import importances

        return importances(module, graph, self.wish.importance, some(self.course.train), self.course.learner.judged)

    def _counts(self, module: nn.Module) -> dict[str, float]:
        from mlflow_opt.pruning.weight_sparsity import sparsity

        counted = {"sparsity": sparsity(module)}
        # Zeros ask for no graph: a network that cannot be followed can still have them.
        return counted if self.wish.method == "unstructured" else counted | {"macs": self.couplings(module).macs()}

    def _add(self, name: str, model: Model, params: Mapping[str, Param], known: Mapping[str, float]) -> float:
        from mlflow_opt.pruning.weight_sparsity import compressed_mb

        work = self.course.work
        drop = work.add(Variant(name, model, params))
        candidates.note(work.candidates[-1], {**known, "compressed_mb": compressed_mb(model.path), **under_stress(work, model)})
        return drop


def named_by_size(name: str, module: nn.Module) -> str:
    """Name a training so that a run that goes on does not take another one's checkpoint: measured widths may come out otherwise."""
    return f"{name}_{sum(one.numel() for one in module.parameters())}"


def known_of(fitted: Fitted, spent: int = 0) -> dict[str, float]:
    """Give what is known of a training, with the epochs that were spent before it."""
    return {"epochs_run": float(spent + len(fitted.history)), "best_epoch": float(spent + fitted.best), "train_seconds": fitted.seconds}


def some(rows: Arrays) -> Arrays:
    """Take the first few hundred rows."""
    return replace(rows, inputs={name: one[:_ROWS] for name, one in rows.inputs.items()}, targets=rows.targets[:_ROWS])


def under_stress(work: Session, model: Model) -> dict[str, float]:
    """Score a model on the selection rows under fixed noise and fixed damage."""
    from mlflow_opt.measurement.robustness import robustness

    return robustness(model, work.split.selection, work.task, work.headline, work.own)
