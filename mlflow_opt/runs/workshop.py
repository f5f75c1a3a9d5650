"""What a recipe makes models with: rows to look at, a place for files, and the ways from a graph or an estimator to a variant."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_opt import data, measure, metrics
from mlflow_opt.data import Batch
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.models import Model
from mlflow_opt.networks import trainable
from mlflow_opt.runs.candidates import Candidate
from mlflow_opt.tables import learner_files
from mlflow_opt.tables.learners import Fitted


class Workshop:
    """The part of a session that makes models and writes nothing to MLflow."""

    def __init__(self, split: data.Split, folder: Path, threads: int, metric: str) -> None:
        """Work on a split.

        Args:
            split: train, calibration, selection and gate rows.
            folder: scratch folder, gone when the session ends.
            threads: of one prediction.
            metric: the user's own quality metric, `path.py:function`, `""` for none.
        """
        self.split, self.folder, self.threads = split, folder, threads
        self.task = split.task
        self.headline = metrics.QUALITY[self.task.kind][0]
        self.own = measure.own_metric(metric)
        self.baseline: Candidate

    @property
    def model(self) -> Model:
        """Return the model to optimise."""
        return self.baseline.model

    @property
    def example(self) -> Batch:
        """Return a few calibration rows, for tracing and schema checks."""
        return self.calibration(64)

    def calibration(self, rows: int) -> Batch:
        """Return at most so many calibration rows."""
        return data.take(self.split.calibration.rows, slice(0, rows))

    def scratch(self, name: str) -> Path:
        """Name a new folder for a model's files; it is gone when the session ends."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)) / "model"

    def refitted(self, name: str, fitted: Fitted) -> Model:
        """Save a table's newly trained estimator as a drop-in for the model to optimise, which later recipes can train again."""
        if not isinstance(self.example, pd.DataFrame):
            raise TypeError("an estimator is trained on a table, the data are arrays; train a network on them.")
        native = learner_files.save(fitted, self.example, self.scratch(name))
        graph = exporting.to_onnx(native, self.example, self.task)
        output = replace(graph.binding.output, threshold=fitted.threshold)
        made = self.dropin(name, replace(graph, binding=replace(graph.binding, output=output)))
        learner_files.carry(native, made.path)
        return replace(made)

    def retrained(self, name: str, module: Any) -> Model:
        """Save a newly trained torch module as a drop-in for the model to optimise, which later recipes can train again."""
        from mlflow_opt.export.from_torch import export_retrained

        made = self.dropin(name, export_retrained(module, self.model, self.example))
        trainable.keep(module, made.path)
        return replace(made)

    def dropin(self, name: str, graph: OnnxGraph, options: dropin.SessionOptions | None = None) -> Model:
        """Save a graph as a drop-in for the model to optimise, ready to be added as a variant."""
        return dropin.save_dropin(
            graph,
            self.model,
            self.scratch(name),
            session=options or dropin.SessionOptions(threads=self.threads),
            example=self.example,
        )

    def drop(self, model: Model) -> float:
        """Score a model on the selection rows and give its drop of the headline metric; for techniques that search."""
        scored = measure.quality(model, self.split.selection, self.task, self.own)
        return measure.drop(scored, self.baseline.scored, self.headline)
