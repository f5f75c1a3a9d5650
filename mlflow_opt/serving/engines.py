"""The fast path of a model: a request's JSON to arrays, one call of the runtime for many requests, an array of answers.

Two kinds of models have one: drop-in variants of this project (ONNX Runtime) and LightGBM on tables of numbers. Every
other model is served through MLflow's pyfunc.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_code import Feed, SessionOptions
from mlflow_opt.flavours import model_files
from mlflow_opt.serving.answers import Answers
from mlflow_opt.serving.exact_trees import ExactTrees, Inexact
from mlflow_opt.serving.feeding import Filler, filler
from mlflow_opt.serving.operators import uncertain_operators
from mlflow_opt.serving.staged_graphs import NoCut, StagedGraph
from mlflow_opt.serving.tables import Column, TableReader
from mlflow_opt.serving.tensors import Tensor, TensorReader

logger = logging.getLogger(__name__)

# From the rows of each request of a call to what stands for ONNX Runtime's session in it.
Sessions = Callable[[Sequence[int]], Any]
_KINDS = ("double", "float", "long", "integer", "string", "boolean")


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request asks: how many rows, and they, as lists of values or as named arrays."""

    rows: int
    data: Any


class Engine(Protocol):
    """A model that answers without pandas; `uncertain` names what may give a row other last bits beside other rows."""

    name: str
    uncertain: str

    def read(self, body: bytes) -> Chunk | None:
        """Read a request's JSON; None if only MLflow's own code can say what it means."""

    def run(self, chunks: Sequence[Chunk]) -> Answers:
        """Answer several requests by one call; rows first, in order."""


class Unsuitable(ValueError):  # noqa: N818 - it says why there is no fast path, which is no error of anybody
    """Why a model has no fast path."""


def open_engine(folder: Path, schema: Any, threads: int) -> Engine:
    """Open a model's fast path.

    Args:
        folder: the MLflow model folder.
        schema: MLflow's input schema, None if the model has none.
        threads: of one call.

    Raises:
        Unsuitable: the model has none; the message says why.

    """
    described = model_files.read_mlmodel(folder)
    if schema is None:
        raise Unsuitable("the model has no signature")
    if described.metadata:
        return _open_variant(folder, schema, threads)
    loader = described.flavours.get("python_function", {}).get("loader_module")
    if loader == "mlflow.lightgbm" and not schema.is_tensor_spec():
        return LightgbmEngine(folder, table_columns(schema), threads)
    raise Unsuitable(
        f"only drop-in variants and LightGBM on tables have one, this is a model of {loader}; `mlflow-opt compile` makes a variant"
    )


def table_columns(schema: Any) -> list[Column]:
    """Read the columns of a signature.

    Raises:
        Unsuitable: columns without names, or types that are no plain JSON value.

    """
    if not schema.has_input_names():
        raise Unsuitable("the signature's columns have no names")
    columns = []
    for spec in schema.inputs:
        kind: Any = getattr(spec.type, "name", str(spec.type))
        if kind not in _KINDS:
            raise Unsuitable(f"column {spec.name} is of type {kind}")
        columns.append(Column(spec.name, kind))
    return columns


def _open_variant(folder: Path, schema: Any, threads: int) -> Engine:
    try:
        said = dropin_code.read_spec(folder / "artifacts" / dropin_code.VARIANT_FILE)
    except (KeyError, TypeError) as error:
        # The folder carries the code of the version that wrote it; this version's code may know more, or less.
        raise Unsuitable(f"the variant was written by another version of mlflow-opt ({error!r})") from error
    options = SessionOptions(threads, said.session.graph_level, said.session.entries)
    graph = folder / "artifacts" / dropin_code.GRAPH_FILE
    uncertain = ", ".join(uncertain_operators(graph))
    if not schema.is_tensor_spec():
        staged = _staged(graph, said, options) if uncertain else None
        if staged is not None:
            return VariantTableEngine(staged.for_requests, said, table_columns(schema), "")
        whole = dropin_code.open_session(graph, options)
        return VariantTableEngine(lambda _: whole, said, table_columns(schema), uncertain)
    session = dropin_code.open_session(graph, options)
    tensors = [Tensor(spec.name or "", np.dtype(spec.type), tuple(spec.shape)) for spec in schema.inputs]
    if any(tensor.dtype.kind not in "fiub" or tensor.shape[:1] != (-1,) for tensor in tensors):
        raise Unsuitable("an input is not numeric or has a fixed number of rows")
    return VariantTensorEngine(session, said, tensors, uncertain)


def _staged(graph: Path, said: dropin_code.Spec, options: SessionOptions) -> StagedGraph | None:
    output = said.binding.output
    try:
        return StagedGraph(graph, options, [output.label if said.answer.kind == "labels" and output.label else output.name])
    except NoCut as why:
        logger.info("The graph stays whole, and requests are joined only where that is asked for: %s.", why)
        return None


class VariantTableEngine:
    """A drop-in variant whose signature is a table."""

    name = "onnxruntime"

    def __init__(self, sessions: Sessions, said: dropin_code.Spec, columns: list[Column], uncertain: str) -> None:
        """Prepare how the graph's inputs are filled.

        Args:
            sessions: from the rows of each request to the session that answers them.
            said: of the variant.
            columns: of the signature.
            uncertain: operators that make joined answers differ.

        Raises:
            Unsuitable: an input that is not a matrix of plain columns.

        """
        if said.answer.kind in ("tensor", "outputs"):
            raise Unsuitable("the model answers tables with tables")
        self._sessions, self._said, self._reader = sessions, said, TableReader(columns)
        self.uncertain = uncertain
        self._fillers = _fillers(said.binding.inputs, columns)

    def read(self, body: bytes) -> Chunk | None:
        """Read rows."""
        rows = self._reader.read_body(body)
        return Chunk(len(rows), rows) if rows else None

    def run(self, chunks: Sequence[Chunk]) -> Answers:
        """Run the graph once."""
        rows = _joined(chunks)
        feeds = {name: fill(rows) for name, fill in self._fillers.items()}
        return np.asarray(dropin_code.answer(self._sessions([chunk.rows for chunk in chunks]), self._said, feeds))


class VariantTensorEngine:
    """A drop-in variant whose signature is arrays."""

    name = "onnxruntime"

    def __init__(self, session: Any, said: dropin_code.Spec, tensors: list[Tensor], uncertain: str) -> None:
        """Prepare for a signature."""
        self._session, self._said, self._reader = session, said, TensorReader(tensors)
        self.uncertain = uncertain

    def read(self, body: bytes) -> Chunk | None:
        """Read arrays."""
        try:
            arrays = self._reader.read(orjson.loads(body))
        except orjson.JSONDecodeError:
            return None
        return Chunk(len(next(iter(arrays.values()))), arrays) if arrays else None

    def run(self, chunks: Sequence[Chunk]) -> Answers:
        """Run the graph once."""
        first: dict[str, np.ndarray] = chunks[0].data
        joined = first if len(chunks) == 1 else {name: np.concatenate([chunk.data[name] for chunk in chunks]) for name in first}
        made: Answers = dropin_code.answer(self._session, self._said, joined)
        return made


class LightgbmEngine:
    """A LightGBM booster, bare or under the scikit-learn API, on a table of numbers.

    With one thread its trees run in ONNX Runtime, where that gives the same bits; else LightGBM is asked.
    """

    # Each row's leaves are added up in the order of the trees, whatever the batch.
    uncertain = ""

    def __init__(self, folder: Path, columns: list[Column], threads: int) -> None:
        """Load the booster.

        Raises:
            Unsuitable: text or categories, an objective of the user's own, or another number of columns than the trees have.

        """
        import mlflow.lightgbm

        from mlflow_opt.flavours.single_row import SingleRow

        model = mlflow.lightgbm.load_model(str(folder))
        self._booster = getattr(model, "booster_", model)
        if self._booster.pandas_categorical or any(column.kind == "string" for column in columns):
            raise Unsuitable("LightGBM with text or category columns")
        if callable(getattr(model, "objective_", None)):
            raise Unsuitable("LightGBM with an objective of the user's own")
        if self._booster.num_feature() != len(columns):
            raise Unsuitable(f"the signature has {len(columns)} columns and the trees {self._booster.num_feature()}")
        self._classes = np.asarray(model.classes_) if hasattr(model, "classes_") else None
        self._reader, self._threads, self._quick = TableReader(columns), threads, SingleRow(self._booster, threads)
        self._trees = _exact_trees(self._booster) if threads == 1 else None
        self.name = "lightgbm, trees by onnxruntime" if self._trees else "lightgbm"
        matrix = Feed("matrix", "float64", tuple(column.name for column in columns))
        self._fill = _fillers([matrix], columns)["matrix"]

    def read(self, body: bytes) -> Chunk | None:
        """Read rows."""
        rows = self._reader.read_body(body)
        return Chunk(len(rows), rows) if rows else None

    def run(self, chunks: Sequence[Chunk]) -> Answers:
        """Ask the trees once."""
        raw = self._raw(self._fill(_joined(chunks)))
        if self._classes is None:
            return raw
        # As LGBMClassifier.predict does it, ties included: the first of the largest.
        scores = np.stack([1.0 - raw, raw], axis=1) if raw.ndim == 1 else raw
        return np.asarray(self._classes[scores.argmax(axis=1)])

    def _raw(self, rows: np.ndarray) -> np.ndarray:
        if self._trees is not None:
            return self._trees(rows)
        # For one row by LightGBM's quick way, whose answer is the same to the last bit.
        return self._quick(rows) if len(rows) == 1 else np.asarray(self._booster.predict(rows, num_threads=self._threads))


def _exact_trees(booster: Any) -> ExactTrees | None:
    try:
        return ExactTrees(booster)
    except Inexact as why:
        logger.info("LightGBM is asked itself, and its trees are not run by ONNX Runtime: %s.", why)
        return None


def _joined(chunks: Sequence[Chunk]) -> list[Any]:
    if len(chunks) == 1:
        return list(chunks[0].data)
    return [row for chunk in chunks for row in chunk.data]


def _fillers(feeds: Sequence[Feed], columns: Sequence[Column]) -> Mapping[str, Filler]:
    found: dict[str, Filler] = {}
    for feed in feeds:
        fill = filler(feed, columns)
        if fill is None:
            raise Unsuitable(f"the graph's input {feed.name} is filled in a way of its own")
        found[feed.name] = fill
    return found
