"""Which policy guards which registered model: the server's file, the built-in default, and what a model adds for itself.

The file named by MLFLOW_OPT_POLICY maps patterns of registered-model names to policies, first match wins:

    churn:                      # one name
      validation_criteria: [{metric: speedup, min: 1.2}, {metric: f1, max_drop: 0.01}]
    "fraud-*":                  # a pattern; without validation_criteria the default criteria of the task apply
      mode: dry_run
    "scratch-*": {mode: off}    # the only way not to be guarded
    "credit-*":
      trusted_keys: [ci.pub]    # evidence must be signed; base64, or a file beside this one
      verify_files: true
      waivers: [ann]            # who may waive a criterion; nobody unless it is said

It is read anew for every decision, so that a change needs no restart and a damaged file is noticed at once.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.policy import default_policy, load_yaml, parse_policy, policy_from, tighten, with_criteria
from mlflow_opt.records import Policy
from mlflow_opt.verdicts import signing

VARIABLE = "MLFLOW_OPT_POLICY"
TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Cover:
    """The policy that guards one registered model, for each kind of task; `default` says that its criteria depend on the task."""

    by_task: Mapping[str, Policy]
    default: bool
    origin: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_task", MappingProxyType(dict(self.by_task)))

    @property
    def any(self) -> Policy:
        """Return one of the policies: guards, mode and promote are the same for every task."""
        return next(iter(self.by_task.values()))

    @property
    def guards(self) -> frozenset[str]:
        """Return the guarded aliases in folded spelling."""
        return frozenset(folded(alias) for alias in self.any.guards)

    @property
    def lead(self) -> str:
        """Return the alias that production reads, which `previous` follows: champion, or the first guarded one."""
        return "champion" if "champion" in self.guards else folded(self.any.guards[0])

    @property
    def mode(self) -> Literal["enforce", "dry_run", "off"]:
        """Return the mode."""
        return self.any.mode

    def policy(self, task: str) -> Policy:
        """Return the policy for a task.

        Raises:
            ValueError: the evidence names a task that does not exist.

        """
        if task not in self.by_task:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got '{task}'; measure again with `mlflow-opt gate`.")
        return self.by_task[task]


def cover_of(name: str, own: str = "") -> Cover:
    """Find what guards a registered model.

    Args:
        name: the registered model's name as the registry stores it.
        own: text of the policy kept with the model (its tag `mlflow_opt.policy`), which can only add to the server's.

    Raises:
        ValueError: the server's file or the model's own policy cannot be read; the caller must deny.

    """
    path = os.environ.get(VARIABLE, "")
    cover = _with_keys(_in_file(_read(path), name), path) if path else default_cover()
    if not own:
        return cover
    extra = parse_own(own, f"policy kept with model '{name}'")
    return Cover(
        {task: tighten(policy, extra) for task, policy in cover.by_task.items()}, cover.default, f"{cover.origin}, and the model's own"
    )


@functools.lru_cache(maxsize=1)
def default_cover() -> Cover:
    """Return what guards every model where the server names no file, and every model that its file does not match."""
    return Cover({task: default_policy(task) for task in TASKS}, default=True, origin="the built-in default")


@functools.lru_cache(maxsize=64)
def parse_own(text: str, origin: str) -> Policy:
    """Parse a policy that a client wrote: its trusted keys are keys.

    Raises:
        ValueError: it breaks a rule.

    """
    policy = parse_policy(text, origin)
    for key in policy.trusted_keys:
        # Not the name of a file: the server does not open what a client names.
        signing.key_id(key)
    return policy


def describe_server() -> str:
    """Say in one sentence what the gate does, for the log at start; an unreadable file is told, not raised."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return f"{VARIABLE} is not set, so the built-in default policy guards 'champion' of every model (mode enforce)"
    try:
        covers = _read(path)
    except ValueError as error:
        return f"EVERY GUARDED OPERATION IS DENIED, because the policy file cannot be used: {error}"
    listed = ", ".join(f"{pattern} ({_state(cover, path)})" for pattern, cover in covers)
    return f"policies from {path}: {listed}; any other model: the built-in default (enforce)"


def _state(cover: Cover, path: str) -> str:
    try:
        _with_keys(cover, path)
    except ValueError as error:
        return f"EVERY GUARDED OPERATION IS DENIED: {error}"
    return cover.mode


def _read(path: str) -> tuple[tuple[str, Cover], ...]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{VARIABLE} must name a readable file, got '{path}' ({error}); the server's owner must repair it.") from None
    return _parse(text, path)


@functools.lru_cache(maxsize=8)
def _parse(text: str, path: str) -> tuple[tuple[str, Cover], ...]:
    try:
        loaded = load_yaml(text)
        if not isinstance(loaded, dict) or not loaded:
            raise ValueError("the file must map name patterns to policies, such as `churn: {validation_criteria: [...]}`.")
        return tuple((str(pattern), _cover(str(pattern), entry)) for pattern, entry in loaded.items())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _cover(pattern: str, entry: Any) -> Cover:
    if not isinstance(entry, dict):
        raise ValueError(f"'{pattern}' must map to a policy, got {entry!r}; write `{pattern}: {{mode: off}}` to leave models unguarded.")
    origin = f"the server's file, '{pattern}'"
    if "validation_criteria" in entry:
        return Cover(dict.fromkeys(TASKS, policy_from(entry)), default=False, origin=origin)
    return Cover({task: _settings_on_default(entry, task) for task in TASKS}, default=True, origin=origin)


def _settings_on_default(entry: dict[str, Any], task: str) -> Policy:
    # A copy keeps the line numbers of the file's mapping, which a new dictionary would lose.
    filled = copy.copy(entry)
    filled["validation_criteria"] = [{"metric": "speedup", "min": 1.0}]
    return with_criteria(policy_from(filled), default_policy(task).criteria)


def _with_keys(cover: Cover, path: str) -> Cover:
    """Read the trusted keys that are files, beside the policy file unless their path is absolute; anew for every decision."""
    if not cover.any.trusted_keys:
        return cover
    try:
        keys = tuple(signing.public_key(key, Path(path).parent) for key in cover.any.trusted_keys)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Cover({task: replace(policy, trusted_keys=keys) for task, policy in cover.by_task.items()}, cover.default, cover.origin)


def _in_file(covers: tuple[tuple[str, Cover], ...], name: str) -> Cover:
    if exact := dict(covers).get(name):
        return exact
    cover = next((cover for pattern, cover in covers if fnmatchcase(name, pattern)), default_cover())
    if cover.mode == "enforce":
        return cover
    # A look-alike of a guarded name must not slip into the patterns that let everything through.
    resembled = (
        other for pattern, other in covers if fnmatchcase(folded(name), folded(pattern)) and other.mode == "enforce" and pattern != "*"
    )
    return next(resembled, cover)
