"""Read one value of a policy from loaded YAML, with an error that names the line, the key and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import yaml


class Lines(dict[str, Any]):
    """A mapping that remembers the line it started on and the line of each of its keys."""

    line: int = 0
    lines: dict[str, int]


class Loader(yaml.SafeLoader):
    """Safe YAML whose mappings know their lines and refuse a key written twice."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> Lines:
    made = Lines()
    made.line, made.lines = node.start_mark.line + 1, {}
    for key_node, value_node in node.value:
        key, line = str(loader.construct_object(key_node)), key_node.start_mark.line + 1
        if key in made:
            raise ValueError(f"line {line}: key '{key}' is written twice; keep one of them.")
        made[key], made.lines[key] = loader.construct_object(value_node, deep=True), line
    return made


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 takes 1e-5 for text, because it has no point.
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def at(mapping: dict[str, Any], key: str = "") -> str:
    """Say on which line a key stands, as the start of a message; empty where the mapping was not read from a file."""
    if not isinstance(mapping, Lines):
        return ""
    return f"line {mapping.lines.get(key, mapping.line)}: "


def known_keys(mapping: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse a key that means nothing: a typing mistake would leave a rule out."""
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}."
            raise ValueError(f"{at(mapping, key)}unknown key '{key}'; {hint}")


def number(loaded: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    """Read a number between two ends, neither included."""
    value = loaded.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{at(loaded, key)}{key} must be a number between {low:g} and {high:g}, got {value!r}; {default:g} is usual.")
    return float(value)


def choice(loaded: dict[str, Any], key: str, allowed: Sequence[str]) -> str:
    """Read one of several words; the first is the default."""
    # YAML reads a bare `off` as False; the policy means the word.
    value = "off" if loaded.get(key) is False and "off" in allowed else loaded.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(f"{at(loaded, key)}{key} must be one of {', '.join(allowed)}, got {value!r}.")
    return str(value)


def text(loaded: dict[str, Any], key: str) -> str:
    """Read text; empty where it is not given."""
    value = loaded.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{at(loaded, key)}{key} must be text, got {value!r}.")
    return value


def flag(loaded: dict[str, Any], key: str) -> bool:
    """Read true or false; false where it is not given."""
    value = loaded.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{at(loaded, key)}{key} must be true or false, got {value!r}.")
    return value


def guards(loaded: dict[str, Any]) -> tuple[str, ...]:
    """Read the guarded aliases."""
    value = loaded.get("guards", ["champion"])
    if not isinstance(value, list) or not value or not all(isinstance(alias, str) and alias for alias in value):
        raise ValueError(f"{at(loaded, 'guards')}guards must be a list of aliases such as [champion], got {value!r}.")
    return tuple(alias.lower() for alias in value)


def trusted(loaded: dict[str, Any], key: str, example: str) -> tuple[str, ...]:
    """Read what is trusted: a list that, once written, is not empty, because an empty one reads as both nothing and anything."""
    if key not in loaded:
        return ()
    value = loaded[key]
    listed = [str(one) for one in value] if isinstance(value, list) and not any(isinstance(one, bool | float) for one in value) else []
    if not listed or not all(one.strip() for one in listed):
        raise ValueError(f"{at(loaded, key)}{key} must be a list such as {example}, got {value!r}; leave the key out to trust any.")
    return tuple(dict.fromkeys(one.strip() for one in listed))


def waivers(loaded: dict[str, Any]) -> tuple[str, ...]:
    """Read who may waive a criterion: `false` nobody, `true` whoever may set a tag (`*`), or the users by name."""
    value = loaded.get("waivers", False)
    if isinstance(value, bool):
        return ("*",) if value else ()
    if not isinstance(value, list) or not all(isinstance(user, str) and user for user in value):
        raise ValueError(f"{at(loaded, 'waivers')}waivers must be false, true or a list of users such as [ann], got {value!r}.")
    return tuple(value)
