"""How a network is built again, as JSON: its class and the arguments of its constructor, torch's own layers and modules within."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# torch's recurrent layers take their arguments as **kwargs.
RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_CONTAINERS = ("Sequential", "ModuleList")
# Said by the machine that builds it again.
_PLACES = ("device", "dtype")
_MOST_NUMBERS = 10_000


def drawn(module: Any, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Draw a module's blueprint.

    Args:
        module: a torch.nn.Module whose constructor's arguments are kept as attributes of the same names.
        arguments: of the constructor, where the module does not keep them.

    Raises:
        ValueError: an argument is not known.
    """
    kind = type(module)
    if is_torchs(kind) and kind.__name__ in _CONTAINERS:
        children = [[name, drawn(child)] for name, child in module.named_children()]
        return {"class": f"torch.nn.{kind.__name__}", "children": children}
    known = dict(arguments) if arguments is not None else _arguments(module)
    name = f"torch.nn.{kind.__name__}" if is_torchs(kind) else kind.__qualname__
    return {"class": name, "arguments": {key: _written(value) for key, value in known.items()}}


def built(said: Mapping[str, Any], find: Callable[[str], Any]) -> Any:
    """Build a module from its blueprint.

    Args:
        said: what `drawn` gave, or the class and arguments of an older file.
        find: gives a class by its name where it is not torch's own.
    """
    from torch import nn

    name = str(said["class"])
    kind = getattr(nn, name.removeprefix("torch.nn.")) if name.startswith("torch.nn.") else find(name)
    if "children" in said:
        made = kind()
        for key, child in said["children"]:
            made.add_module(key, built(child, find))
        return made
    return kind(**{key: _read(value, find) for key, value in said["arguments"].items()})


def is_torchs(kind: type) -> bool:
    """Tell whether a class is one of torch's own layers."""
    return kind.__module__.startswith("torch.nn.")


def _arguments(module: Any) -> dict[str, Any]:
    wanted = {one.name: one for one in inspect.signature(type(module)).parameters.values() if one.name not in _PLACES}
    named = [one for one in wanted.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if is_torchs(type(module)) and not named and hasattr(module, "hidden_size"):
        return {name: getattr(module, name) for name in RECURRENT}
    found = {one.name: _given(module, one.name) for one in named if hasattr(module, one.name)}
    plain = {name: value for name, value in found.items() if _is_plain(value)}
    missing = [one.name for one in named if one.name not in plain and one.default is one.empty]
    if missing:
        remedy = "keep them as attributes of the same names, or give them"
        raise ValueError(f"the arguments {', '.join(missing)} of {type(module).__name__} are not known; {remedy}.")
    return plain


def _given(module: Any, name: str) -> Any:
    value = getattr(module, name)
    # torch's layers keep under this name what they made of it.
    return value is not None if name == "bias" and is_torchs(type(module)) and not isinstance(value, bool) else value


def _is_plain(value: Any) -> bool:
    from torch import Tensor, nn

    if isinstance(value, (list, tuple)):
        return all(_is_plain(one) for one in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, Tensor):
        return value.numel() <= _MOST_NUMBERS
    return value is None or isinstance(value, (str, int, float, bool, nn.Module))


def _written(value: Any) -> Any:
    from torch import Tensor, nn

    if isinstance(value, nn.Module):
        return {"module": drawn(value)}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, dict):
        return {"dict": {key: _written(one) for key, one in value.items()}}
    return [_written(one) for one in value] if isinstance(value, (list, tuple)) else value


def _read(value: Any, find: Callable[[str], Any]) -> Any:
    import torch

    if isinstance(value, dict) and "dict" in value:
        return {key: _read(one, find) for key, one in value["dict"].items()}
    if isinstance(value, dict):
        return built(value["module"], find) if "module" in value else torch.tensor(value["tensor"])
    return [_read(one, find) for one in value] if isinstance(value, list) else value
