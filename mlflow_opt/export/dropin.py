"""Drop-in variants: an ONNX graph as an MLflow model that takes what the model it replaces takes and answers as that does."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.export import dropin_code
from mlflow_opt.export.dropin_answers import answer_of
from mlflow_opt.export.dropin_code import SessionOptions
from mlflow_opt.export.exporting import OnnxGraph, head, runtime_errors
from mlflow_opt.flavours import model_files
from mlflow_opt.flavours.model_files import stamp
from mlflow_opt.models import Model
from mlflow_opt.networks.trainable import load_trainable, save_trainable
from mlflow_opt.records import Param

__all__ = ["SessionOptions", "check_dropin", "load_trainable", "save_dropin", "save_trainable", "stamp"]

logger = logging.getLogger(__name__)

# All that a variant needs where it is served; exact, because a variant is measured with these.
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas")
_FORMAT = 1
_PROGRESS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_CHECKED_ROWS = 32
_UNKNOWN = "a value that nobody has seen"


def save_dropin(
    graph: OnnxGraph, baseline: Model, folder: Path, *, session: SessionOptions, example: Any, params: Mapping[str, Param] | None = None
) -> Model:
    """Save a graph as a variant that can stand where the baseline stands.

    The folder is an MLflow pyfunc model from code: `mlflow.pyfunc.load_model`, `mlflow models serve` and every deployment
    target take it. It holds no pickle, and serves with numpy, pandas, onnxruntime and mlflow alone. A classifier whose
    pyfunc answers labels still answers labels; of equal scores the first class wins, as in scikit-learn.

    Args:
        graph: what computes the scores.
        baseline: what it replaces: it gives the signature and the form of the answer.
        folder: must not exist, or be empty.
        session: threads, graph optimisations and session entries that the variant runs with wherever it is loaded.
        example: some rows of the data.
        params: of the technique that made it, for the record in MLmodel.

    Raises:
        ValueError: nobody knows what the baseline answers, or the folder is taken.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"a variant is saved in a new folder, '{folder}' holds files; give another one.")
    spec = dropin_code.Spec(graph.binding, answer_of(baseline, example), session)
    made = folder.parent / f".{folder.name}.parts"
    made.mkdir(parents=True, exist_ok=True)
    files = {"graph": made / dropin_code.GRAPH_FILE, "variant": made / dropin_code.VARIANT_FILE}
    try:
        files["graph"].write_bytes(graph.proto.SerializeToString())
        files["variant"].write_text(json.dumps(_written(spec), indent=1))
        _save(folder, files, baseline, _metadata(spec, baseline, params or {}))
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
        made.rmdir()
    return Model(folder.resolve(), "onnx", threads=session.threads)


def check_dropin(variant: Model, baseline: Model, rows: Any) -> None:
    """Check on real rows that a variant can stand where the baseline stands; how close its values are is measured elsewhere.

    Both are called through MLflow's pyfunc: with some rows, with one row, and with input that the baseline refuses. A
    baseline without a pyfunc (a bare `.onnx`, a network with several inputs) sets no form for the answer.

    Args:
        variant: a drop-in variant.
        baseline: what it is to replace.
        rows: real rows of the data.

    Raises:
        ValueError: it has another signature, refuses real rows, accepts what the baseline refuses, or answers in another form.
    """
    import mlflow.pyfunc

    if variant.signature != baseline.signature:
        raise ValueError(
            f"a drop-in variant has the baseline's signature, got {variant.signature} for {baseline.signature}; save it again."
        )
    mine = mlflow.pyfunc.load_model(str(variant.path))
    theirs = None if baseline.path.is_file() else mlflow.pyfunc.load_model(str(baseline.path))
    data = pyfunc_input(head(rows, _CHECKED_ROWS), baseline)
    if theirs is None or _refuses(theirs, data):
        # MLflow's schema check refuses pandas categories where the signature says text, and LightGBM's pyfunc refuses text.
        logger.info("The baseline has no pyfunc that takes these rows, so the answer's form is not compared.")
        _predict(mine, _uncategorised(data))
        return
    _same_form(_predict(mine, data), theirs.predict(data), "answer")
    one = pyfunc_input(head(rows, 1), baseline)
    _same_form(mine.predict(one), theirs.predict(one), "answer to one row")
    for what, bad in _bad_inputs(data, _ignored(variant, data)):
        if _refuses(theirs, bad) and not _refuses(mine, bad):
            raise ValueError(f"a drop-in variant must refuse what the baseline refuses, it accepts {what}; check its signature.")


def pyfunc_input(rows: Any, model: Model) -> Any:
    """Turn a batch into what a model's pyfunc takes: one nameless array instead of a dictionary of one."""
    if isinstance(rows, pd.DataFrame):
        return rows
    names = model.signature.inputs.input_names() if model.signature is not None and model.signature.inputs is not None else []
    return next(iter(rows.values())) if len(rows) == 1 and len(names) <= 1 and not any(name in rows for name in names) else dict(rows)


def _save(folder: Path, files: Mapping[str, Path], baseline: Model, metadata: dict[str, Any]) -> None:
    import mlflow.pyfunc

    with _quiet(), warnings.catch_warnings():
        # MLflow asks for an input example to read a signature from; the baseline's own is given.
        warnings.filterwarnings("ignore", message=".*An input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(dropin_code.__file__)),
            artifacts={name: str(file) for name, file in files.items()},
            signature=baseline.signature,
            # Given, because MLflow would otherwise load the model in a process of its own to see what it imports.
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            metadata={model_files.METADATA: metadata},
        )
    model_files.rewrite(folder, _forget_places)


def _forget_places(said: dict[str, Any]) -> dict[str, Any]:
    # MLflow notes where the files came from on this machine: that is nobody's business, and it would change the digest.
    pyfunc = said["flavors"]["python_function"]
    pyfunc["model_code_path"] = Path(pyfunc["model_code_path"]).name
    for one in pyfunc["artifacts"].values():
        one["uri"] = one["path"]
    return said


@contextmanager
def _quiet() -> Iterator[None]:
    # MLflow "downloads" the two local files with a progress bar each, and says that a model without a signature has none.
    loud = logging.getLogger("mlflow.pyfunc")
    level, shown = loud.level, os.environ.get(_PROGRESS)
    loud.setLevel(logging.ERROR)
    os.environ[_PROGRESS] = "false"
    try:
        yield
    finally:
        loud.setLevel(level)
        if shown is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = shown


def _metadata(spec: dropin_code.Spec, baseline: Model, params: Mapping[str, Param]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "threads": spec.session.threads,
        "graph_level": spec.session.graph_level,
        "classes": list(spec.answer.classes),
        "answers": spec.answer.kind,
        "replaces": {"flavour": baseline.flavour, "model_id": baseline.model_id, "digest": baseline.digest},
        "params": dict(params),
    }


def _written(spec: dropin_code.Spec) -> dict[str, Any]:
    return {
        "inputs": [asdict(one) for one in spec.binding.inputs],
        "output": asdict(spec.binding.output),
        "answer": asdict(spec.answer),
        "session": asdict(spec.session),
    }


def _ignored(variant: Model, data: Any) -> set[str]:
    """Name the columns that a variant's graph does not ask for: an unknown text there is nobody's trouble any more."""
    if not isinstance(data, pd.DataFrame) or variant.flavour != "onnx":
        return set()
    asked = {str(column) for one in variant.binding.inputs for column in one.columns}
    return {str(column) for column in data.columns} - asked if asked else set()


def _bad_inputs(data: Any, ignored: set[str]) -> list[tuple[str, Any]]:
    if isinstance(data, pd.DataFrame):
        first = data.columns[0]
        numbers = [column for column in data.columns if pd.api.types.is_numeric_dtype(data[column].dtype)]
        bad = [(f"a table without {first}", data.drop(columns=first))]
        bad += [(f"text in {column}", data.assign(**{str(column): "text"})) for column in numbers[:1]]
        texts = [column for column in data.columns if column not in numbers and str(column) not in ignored]
        return bad + [(f"an unknown value in {column}", data.assign(**{str(column): _UNKNOWN})) for column in texts]
    if isinstance(data, dict):
        return [("arrays of other names", {f"not_{name}": array for name, array in data.items()})]
    return [("text", np.full(np.shape(data), "text")), ("another shape", np.asarray(data)[..., :-1])]


def _same_form(given: Any, wanted: Any, what: str) -> None:
    mine, theirs = _form(given), _form(wanted)
    if mine != theirs:
        raise ValueError(f"a drop-in variant's {what} must have the form {theirs}, got {mine}; save it again from the baseline.")


def _form(answer: Any) -> Any:
    if isinstance(answer, pd.DataFrame):
        return "table", [(str(name), str(dtype)) for name, dtype in answer.dtypes.items()], len(answer), list(answer.index)
    if isinstance(answer, pd.Series):
        return "series", str(answer.dtype), len(answer)
    if isinstance(answer, dict):
        return "dictionary", {name: _form(value) for name, value in answer.items()}
    if isinstance(answer, np.ndarray):
        # The width of a text array is that of its longest value.
        return "array", "text" if answer.dtype.kind == "U" else str(answer.dtype), answer.shape
    return (type(answer).__name__, len(answer)) if isinstance(answer, (list, tuple)) else type(answer).__name__


def _predict(model: Any, data: Any) -> Any:
    try:
        return model.predict(data)
    except _refusals() as error:
        first = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise ValueError(
            f"a drop-in variant must take the baseline's rows, it refuses them: {first}; check the export's inputs."
        ) from error


def _uncategorised(data: Any) -> Any:
    if not isinstance(data, pd.DataFrame):
        return data
    typed = [column for column in data.columns if isinstance(data[column].dtype, pd.CategoricalDtype)]
    return data.astype(dict.fromkeys(typed, object))


def _refuses(model: Any, data: Any) -> bool:
    try:
        model.predict(data)
    except _refusals():
        return True
    return False


def _refusals() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException

    # What the libraries under a pyfunc raise on input that they cannot take.
    return (MlflowException, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, *runtime_errors())
