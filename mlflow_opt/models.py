"""A model of any flavour behind one small interface: load it, hand it rows, ask how large it is and what its files are.

`load` needs nothing but a name, and a `Model` nothing but its `path` to be loaded again in another process. The runtime
(scikit-learn, LightGBM, XGBoost, torch, ONNX Runtime) is imported when the model is first used, and only its own: a drop-in
variant runs without torch, scikit-learn or LightGBM being imported.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_opt.flavours import model_files
from mlflow_opt.flavours.model_files import Described, Source

logger = logging.getLogger(__name__)

# MLflow's name of a flavour -> ours, in the order in which they are looked for: a LightGBM model may carry sklearn's too.
FLAVOURS = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "sklearn": "sklearn",
    "pytorch": "torch",
    "onnx": "onnx",
    "python_function": "pyfunc",
}
_PICKLES = ("*.pkl", "*.pickle", "*.pth", "*.pt", "*.joblib", "*.cloudpickle")
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Model:
    """A model on this machine's disk, loaded when first asked for something.

    Args:
        path: MLflow model folder or `.onnx` file: everything needed to load it again in another process.
        flavour: `sklearn`, `lightgbm`, `xgboost`, `torch`, `onnx` (a drop-in variant is one) or `pyfunc`.
        uri: as it was named, `""` for a fresh one.
        model_id: of its logged model, `m-...`, or `""`.
        threads: of its runtime for one call; 0 leaves it to the runtime. torch has one setting for the whole process, which
            a timing worker sets itself (`torch.set_num_threads`): loading a torch model never changes it.
    """

    path: Path
    flavour: str
    uri: str = ""
    model_id: str = ""
    threads: int = 1

    @cached_property
    def signature(self) -> Any:
        """MLflow's ModelSignature, None if it has none."""
        said = model_files.read_mlmodel(self.path).signature if self.path.is_dir() else {}
        if not said:
            return None
        # MLflow's import costs more than a drop-in variant's loading, which needs no signature.
        from mlflow.models import ModelSignature

        return ModelSignature.from_dict(said)

    def prepare(self, batch: Any) -> Any:
        """Turn a batch into what the model's own call takes: columns are picked and ordered by the signature.

        Args:
            batch: a table, or a dictionary of arrays, rows first.

        Raises:
            ValueError: a column is missing or of another type than the signature says.
        """
        return self.runtime.prepare(batch)

    def call(self, prepared: Any) -> Any:
        """Run the model's own call: what is timed."""
        return self.runtime.call(prepared)

    def scores(self, raw: Any) -> np.ndarray:
        """Turn the answer into scores.

        Returns:
            (rows, classes) for a classifier, probabilities where the model gives them, else logits; (rows,) for a
            regressor, and for a network with one output, of which nobody but the task knows what it is.
        """
        return np.asarray(self.runtime.scores(raw))

    def predict(self, batch: Any) -> np.ndarray:
        """Answer a batch with scores."""
        return self.scores(self.call(self.prepare(batch)))

    @property
    def threshold(self) -> float:
        """Probability of the later class from which a binary classifier answers it: 0.5, or what it was given or tuned to."""
        return float(getattr(self.runtime, "threshold", 0.5))

    @property
    def native(self) -> Any:
        """Hand out the library's own object: estimator, booster, `torch.nn.Module`, ONNX Runtime session. Do not change it."""
        return self.runtime.native

    @property
    def binding(self) -> Any:
        """How the graph of an `onnx` model is fed and read."""
        if self.flavour != "onnx":
            raise ValueError(f"only an ONNX model has a binding, this one is {self.flavour}; export it with `exporting.to_onnx`.")
        return self.runtime.binding

    @property
    def is_variant(self) -> bool:
        """Tell whether this is a drop-in variant of ours."""
        return self.flavour == "onnx" and self.path.is_dir() and "onnx" not in model_files.read_mlmodel(self.path).flavours

    @property
    def size_mb(self) -> float:
        """Size of its files in megabytes (10^6 bytes)."""
        return model_files.size_bytes(self.path) / _MEGABYTE

    @property
    def parameters(self) -> int:
        """Count its learnt numbers: weights of a network, coefficients of a linear model, split thresholds and leaf values of trees."""
        from mlflow_opt.flavours.parameter_count import count_parameters

        return count_parameters(self)

    @cached_property
    def digest(self) -> str:
        """sha256 over its files, without what MLflow rewrites when it logs them."""
        return model_files.folder_digest(self.path)

    @cached_property
    def runtime(self) -> Any:
        """The loaded model with what its flavour knows about it (`mlflow_opt.flavours.flavours`); loaded when first asked for."""
        from mlflow_opt.flavours.flavours import open_runtime

        return open_runtime(self)

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def load(uri: str, threads: int = 0) -> Model:
    """Load a model by name, downloading its files once per process.

    A model whose files hold a pickle runs the code in it when it is loaded, which is said once; MLflow's skops and pt2
    formats, LightGBM's text and ONNX do not.

    Example:
        >>> load("nowhere/model")
        Traceback (most recent call last):
        ValueError: no such model folder or .onnx file: 'nowhere/model'; give an existing path, models:/NAME/VERSION or runs:/RUN/PATH.

    Args:
        uri: `models:/name@alias`, `models:/name/3`, `models:/m-...`, `runs:/id/path`, a local MLflow model folder or `.onnx`.
        threads: of the runtime for one call; 0 is what a drop-in variant was saved with, and 1 for every other model.

    Raises:
        ValueError: there is no such model, or it will not load.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 (what the model was saved with) or more, got {threads}.")
    source = model_files.locate(uri)
    if source.path.is_file():
        return _load_file(uri, source, threads)
    described = model_files.read_mlmodel(source.path)
    flavour = _flavour(described, uri)
    if described.metadata:
        threads = threads or int(described.metadata.get("threads", 1))
    else:
        _warn_of_pickle(source.path, uri)
        threads = threads or 1
    return Model(source.path, flavour, uri, source.model_id, threads)


def _load_file(uri: str, source: Source, threads: int) -> Model:
    if source.path.suffix != ".onnx":
        raise ValueError(f"a model file must end in .onnx, got '{uri}'; save other models as MLflow model folders.")
    return Model(source.path, "onnx", uri, "", threads or 1)


def _flavour(described: Described, uri: str) -> str:
    if described.metadata:
        return "onnx"
    for theirs, ours in FLAVOURS.items():
        if theirs in described.flavours:
            return ours
    raise ValueError(f"a model must have one of the flavours {', '.join(FLAVOURS)}, '{uri}' has {', '.join(described.flavours)}.")


def _warn_of_pickle(path: Path, uri: str) -> None:
    pickles = sorted(file.name for pattern in _PICKLES for file in path.rglob(pattern))
    if pickles and (str(path), uri) not in _warned:
        _warned.add((str(path), uri))
        logger.warning("Loading '%s' runs the code in its pickle %s: only load models from people you trust.", uri, ", ".join(pickles))


# One warning per model and process: a worker that loads the same model for each session would repeat it.
_warned: set[tuple[str, str]] = set()
