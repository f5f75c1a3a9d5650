"""A network that can go on being trained: its weights as safetensors beside the source of its class, without pickle."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_opt.model_files import TRAINABLE as FOLDER

if TYPE_CHECKING:
    from mlflow_opt.models import Model

logger = logging.getLogger(__name__)
_WEIGHTS, _SOURCE, _CLASS = "weights.safetensors", "network.py", "network.json"
# Attributes that say a layer's width, by the parameter and its axis that hold it.
_WIDTHS: dict[str, dict[str, tuple[str, int | None]]] = {
    "Linear": {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    "BatchNorm": {"num_features": ("weight", 0)},
    "LayerNorm": {"normalized_shape": ("weight", None)},
    "Embedding": {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
}


def save_trainable(module: Any, folder: Path, arguments: Mapping[str, Any] | None = None) -> Path:
    """Save a network so that training can go on: weights, the source file of its class, the arguments it is built with.

    Limits: the class lives in one file that imports only installed packages; its constructor's arguments are JSON values,
    either given here or kept by the module as attributes of the same names. Layers may be narrower than the constructor makes
    them (structured pruning); layers that were exchanged for others are refused.

    Args:
        module: a `torch.nn.Module`; it is not changed.
        folder: a variant's folder; `trainable/` is made inside it.
        arguments: of the class's constructor.

    Returns:
        The folder `trainable/`.

    Raises:
        ValueError: the class has no source, its arguments are not known, or the network cannot be built again from them.
    """
    from safetensors.torch import save_file

    kind = type(module)
    file = inspect.getsourcefile(kind)
    if file is None or "<locals>" in kind.__qualname__ or not Path(file).is_file():
        raise ValueError(f"a trainable network's class must lie in a file, {kind.__qualname__} does not; move it to a module of its own.")
    known = dict(arguments) if arguments is not None else _arguments(module)
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    # Shared weights are stored once for each name: safetensors refuses tensors that share memory.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}, str(target / _WEIGHTS))
    (target / _SOURCE).write_text(Path(file).read_text())
    (target / _CLASS).write_text(json.dumps({"class": kind.__qualname__, "arguments": known, "training": False}))
    try:
        load_trainable(folder)
    except (ImportError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"a trainable network must be built again from its class's file alone, {kind.__qualname__} is not ({error}); "
            "give it a class of its own in one file."
        ) from error
    return target


def carry(source: Model, folder: Path) -> bool:
    """Put the network behind a model beside a variant of it, if there is one that can go on being trained.

    Args:
        source: what the variant was made from: a torch model, or a variant that carries its network itself.
        folder: of the variant.

    Returns:
        Whether there is one; if not, the reason is logged.
    """
    if (source.path / FOLDER).is_dir():
        shutil.copytree(source.path / FOLDER, folder / FOLDER)
        return True
    if source.flavour != "torch":
        return False
    try:
        save_trainable(source.native, folder)
    except ValueError as why:
        logger.info("The variant cannot go on being trained: %s", why)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return False
    return True


def load_trainable(path: Path) -> Any:
    """Build a network again from what `save_trainable` wrote. This runs the source file in the folder.

    Args:
        path: a variant's folder, or its `trainable/`.

    Returns:
        The module in evaluation mode.

    Raises:
        ValueError: there is nothing trainable in the folder, or the weights do not fit the class.
    """
    from safetensors.torch import load_file

    folder = path if (path / _CLASS).is_file() else path / FOLDER
    if not (folder / _CLASS).is_file():
        raise ValueError(f"'{path}' holds an ONNX graph only, which cannot be trained on; give the network that it was made from.")
    said = json.loads((folder / _CLASS).read_text())
    weights = load_file(str(folder / _WEIGHTS))
    module = _class(folder / _SOURCE, said["class"])(**said["arguments"])
    _fit_widths(module, weights)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"the weights in '{folder}' do not fit {said['class']}({said['arguments']}): {first}; give its arguments."
        ) from error
    return module.eval()


def _arguments(module: Any) -> dict[str, Any]:
    wanted = [one for one in inspect.signature(type(module)).parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    found = {one.name: getattr(module, one.name) for one in wanted if hasattr(module, one.name)}
    plain = {name: value for name, value in found.items() if _is_json(value)}
    missing = [one.name for one in wanted if one.name not in plain and one.default is one.empty]
    if missing:
        remedy = "keep them as attributes of the same names, or give them"
        raise ValueError(f"the arguments {', '.join(missing)} of {type(module).__name__} are not known; {remedy}.")
    return plain


def _is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_json(one) for one in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _class(file: Path, name: str) -> Any:
    # Named by its place, so that networks of two variants do not share a module.
    unique = f"mlflow_opt_network_{abs(hash(str(file.resolve())))}"
    spec = importlib.util.spec_from_file_location(unique, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"'{file}' is no Python file; save the network again.")
    made = importlib.util.module_from_spec(spec)
    sys.modules[unique] = made
    spec.loader.exec_module(made)
    found: Any = made
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _fit_widths(module: Any, weights: Mapping[str, Any]) -> None:
    """Give every parameter the shape of its weights, and its layer the widths that follow."""
    import torch

    for prefix, layer in module.named_modules():
        own = {
            name: weights.get(f"{prefix}.{name}" if prefix else name)
            for name, _ in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        }
        changed = {name: new for name, new in own.items() if new is not None and new.shape != getattr(layer, name).shape}
        for name, new in changed.items():
            old = getattr(layer, name)
            value = torch.empty_like(new, dtype=old.dtype)
            setattr(layer, name, torch.nn.Parameter(value, old.requires_grad) if isinstance(old, torch.nn.Parameter) else value)
        if changed:
            _tell_widths(layer)


def _tell_widths(layer: Any) -> None:
    kind = type(layer).__name__
    if kind.startswith("Conv"):
        across, down = (1, 0) if "Transpose" in kind else (0, 1)
        depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
        layer.groups = layer.weight.shape[0] if depthwise else layer.groups
        layer.out_channels, layer.in_channels = layer.weight.shape[across], layer.weight.shape[down] * layer.groups
        return
    for family, widths in _WIDTHS.items():
        if kind.startswith(family):
            for attribute, (parameter, axis) in widths.items():
                shape = tuple(getattr(layer, parameter).shape)
                setattr(layer, attribute, shape if axis is None else shape[axis])
