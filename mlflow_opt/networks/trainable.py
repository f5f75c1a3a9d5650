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

from mlflow_opt.flavours.model_files import TRAINABLE as FOLDER
from mlflow_opt.networks import blueprints
from mlflow_opt.networks.widths import fit_widths, numbers_changed, set_numbers

if TYPE_CHECKING:
    from mlflow_opt.models import Model

logger = logging.getLogger(__name__)
_WEIGHTS, _SOURCE, _CLASS = "weights.safetensors", "network.py", "network.json"
# A file that is always there.
_NO_SOURCE = __file__


def save_trainable(module: Any, folder: Path, arguments: Mapping[str, Any] | None = None) -> Path:
    """Save a network so that training can go on: weights, the source file of its class, the arguments it is built with.

    Limits: the class lives in one file that imports only installed packages, or is torch's own (`Sequential`); its
    constructor's arguments are JSON values, tensors or modules of the same file or of torch, either given here or kept by the
    module as attributes of the same names. Layers may be narrower than the constructor makes
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
    # torch's own containers need no source, and what they hold must not need one either.
    file = _NO_SOURCE if blueprints.is_torchs(kind) else inspect.getsourcefile(kind)
    if file is None or "<locals>" in kind.__qualname__ or not Path(file).is_file():
        raise ValueError(f"a trainable network's class must lie in a file, {kind.__qualname__} does not; move it to a module of its own.")
    said = blueprints.drawn(module, arguments)
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    # Shared weights are stored once for each name: safetensors refuses tensors that share memory.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}, str(target / _WEIGHTS))
    (target / _SOURCE).write_text("" if blueprints.is_torchs(kind) else Path(file).read_text())
    (target / _CLASS).write_text(json.dumps({**said, "training": False}))
    try:
        # A pruned network's code may know its sizes by attributes that its constructor set otherwise (a number of heads).
        numbers = numbers_changed(module, load_trainable(folder))
        (target / _CLASS).write_text(json.dumps({**said, "training": False, "numbers": numbers}))
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
    return source.flavour == "torch" and keep(source.native, folder)


def keep(module: Any, folder: Path) -> bool:
    """Put a network beside the variant that was exported from it, where that can be done.

    Returns:
        Whether it could; if not, the reason is logged.
    """
    try:
        save_trainable(module, folder)
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
    module = blueprints.built(said, lambda name: _class(folder / _SOURCE, name))
    fit_widths(module, weights)
    set_numbers(module, said.get("numbers", {}))
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"the weights in '{folder}' do not fit {said['class']}({said.get('arguments', '')}): {first}; give its arguments."
        ) from error
    return module.eval()


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
