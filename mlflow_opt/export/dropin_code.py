"""The code of a drop-in variant: an ONNX file that answers exactly as the model it replaces.

This file is copied into every variant's folder, beside `model.onnx` and `variant.json`, so that the variant serves on a
machine that has only numpy, pandas, onnxruntime and mlflow. It must therefore never import mlflow_opt.

The same functions run when mlflow_opt measures a variant. MLflow is imported only when it loads this file as a model: its
import costs a second and a half, and a timing session starts many processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

GRAPH_FILE = "model.onnx"
VARIANT_FILE = "variant.json"
# ONNX strings have no missing value, so a missing one travels as this character, U+2400 "symbol for null".
MISSING = "\u2400"


@dataclass(frozen=True)
class Feed:
    """How one graph input is filled: from columns of a table, or from the array of that name.

    Args:
        name: the graph's input.
        dtype: numpy name of what the graph takes, `str` for strings.
        columns: columns of a table that make the (rows, columns) matrix; empty if the input is an array of any rank.
        categories: column -> its category values in code order; the matrix holds the code, NaN for a value not listed.
        key: what the array is called in a batch, where that is not the input's own name.
        known: column -> the texts it may hold, MISSING among them; any text where the column is not named.
    """

    name: str
    dtype: str
    columns: tuple[str, ...] = ()
    categories: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    key: str = ""
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """Which graph output holds the scores, and what they are.

    Args:
        name: its name.
        kind: `probabilities` (rows, classes); `positive`: probability of the later class, (rows,) or (rows, 1);
            `logits` (rows, classes); `margin`: of the later class, its sign decides; `values` of a regressor.
        label: output with the class labels themselves, `""` where the labels are the largest score.
        threshold: probability of the later of two classes from which it is the label.
    """

    name: str
    kind: Literal["probabilities", "positive", "logits", "margin", "values"]
    label: str = ""
    threshold: float = 0.5


@dataclass(frozen=True)
class Binding:
    """How a batch becomes a graph's inputs, and where its scores come out."""

    inputs: tuple[Feed, ...]
    output: Output


@dataclass(frozen=True)
class SessionOptions:
    """How ONNX Runtime runs a graph: threads of a call (0 = its default), graph optimisation level, session entries."""

    threads: int = 1
    graph_level: Literal["all", "extended", "basic", "disable"] = "all"
    entries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the replaced model's pyfunc answers.

    Args:
        kind: `labels`; `probabilities` (rows, classes); `positive` (rows,); `values` (rows,) or (rows, targets);
            `tensor`: the scores output as it is; `outputs`: every output by its name.
        dtype: numpy name of the answer, `""` as the graph gives it.
        classes: labels in score-column order.
        columns: of `values` that are a table, 0 for plain (rows,).
    """

    kind: Literal["labels", "probabilities", "positive", "values", "tensor", "outputs"]
    dtype: str = ""
    classes: tuple[Any, ...] = ()
    columns: int = 0


@dataclass(frozen=True)
class Spec:
    """What `variant.json` says."""

    binding: Binding
    answer: Answer
    session: SessionOptions


def read_spec(path: Path) -> Spec:
    """Read `variant.json`."""
    said = json.loads(path.read_text())
    feeds = tuple(Feed(**one | {"columns": tuple(one["columns"])}) for one in said["inputs"])
    form = Answer(**said["answer"] | {"classes": tuple(said["answer"]["classes"])})
    return Spec(Binding(feeds, Output(**said["output"])), form, SessionOptions(**said["session"]))


def open_session(graph: Path | bytes, options: SessionOptions) -> Any:
    """Open an ONNX Runtime session on the CPU."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    level = {"all": levels.ORT_ENABLE_ALL, "extended": levels.ORT_ENABLE_EXTENDED, "basic": levels.ORT_ENABLE_BASIC}
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = options.threads, 1
    made.graph_optimization_level = level.get(options.graph_level, levels.ORT_DISABLE_ALL)
    # Fatal errors only: converters guess output shapes, which it would comment on at every batch; other errors are raised.
    made.log_severity_level = 4
    for key, value in options.entries.items():
        made.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(graph if isinstance(graph, bytes) else str(graph), made, providers=["CPUExecutionProvider"])


def feed(batch: Any, inputs: tuple[Feed, ...]) -> dict[str, np.ndarray]:
    """Turn a table, a dictionary of arrays or one array into the graph's inputs; ValueError where it does not fit."""
    if isinstance(batch, pd.DataFrame):
        return {one.name: _from_table(batch, one) for one in inputs}
    if isinstance(batch, dict):
        return _from_arrays(batch, inputs)
    if len(inputs) == 1:
        return {inputs[0].name: _array(batch, inputs[0])}
    raise ValueError(f"a model with {len(inputs)} inputs takes a table or a dictionary of arrays, got one {type(batch).__name__}.")


def run(session: Any, names: list[str], feeds: dict[str, np.ndarray]) -> list[Any]:
    """Run a graph; an empty batch is answered without it, because ONNX Runtime's recurrent operators abort the process on one."""
    if len(next(iter(feeds.values()))):
        return list(session.run(names, feeds, _options()))
    kinds = {"tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(string)": object}
    wanted = [one for name in names for one in session.get_outputs() if one.name == name]
    return [np.empty([0, *(n if isinstance(n, int) else 0 for n in one.shape[1:])], kinds.get(one.type, np.float32)) for one in wanted]


@cache
def _options() -> Any:
    import onnxruntime

    # Made once for all calls: ONNX Runtime would make them at each, half a microsecond of a small model's five.
    return onnxruntime.RunOptions()


def scores(raw: np.ndarray, output: Output) -> np.ndarray:
    """Turn the scores output into (rows, classes) for a classifier or (rows,) for a regressor."""
    rows = len(raw)
    if output.kind == "values":
        return raw.reshape(rows) if raw.size == rows else raw
    if output.kind in ("positive", "margin"):
        later = raw.reshape(rows)
        return np.stack([1 - later if output.kind == "positive" else -later, later], axis=1)
    return raw


def probabilities(raw: np.ndarray, output: Output) -> np.ndarray:
    """Turn the scores output into probabilities (rows, classes), by softmax or the logistic function where it holds logits."""
    columns = scores(raw, output)
    if output.kind == "margin":
        later = 1 / (1 + np.exp(-columns[:, 1]))
        return np.stack([1 - later, later], axis=1)
    if output.kind == "logits":
        powers = np.exp(columns - columns.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return columns


def answer(session: Any, spec: Spec, batch: Any) -> Any:
    """Answer a batch as the pyfunc of the replaced model does: container, names, types and shape."""
    feeds = feed(batch, spec.binding.inputs)
    said, output = spec.answer, spec.binding.output
    if said.kind == "outputs":
        return _all_outputs(session, feeds, batch)
    if said.kind == "labels" and output.label:
        return np.asarray(run(session, [output.label], feeds)[0]).astype(said.dtype)
    raw = run(session, [output.name], feeds)[0]
    if said.kind == "labels":
        later = probabilities(raw, output)[:, 1] >= output.threshold if output.threshold != 0.5 else scores(raw, output).argmax(axis=1)
        return np.array(said.classes, dtype=said.dtype)[later.astype(np.int64)]
    if said.kind == "tensor":
        return pd.DataFrame(raw, index=batch.index) if isinstance(batch, pd.DataFrame) else raw
    chosen = scores(raw, output) if said.kind == "values" else probabilities(raw, output)
    chosen = chosen[:, 1] if said.kind == "positive" else chosen.reshape(-1, said.columns) if said.columns else chosen
    return chosen.astype(said.dtype) if said.dtype else chosen


def _from_table(table: pd.DataFrame, one: Feed) -> np.ndarray:
    if not one.columns:
        name = one.key or one.name
        return _array(np.array(table[name].tolist()), one) if name in table.columns else _numbers(table, one)
    missing = [column for column in one.columns if column not in table.columns]
    if missing:
        raise ValueError(f"the model needs the columns {', '.join(map(str, missing))}, got {', '.join(map(str, table.columns))}; add them.")
    if one.dtype == "str":
        return np.stack([_strings(table[column], one.known.get(column)) for column in one.columns], axis=1)
    if not one.categories:
        return _numbers(table[list(one.columns)], one)
    coded = {column: _codes(table[column], values) for column, values in one.categories.items()}
    return np.stack([coded[name] if name in coded else _numbers(table[name], one) for name in one.columns], axis=1).astype(_dtype(one))


def _numbers(values: Any, one: Feed) -> np.ndarray:
    dtype = _dtype(one)
    try:
        missing = {"na_value": np.nan} if np.issubdtype(dtype, np.floating) else {}
        return np.ascontiguousarray(values.to_numpy(dtype=dtype, **missing))
    except (TypeError, ValueError) as error:
        named = ", ".join(one.columns) or one.name
        raise ValueError(f"{named} must hold {one.dtype} numbers: {error}; give them the types of the signature.") from error


def _strings(values: pd.Series[Any], known: Sequence[str] | None) -> np.ndarray:
    plain = values.to_numpy(dtype=object)
    texts = [MISSING if gone else str(value) for value, gone in zip(plain, pd.isna(plain), strict=True)]
    if known is not None and (strange := set(texts).difference(known)):
        raise ValueError(f"{values.name} must hold one of {', '.join(known)}, got {', '.join(strange)} ({MISSING} is a missing value).")
    return np.array(texts, dtype=object)


def _codes(values: pd.Series[Any], categories: Sequence[Any]) -> np.ndarray:
    codes = np.asarray(pd.Index(categories).get_indexer(pd.Index(values.to_numpy(dtype=object))), dtype=float)
    return np.where(codes < 0, np.nan, codes)


def _from_arrays(batch: Mapping[str, Any], inputs: tuple[Feed, ...]) -> dict[str, np.ndarray]:
    if len(inputs) == 1 and len(batch) == 1:
        return {inputs[0].name: _array(next(iter(batch.values())), inputs[0])}
    for names in ([one.key or one.name for one in inputs], [one.name for one in inputs]):
        if all(name in batch for name in names):
            return {one.name: _array(batch[name], one) for one, name in zip(inputs, names, strict=True)}
    raise ValueError(f"the model needs the arrays {', '.join(one.key or one.name for one in inputs)}, got {', '.join(map(str, batch))}.")


def _array(values: Any, one: Feed) -> np.ndarray:
    given, dtype = np.asarray(values), _dtype(one)
    try:
        # Only objects are read value by value: nothing else may lose its fraction or its sign on the way.
        return np.ascontiguousarray(given.astype(dtype, casting="unsafe" if given.dtype == object else "same_kind", copy=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the input {one.key or one.name} must hold {one.dtype}: {error}; convert it.") from error


def _dtype(one: Feed) -> Any:
    return object if one.dtype == "str" else np.dtype(one.dtype)


def _all_outputs(session: Any, feeds: dict[str, np.ndarray], batch: Any) -> Any:
    names = [one.name for one in session.get_outputs()]
    values = dict(zip(names, run(session, names, feeds), strict=True))
    flat = isinstance(batch, pd.DataFrame)
    return pd.DataFrame.from_dict({name: np.asarray(value).reshape(-1) for name, value in values.items()}) if flat else values


def _offer() -> None:
    import mlflow
    from mlflow.pyfunc.model import PythonModel, PythonModelContext

    class DropIn(PythonModel):
        """The variant as MLflow calls it."""

        # MLflow would warn at every load that `predict` has no type hints; the signature already says what it takes.
        _skip_type_hint_validation = True

        def load_context(self, context: PythonModelContext) -> None:
            """Open the graph beside this file."""
            self.spec = read_spec(Path(context.artifacts["variant"]))
            self.session = open_session(Path(context.artifacts["graph"]), self.spec.session)

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            """Answer a batch."""
            del context, params
            return answer(self.session, self.spec, model_input)

        # MLflow would take the hints for the signature.
        predict.__annotations__.clear()

    mlflow.models.set_model(DropIn())


# MLflow executes this file under a name of its own; imported as part of the package it is plain functions.
if __name__ != "mlflow_opt.export.dropin_code":
    _offer()
