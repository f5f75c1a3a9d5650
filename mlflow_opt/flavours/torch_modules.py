"""torch modules: which arrays they take, in which order and type."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.flavours.contracts import columns_of, tensors_of, to_matrix, to_table
from mlflow_opt.models import Model


class TorchRuntime:
    """A module in evaluation mode, called on one tensor or several under `torch.inference_mode`."""

    def __init__(self, model: Model, module: Any = None) -> None:
        import torch

        # A network in training stands in the model's place: what it takes is what the model's signature says.
        self.native = load_module(model) if module is None else module
        self._torch = torch
        self._signature = model.signature
        self._tensors = tensors_of(model.signature)
        self.inputs = input_names(self.native, self._tensors)
        # Signatures are often inferred from doubles, which a network of singles does not take.
        kinds = [one.dtype for one in self.native.parameters() if one.dtype.is_floating_point]
        self._floating = np.dtype(np.float64 if kinds and kinds[0] == torch.float64 else np.float32)

    def prepare(self, batch: Any) -> tuple[Any, ...]:
        """Give one tensor per argument of `forward`."""
        arrays = self.arrays(batch)
        # torch warns of memory that it may not write to, which pandas gives out and a memory map is.
        own = (np.require(array, requirements=["C", "W"]) for array in arrays.values())
        return tuple(self._torch.from_numpy(array) for array in own)

    def arrays(self, batch: Any) -> dict[str, np.ndarray]:
        """Give the arrays under the names of `forward`'s arguments, in the types that the module takes.

        The arguments' own names are matched first, then the signature's in its order; where neither fits, as many arrays as
        arguments are taken in their order. Fractions become the type of the module's weights; whole numbers the signature's
        type, or without one int64, save uint8 images.
        """
        if isinstance(batch, pd.DataFrame):
            batch = {"": to_matrix(to_table(batch, columns_of(self._signature, None), self._signature))}
        elif not isinstance(batch, Mapping):
            batch = {"": np.asarray(batch)}
        names = _match(list(batch), list(self._tensors), self.inputs)
        return {argument: self._cast(batch[name], argument, at) for at, (argument, name) in enumerate(zip(self.inputs, names, strict=True))}

    def key(self, argument: str, at: int) -> str:
        """Name the array of an argument as the signature does, `""` if it does not say."""
        signed = list(self._tensors)
        if argument in self._tensors or len(signed) != len(self.inputs):
            return ""
        return signed[at]

    def _cast(self, values: Any, argument: str, at: int) -> np.ndarray:
        array = np.asarray(values)
        if not np.issubdtype(array.dtype, np.number) and array.dtype != np.bool_:
            raise ValueError(f"the input {argument} must hold numbers, got {array.dtype}; encode them as in training.")
        signed = self._tensors.get(argument) or self._tensors.get(self.key(argument, at))
        if array.dtype.kind == "f" and signed is not None and signed.kind in "iu":
            raise ValueError(f"the input {argument} must hold {signed}, got {array.dtype}; convert it.")
        if signed is not None:
            return array.astype(self._floating if signed.kind == "f" else signed, copy=False)
        if array.dtype.kind == "f":
            return array.astype(self._floating, copy=False)
        return array if array.dtype in (np.uint8, np.bool_) else array.astype(np.int64)

    def call(self, prepared: tuple[Any, ...]) -> Any:
        """Run the module."""
        try:
            with self._torch.inference_mode():
                return self.native(*prepared)
        except IndexError as error:
            given = {name: tensor.numpy() for name, tensor in zip(self.inputs, prepared, strict=False)}
            if told := outside_vocabulary(self.native, given):
                raise ValueError(told) from error
            raise

    def scores(self, raw: Any) -> np.ndarray:
        """Give the logits (rows, classes), or (rows,) where there is one output."""
        if not isinstance(raw, self._torch.Tensor):
            raise ValueError(f"a network must answer with one tensor, got {type(raw).__name__}; wrap it in a module that picks the scores.")
        values = raw.numpy()
        return values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values


def outside_vocabulary(module: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Say which token ids a network has no embedding for, after an index was out of its range; "" where there are no ids.

    Args:
        module: the network.
        arrays: its inputs.
    """
    from torch import nn

    whole = {name: array for name, array in arrays.items() if array.dtype.kind in "iu" and array.dtype.itemsize > 1}
    if not whole:
        return ""
    ranges = ", ".join(f"{name} holds {array.min()} to {array.max()}" for name, array in whole.items())
    sizes = [layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)]
    known = f"has embeddings of {', '.join(map(str, sizes))} entries" if sizes else "has fewer entries"
    return f"token ids must lie within the network's vocabulary: {ranges}, and the network {known}; use its own tokenizer."


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
    for names in (arguments, signed):
        if len(names) == len(arguments) and all(name in given for name in names):
            return names
    if len(given) == len(arguments):
        return given
    raise ValueError(f"the model takes the arrays {', '.join(arguments)}, got {', '.join(given)}; name them alike.")
