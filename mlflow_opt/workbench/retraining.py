"""Train variants of a network within a session: checkpoints that survive a kill, progress, curves, best weights on Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_opt.models import Model
from mlflow_opt.records import Param, Variant
from mlflow_opt.runs import candidates
from mlflow_opt.runs.progress import Progress
from mlflow_opt.session import Session
from mlflow_opt.workbench import curves

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.networks.network_learners import NetworkLearner
    from mlflow_opt.networks.training import Arrays, Fitted, Loss, TrainSettings

logger = logging.getLogger(__name__)

# Parameters that change nothing about a training.
_ELSEWHERE = ("register_as", "policy", "budget_s", "time_budget_s", "strict", "threads", "metric", "model", "data")
_KEPT_DAYS = 7


@dataclass(frozen=True)
class Course:
    """The trainings of one run of a recipe.

    Args:
        work: the session.
        learner: the user's network.
        train: rows to learn from.
        validation: calibration rows, which decide when to stop and which epoch was best.
        folder: of the checkpoints.
    """

    work: Session
    learner: NetworkLearner
    train: Arrays
    validation: Arrays
    folder: Path

    def fit(self, name: str, module: nn.Module, settings: TrainSettings, loss: Loss | None = None) -> Fitted:
        """Train a copy of a module; what a killed run of the same recipe, model, data and parameters had done is not done again.

        On Ctrl-C the best weights so far become a variant, `NAME_interrupted`, before the run ends.
        """
        from mlflow_opt.networks.training import InterruptedTraining

        progress = Progress(f"{self.work.recipe}, training {name}", settings.epochs)

        def tell(epoch: Any) -> None:
            if not progress.done:
                # Epochs of an earlier run are no work that is left.
                progress.total -= epoch.number - 1
            progress.step(f"epoch {epoch.number}: loss {epoch.loss:.4f}, score {epoch.score:.4f}")

        kept = replace(settings, checkpoint=str(self.folder / f"{name}.ckpt"))
        try:
            return self.learner.fit(module, (self.train, self.validation), kept, loss, tell)
        except InterruptedTraining as stop:
            self.add(f"{name}_interrupted", stop.so_far, {"interrupted": True})
            logger.warning("Interrupted: the best weights of %s so far (epoch %d) are kept as a variant.", name, stop.so_far.best)
            raise

    def add(self, name: str, fitted: Fitted, params: Mapping[str, Param], figures: Mapping[str, float] | None = None) -> float:
        """Add a trained network as a variant with its curve; returns its headline drop.

        Args:
            name: of the variant.
            fitted: the training.
            params: what made it.
            figures: more values to show on it.
        """
        return self.add_model(name, self.work.retrained(name, fitted.module), fitted, params, figures)

    def add_model(
        self, name: str, model: Model, fitted: Fitted, params: Mapping[str, Param], figures: Mapping[str, float] | None = None
    ) -> float:
        """Add a variant that holds a trained network already; see `add`."""
        drop = self.work.add(Variant(name, model, params))
        known = {"epochs_run": float(len(fitted.history)), "best_epoch": float(fitted.best), "train_seconds": fitted.seconds}
        candidates.note(self.work.candidates[-1], {**known, **(figures or {})})
        curves.log(self.work.candidates[-1].run_id, fitted.history)
        return drop


@contextmanager
def start(work: Session, module: nn.Module | None = None) -> Iterator[Course]:
    """Open the trainings of a recipe's run on arrays.

    Checkpoints lie in `$XDG_CACHE_HOME/mlflow_opt` (`~/.cache/mlflow_opt`) under a name made of recipe, weights, data and
    parameters, and go when the run comes to its end.

    Args:
        work: the session.
        module: another network to train in the model's place, such as a student; None takes the model's own.

    Raises:
        ValueError: the data are a table, the model holds no network to train, or the network cannot be exported.
    """
    if isinstance(work.example, pd.DataFrame):
        raise ValueError("a network is trained on arrays, the data are a table; give an npz, or a folder of them.")
    from mlflow_opt.export.from_torch import export_retrained
    from mlflow_opt.networks.network_learners import learner_for

    learner = learner_for(work.model, work.split, module)
    # Whether it has a graph is told now, not after hours of training.
    export_retrained(learner.module, work.model, work.example)
    folder = checkpoint_folder(work, learner)
    if any(folder.glob("*.ckpt")):
        logger.info("An earlier run of the same was interrupted: going on from its checkpoints in %s.", folder)
    yield Course(work, learner, learner.arrays(work.split.train), learner.arrays(work.split.calibration), folder)
    shutil.rmtree(folder, ignore_errors=True)


def checkpoint_folder(work: Session, learner: NetworkLearner) -> Path:
    """Name and make the folder of a run's checkpoints; forgotten ones of last week go."""
    weights = hashlib.sha256()
    for name, tensor in learner.module.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    said = {name: value for name, value in work.params.items() if name not in _ELSEWHERE}
    text = json.dumps([work.recipe, weights.hexdigest(), work.split.digest, said], sort_keys=True, default=str)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow_opt" / "checkpoints"
    for old in root.glob("*"):
        if time.time() - old.stat().st_mtime > _KEPT_DAYS * 86400:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
