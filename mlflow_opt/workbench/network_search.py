"""A search over networks within a session: the study and its rival, and what is trained in full."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_opt.data import Split
from mlflow_opt.export import exporting
from mlflow_opt.records import Param, Variant
from mlflow_opt.rows.batches import take, text_digest
from mlflow_opt.runs import candidates
from mlflow_opt.search import searching, studies
from mlflow_opt.search.executors import Pool
from mlflow_opt.search.searching import Budget, Tried
from mlflow_opt.search.studies import Plan, Sampler
from mlflow_opt.session import Session
from mlflow_opt.workbench import curves
from mlflow_opt.workbench.retraining import Course
from mlflow_opt.workbench.search_findings import DIRECTIONS, RIVAL, RUNTIME, too_short
from mlflow_opt.workbench.trial_runs import TrialRuns, default_journal, plain

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.architectures.network_space import Facts
    from mlflow_opt.architectures.network_trials import Scoring
    from mlflow_opt.networks.checkpoints import Epoch
    from mlflow_opt.networks.losses import Arrays
    from mlflow_opt.networks.network_learners import Form
    from mlflow_opt.networks.training import Fitted

logger = logging.getLogger(__name__)

OBJECTIVES = ("score", "relative_latency")
# Of the train rows, for scoring trials: rows that choose must not teach.
_HELD_OUT = 0.2
_TIMED_ROWS = 64
# Of the MobileNetV2 that is trained where no model was given.
FIRST_EPOCHS = 12
# Draws weights to zero in the full training of what is to be pruned afterwards.
_L1 = 0.01


@dataclass(frozen=True)
class Hunt:
    """A search under way.

    Args:
        work: the session.
        facts: of the data.
        course: trains what is trained in full.
        scoring: evaluates trials.
        epochs: of a full training.
        ranges: of the space, by name.
        l1: draws weights to zero in full trainings, 0 does not.
        histories: of the full trainings.
    """

    work: Session
    facts: Facts
    course: Course
    scoring: Scoring
    epochs: int
    ranges: Mapping[str, Any]
    l1: float = 0.0
    histories: dict[str, tuple[Sequence[Epoch], int]] = field(default_factory=dict)

    def plan(self, sampler: Sampler, workers: int) -> Plan:
        """Describe a study; its name says what is searched and on which rows, so that the same command finds it again."""
        work, scoring = self.work, self.scoring
        said = [scoring.facts, scoring.rungs, scoring.space, work.split.digest, work.seed, sampler, work.model.digest]
        return Plan(
            name=f"nas-{text_digest(str(said))[:12]}-{sampler}",
            storage=studies.storage_of("", default_journal()),
            directions=DIRECTIONS,
            pruner="none",
            # With one seed the rival would begin with the very trials of the search.
            seed=work.seed + (sampler == "random"),
            steps=len(scoring.rungs),
            workers=workers,
            subject=text_digest(str(said)),
            sampler=sampler,
        )

    def search(self, plan: Plan, budget: Budget, crew: Pool) -> list[Tried]:
        """Run a study, every trial a child run, and give all its finished trials; an interruption keeps what is finished.

        Raises:
            ValueError: no trial completed.
        """
        from mlflow_opt.architectures.network_space import anchors

        if not crew.is_here:
            raise ValueError("a search over networks keeps weights and models in files of this machine; use workers of this machine.")
        runs = TrialRuns(self.work, plan, OBJECTIVES, budget.trials)
        study = studies.open_study(plan, plan.seed)
        studies.close_stale(plan, study)
        if plan.sampler != "random":
            studies.warm(plan, study, anchors(self.ranges), self.ranges)
        scoring = replace(self.scoring, folder=self.scoring.folder / plan.name)
        scoring.folder.mkdir(parents=True, exist_ok=True)
        try:
            for tried in searching.search(plan, scoring, budget, crew):
                runs.write(tried)
        except KeyboardInterrupt:
            logger.warning("Interrupted: going on with the trials so far. Ctrl-C again ends the recipe.")
            studies.close_stale(plan, study)
        every = runs.complete()
        if not any(one.state == "complete" for one in every):
            raise ValueError(f"at least one trial must complete, none of {len(every)} did: {every[-1].why if every else 'none ran'}")
        if plan.sampler != "random":
            runs.draw()
        self.work.findings += [*runs.told(every), *too_short(every, budget)]
        return every

    def train(self, name: str, module: nn.Module, params: Mapping[str, Param]) -> nn.Module:
        """Train a network in full, add it as a variant, and give it."""
        from mlflow_opt.architectures.network_trials import full_settings, loss_of, oriented

        settings = replace(full_settings(len(self.course.train.targets), self.epochs, self.work.seed), l1=self.l1)
        # Named by what it is: a search that goes on may find others first.
        key = f"{name}_{text_digest(str(sorted(params.items())))[:8]}"
        fitted = self.course.fit(key, oriented(module, train=True), settings, loss_of(self.facts))
        fitted = replace(fitted, module=oriented(fitted.module, train=False))
        self.add(name, fitted, {**params, "l1": self.l1})
        return fitted.module

    def add(self, name: str, fitted: Fitted, params: Mapping[str, Param]) -> None:
        """Add a trained network as a variant."""
        self.work.add(Variant(name, self.work.retrained(name, fitted.module), params))
        self.note(float(len(fitted.history)), fitted.seconds)
        self.histories[name] = (fitted.history, 0)

    def note(self, epochs: float, seconds: float) -> None:
        """Write what every variant has beside what is measured of it: its training, and its multiplications."""
        from mlflow_opt.architectures.multiplications import macs_of

        made = self.work.candidates[-1]
        known = {"epochs_run": epochs, "train_seconds": seconds, "macs": macs_of(made.model, self.work.example)}
        candidates.note(made, known)

    def told(self, tried: Tried) -> dict[str, Param]:
        """Say what a trial proposed and what the search saw of it."""
        return {"trial": tried.number, "search_score": tried.values[0], "search_latency": tried.values[1], **plain(tried.params)}

    def build(self, tried: Tried) -> nn.Module:
        """Build what a trial proposed, with fresh weights."""
        from optuna.trial import FixedTrial

        from mlflow_opt.architectures.network_space import build

        return build(FixedTrial(dict(tried.params)), self.facts, self.scoring.space, self.work.seed)


@contextmanager
def start(work: Session, space: str, epochs: int, search_epochs: int, *, prunable: bool = False) -> Iterator[Hunt]:
    """Open a search in a session, with the unchanged model in the runtime as the first variant and the one to beat.

    Args:
        work: the session.
        space: the user's own, or `""`.
        epochs: of a full training.
        search_epochs: of a whole trial.
        prunable: draw weights to zero in full trainings, so that what is found loses less by pruning.

    Raises:
        ValueError: the data or the model do not fit.
    """
    import optuna

    from mlflow_opt.architectures.network_space import facts_of
    from mlflow_opt.architectures.network_trials import Scoring, rungs_of
    from mlflow_opt.flavours.torch_modules import TorchRuntime
    from mlflow_opt.networks.network_learners import NetworkLearner

    single = work.task.kind == "binary" and work.model.predict(work.example).ndim == 1
    facts = facts_of(work.split, single)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    blank, ranges = _blank(facts, space, work.seed)
    runtime = work.dropin(RUNTIME, exporting.to_onnx(work.model, work.example, work.task))
    work.add(Variant(RUNTIME, runtime, {"method": "none"}))
    form: Form = "logit" if single else "logits" if work.task.classes else "values"
    learner = NetworkLearner(work.model, blank, TorchRuntime(work.model, blank), work.task, form, facts.scale_of_target)
    train, validation = learner.arrays(work.split.train), learner.arrays(work.split.calibration)
    folder = _folder(work, space, epochs, prunable)
    held = round(len(train.targets) * (1 - _HELD_OUT))
    parts = (_cut(train, slice(0, held)), _cut(train, slice(held, None)))
    timed = take(work.split.calibration.rows, slice(0, _TIMED_ROWS))
    if not isinstance(timed, dict):
        raise TypeError("a search over networks needs arrays, the data are a table.")
    scoring = Scoring(facts, space, *parts, form, rungs_of(search_epochs), runtime.path, timed, folder, work.seed, work.threads)
    hunt = Hunt(work, facts, Course(work, learner, train, validation, folder), scoring, epochs, ranges, _L1 * prunable)
    hunt.note(0.0, 0.0)
    yield hunt
    curves.publish(work.parent.run_id, hunt.histories)
    shutil.rmtree(folder, ignore_errors=True)


def train_first(split: Split, folder: Path, seed: int) -> Path:
    """Train what a search starts from where no model was given: MobileNetV2 for pictures, else the default network of the data.

    Args:
        split: of the data.
        folder: where to save it.
        seed: of weights and order of rows.
    """
    from mlflow_opt import baselines
    from mlflow_opt.architectures.network_space import facts_of, mobilenet
    from mlflow_opt.architectures.network_trials import full_settings, loss_of, oriented
    from mlflow_opt.networks.losses import Arrays
    from mlflow_opt.networks.training import fit

    facts = facts_of(split)
    if facts.kind != "picture" or not split.task.classes:
        return baselines.train_baseline(split, folder, seed)
    classes = np.array(split.task.classes)
    train, validation = (
        Arrays({str(name): np.asarray(array) for name, array in part.rows.items()}, np.searchsorted(classes, part.labels))
        for part in (split.train, split.calibration)
    )
    settings = full_settings(len(train.targets), FIRST_EPOCHS, seed)
    network = fit(oriented(mobilenet(facts, seed), train=True), train, validation, settings, loss_of(facts)).module
    return baselines.save_network(oriented(network, train=False), next(iter(train.inputs.values())), folder)


def add_rival(hunt: Hunt) -> None:
    """Train MobileNetV2 as long as what was found, and add it; not for other data than pictures, nor where it is what was given."""
    from mlflow_opt.architectures.network_space import mobilenet

    if hunt.facts.kind != "picture":
        return
    network = mobilenet(hunt.facts, hunt.work.seed)
    if sum(one.numel() for one in network.parameters()) == hunt.work.model.parameters:
        hunt.work.findings.append(f"The model that was given is {RIVAL} itself: it is not trained again.")
        return
    hunt.train(RIVAL, network, {"method": "MobileNetV2, half width"})


def add_pruned(hunt: Hunt, module: nn.Module, rate: float = 0.5) -> None:
    """Remove a share of a found network's multiplications, fine-tune it for half of a full training, and add it."""
    from mlflow_opt.pruning.weight_sparsity import sparsity
    from mlflow_opt.workbench.pruning_variants import Trainer, Wish
    from mlflow_opt.workbench.structured_pruning import pruned

    name = f"searched_pruned_{round(100 * rate)}"
    learner = replace(hunt.course.learner, module=module)
    trainer = Trainer(replace(hunt.course, learner=learner), Wish(rates=(rate,), epochs=max(1, hunt.epochs // 2)))
    fitted, share = pruned(trainer, name, 1 - rate)
    hunt.add(name, fitted, {"method": "searched, then pruned", "share_of_macs": share})
    zeros = f"it was trained with an L1 term, because it was to be pruned: {sparsity(module):.0%} of its weights were zero before"
    hunt.work.findings.append(f"{name}: {share:.0%} of the multiplications are left; {zeros}.")


def _blank(facts: Facts, space: str, seed: int) -> tuple[nn.Module, Mapping[str, Any]]:
    """Build some network of the space, which says at once if the space cannot be, and give it with the ranges that were asked."""
    import optuna

    from mlflow_opt.architectures.network_space import build

    study, refused = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)), ValueError()
    # A space may refuse some of its own proposals: these are failed trials, no reason to end the search.
    for _ in range(searching.HOPELESS):
        trial = study.ask()
        try:
            return build(trial, facts, space, seed), trial.distributions
        except ValueError as error:
            refused = error
    raise refused


def _cut(rows: Arrays, part: slice) -> Arrays:
    return replace(rows, inputs={name: one[part] for name, one in rows.inputs.items()}, targets=rows.targets[part])


def _folder(work: Session, space: str, epochs: int, prunable: bool) -> Path:
    """Name and make the folder of trained weights and checkpoints, the same for the same command."""
    said = [work.recipe, space, epochs, prunable, work.split.digest, work.model.digest, work.seed]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow_opt" / "searches"
    folder = root / text_digest(str(said))[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
