"""An ensemble's members within a recipe's session: their graphs, their measured costs, and the drop-ins made of some of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mlflow_opt import measure, models
from mlflow_opt.data import Split
from mlflow_opt.ensembles import ensemble_selection, members, voting
from mlflow_opt.ensembles.ensemble_bench import Bench
from mlflow_opt.ensembles.members import Pool
from mlflow_opt.export import averaging, dropin, exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.graph_sharing import shared
from mlflow_opt.flavours.model_files import TRAINABLE
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from mlflow_opt.runs import proof
from mlflow_opt.runs.workshop import Workshop
from mlflow_opt.session import Trainer
from mlflow_opt.tables import held_out, learner_files

# Of more members than this, which are then all of one kind, a sample is timed and stands for the rest.
MOST_TIMED, SAMPLED = 12, 8
_TIMED_ROWS = 256


@dataclass(frozen=True)
class Workbench:
    """The members of the ensemble that a session works on.

    Args:
        work: the session.
        pool: its members.
        graphs: of the members that were needed so far, by place in the pool.
    """

    work: Workshop
    pool: Pool
    graphs: dict[int, OnnxGraph] = field(default_factory=dict)

    def graph(self, weights: Sequence[float]) -> OnnxGraph:
        """Build the graph of a weighted average and check it against the members' own answers.

        Raises:
            ValueError: a member has no ONNX form, or the graph answers something else.
        """
        kept = ensemble_selection.inside(weights)
        parts = [self._member(at) for at in kept]
        made = averaging.averaged(parts, [weights[at] for at in kept], self.work.model.threshold)
        rows = held_out.as_table(self.work.example)
        answers = np.stack([self.pool.members[at].scores(rows, self.work.task) for at in kept])
        shares = np.array([weights[at] for at in kept]) / sum(weights[at] for at in kept)
        doubt = exporting.compare(made, rows, np.tensordot(shares, answers, axes=1))
        if doubt:
            raise ValueError(f"an average must answer as its members do together, and this one does not: {doubt}; export them one by one.")
        return made

    def whole(self) -> OnnxGraph:
        """Build the graph of the whole ensemble, as fast as it gets without leaving anything out."""
        if self.pool.weights and len(self.pool.members) <= MOST_TIMED:
            made = self.graph(self.pool.weights)
            rows = self.work.example
            if not exporting.compare(made, rows, self.work.model.predict(rows)):
                return made
        return shared(exporting.to_onnx(self.work.model, self.work.example, self.work.task))

    def dropin(self, name: str, weights: Sequence[int]) -> Model:
        """Save a weighted average as a drop-in, which later recipes can train again where its members can."""
        made = self.work.dropin(name, self.graph(weights))
        fitted = self.pool.joined(weights, self.work.task)
        if fitted is not None:
            native = learner_files.save(fitted, held_out.as_table(self.work.example), self.work.scratch(f"{name}-trainable"))
            shutil.copytree(native.path, made.path / TRAINABLE)
        return replace(made)

    def bench(self, folds: int, whole: OnnxGraph) -> Bench:
        """Let the members answer rows that they were not trained on, and time each of them in the runtime that serves them.

        Args:
            folds: on which members are trained again; 0 uses the calibration rows.
            whole: the graph of the whole ensemble.
        """
        answers, labels = held_out.held_out(self.pool, self.work.split, folds)
        holds = ensemble_selection.holds_of(answers, labels)
        costs, fixed, latency = self._costs(whole)
        # What a stacking ensemble's last estimator does is not known on these rows: the best average stands for it.
        every = ensemble_selection.Budget(len(self.pool.members), costs)
        full = self.pool.weights or tuple(map(float, ensemble_selection.greedy(holds, every)))
        task = Task(self.work.task.kind, tuple(range(len(self.work.task.classes))))
        return Bench(task, holds, answers, labels, costs, fixed, latency, full)

    def _costs(self, whole: OnnxGraph) -> tuple[np.ndarray, float, float]:
        """Time members alone and together: what they cost together less than the sum is what a call costs by itself."""
        count = len(self.pool.members)
        sample = list(range(count)) if count <= MOST_TIMED else np.linspace(0, count - 1, SAMPLED).astype(int).tolist()
        together = averaging.averaged([self._member(at) for at in sample], [1.0] * len(sample))
        graphs = [*(shared(self._member(at)) for at in sample), together, whole]
        saved = [self.work.dropin(f"timed_{at}", graph) for at, graph in enumerate(graphs)]
        timings = measure.time_models(saved, self.work.calibration(_TIMED_ROWS), threads=self.work.threads)
        *alone, both, latency = [timings.latency(at).value for at in range(len(graphs))]
        fixed = float(np.clip((sum(alone) - both) / (len(sample) - 1), 0, min(alone)))
        beyond = np.array(alone) - fixed
        return (beyond if len(sample) == count else np.full(count, beyond.mean())), fixed, latency

    def _member(self, at: int) -> OnnxGraph:
        if at not in self.graphs:
            one = self.pool.members[at]
            try:
                self.graphs[at] = one.graph(held_out.as_table(self.work.example), self.work.task, self.work.scratch(one.name))
            except ValueError as error:
                raise ValueError(f"every member must have an ONNX form, {one.name} has none: {error}") from error
        return self.graphs[at]


def pool_for(work: Workshop, versions: str) -> Pool:
    """Find the members of a session's ensemble: of the model itself, or the versions that were named."""
    held_out.as_table(work.example)
    return members.pool_of_versions(named(versions), work.threads) if versions else members.pool_of(work.model)


def trainer(model: str, versions: str, threads: int) -> Trainer:
    """Choose what stands for the ensemble where no model is given: the average of the versions named, else seven models trained anew.

    Raises:
        ValueError: both a model and versions are given.
    """
    if model and versions:
        raise ValueError(f"model and members are two ways to name an ensemble, got model={model} and members={versions}; leave one out.")
    if not versions:
        return voting.train_voting

    def average(split: Split, folder: Path, seed: int) -> Path:
        # Nothing about an average of what is there already is random.
        del seed
        return average_of(named(versions), split, folder, threads)

    return average


def average_of(uris: Sequence[str], split: Split, folder: Path, threads: int) -> Path:
    """Make one drop-in that answers the plain average of several versions; the first one gives signature and form of the answer.

    Raises:
        ValueError: they take different columns, were made on another split, or answer other classes than the data's.
    """
    pool = members.pool_of_versions(uris, threads)
    example = held_out.table(split.calibration).head(64)
    loaded: list[Model] = [one.source for one in pool.members if isinstance(one.source, Model)]
    for one in loaded:
        proof.require_same_split(one, split)
    graphs = [one.graph(example, split.task, folder / one.name) for one in pool.members]
    made = averaging.averaged(graphs, pool.weights)
    saved = dropin.save_dropin(made, loaded[0], folder / "average", session=dropin.SessionOptions(threads=threads), example=example)
    return models.load(str(saved.path), threads).path


def named(versions: str) -> list[str]:
    """Read names that are separated by commas."""
    return [one.strip() for one in versions.split(",") if one.strip()]
