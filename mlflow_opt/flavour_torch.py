"""torch modules: which arrays they take, in which order and type."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.contracts import columns_of, tensors_of, to_matrix, to_table
from mlflow_opt.models import Model


class TorchRuntime:
    """A module in evaluation mode, called on one tensor or several under `torch.inference_mode`."""

    def __init__(self, model: Model) -> None:
        import torch

        self.native = load_module(model)
        self._torch = torch
        self._signature = model.signature
        self._tensors = tensors_of(model.signature)
        self.inputs = input_names(self.native, self._tensors)

    def prepare(self, batch: Any) -> tuple[Any, ...]:
        """Give one tensor per argument of `forward`."""
        arrays = self.arrays(batch)
        # torch warns of memory that it may not write to, which pandas gives out and a memory map is.
        own = (np.require(array, requirements=["C", "W"]) for array in arrays.values())
        return tuple(self._torch.from_numpy(array) for array in own)

    def arrays(self, batch: Any) -> dict[str, np.ndarray]:
        """Give the arrays under the names of `forward`'s arguments, cast to the types of the signature.

        A signature's names are matched first, then the arguments' own; where neither fits, as many arrays as arguments are
        taken in their order. Without a signature whole numbers become int64 except uint8 images, and others float32.
        """
        if isinstance(batch, pd.DataFrame):
            batch = {"": to_matrix(to_table(batch, columns_of(self._signature, None), self._signature))}
        elif not isinstance(batch, Mapping):
            batch = {"": np.asarray(batch)}
        names = _match(list(batch), list(self._tensors), self.inputs)
        dtypes = list(self._tensors.values()) if len(self._tensors) == len(names) else [None] * len(names)
        return {
            argument: _cast(np.asarray(batch[name]), dtype, argument)
            for argument, name, dtype in zip(self.inputs, names, dtypes, strict=False)
        }

    def call(self, prepared: tuple[Any, ...]) -> Any:
        """Run the module."""
        with self._torch.inference_mode():
            return self.native(*prepared)

    def scores(self, raw: Any) -> np.ndarray:
        """Give the logits (rows, classes), or (rows,) where there is one output."""
        if not isinstance(raw, self._torch.Tensor):
            raise ValueError(f"a network must answer with one tensor, got {type(raw).__name__}; wrap it in a module that picks the scores.")
        values = raw.numpy()
        return values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values


def load_module(model: Model) -> Any:
    """Load the module itself, in evaluation mode, on the CPU.

    Raises:
        ValueError: it is no module, or its class cannot be imported.
    """
    import mlflow.pytorch
    import torch

    pickled = any(model.path.rglob("*.pth"))
    # What is loaded is a whole module, not weights, so torch's `weights_only` cannot hold; `load` has warned of it.
    module = mlflow.pytorch.load_model(str(model.path), **({"map_location": "cpu", "weights_only": False} if pickled else {}))
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"a torch model must be a torch.nn.Module, got {type(module).__name__}; save the module itself.")
    if pickled:
        return module.eval()
    # A program of torch.export refuses `eval()`, because what it does was fixed when it was exported; only the flag is wrong.
    for one in module.modules():
        one.training = False
    return module


def input_names(module: Any, tensors: Mapping[str, Any]) -> list[str]:
    """Name the arguments that a module is called with: those of `forward` without a default, as many as the signature has tensors."""
    said = inspect.signature(module.forward).parameters.values()
    named = [one for one in said if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one.name for one in named if one.default is one.empty]
    wanted = max(len(tensors), len(needed))
    names = [one.name for one in named][:wanted]
    return names if len(names) == wanted else list(tensors)


def _match(given: list[str], signed: list[str], arguments: list[str]) -> list[str]:
    for names in (signed, arguments):
        if names and all(name in given for name in names):
            return names
    if len(given) == len(arguments):
        return given
    raise ValueError(f"the model takes the arrays {', '.join(arguments)}, got {', '.join(given)}; name them alike.")


def _cast(array: np.ndarray, dtype: Any, argument: str) -> np.ndarray:
    if dtype is None:
        if array.dtype == np.uint8 or array.dtype == np.bool_:
            return array
        dtype = np.dtype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
    if not np.issubdtype(array.dtype, np.number) and array.dtype != np.bool_:
        raise ValueError(f"the input {argument} must hold numbers of type {dtype}, got {array.dtype}; give it numbers.")
    return array.astype(dtype, copy=False)
