"""Read a policy from YAML: strict, with errors that name the key and the line, because a policy misread is a gate left open."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mlflow_opt import metrics
from mlflow_opt.records import Criterion, Policy

KEYS = ("guards", "validation_criteria", "confidence", "expires_days", "promote", "mode", "hardware", "verify_files")
CRITERION_KEYS = ("id", "slice", "metric", "min", "max", "max_drop", "max_relative_drop", "min_improvement")
BOUNDS = CRITERION_KEYS[3:]

# Default margins: what a paired test can decide on the rows that the bundled sets give the gate. One point of accuracy
# takes about 1,500 paired rows when 2% of the answers change; fewer rows are answered with INCONCLUSIVE, not with PASS.
_DEFAULTS = {
    "binary": [{"metric": "speedup", "min": 1.05}, {"metric": "roc_auc", "max_drop": 0.01}],
    "multiclass": [{"metric": "speedup", "min": 1.05}, {"metric": "accuracy", "max_drop": 0.01}],
    "regression": [{"metric": "speedup", "min": 1.05}, {"metric": "rmse", "max_relative_drop": 0.02}],
}


class _Line(dict[str, Any]):
    """A mapping that remembers the line it started on and the line of each of its keys."""

    line: int = 0
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """Safe YAML whose mappings know their lines and refuse a key written twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Line:
    made = _Line()
    made.line, made.lines = node.start_mark.line + 1, {}
    for key_node, value_node in node.value:
        key, line = str(loader.construct_object(key_node)), key_node.start_mark.line + 1
        if key in made:
            raise ValueError(f"line {line}: key '{key}' is written twice; keep one of them.")
        made[key], made.lines[key] = loader.construct_object(value_node, deep=True), line
    return made


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 takes 1e-5 for text, because it has no point.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Args:
        path: a YAML file with `validation_criteria` and, optionally, the other keys of the policy reference.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file breaks a rule; the message names file, line, key and remedy.

    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"policy must be a file, got '{path}', which does not exist; write one with `mlflow-opt init`.")
    return parse_policy(Path(path).read_text(encoding="utf-8"), str(path))


def parse_policy(text: str, origin: str = "policy") -> Policy:
    """Parse the text of a policy; `origin` is named in errors.

    Example:
        >>> parse_policy("validation_criteria: [{metric: f1, max_drop: 0.01}]").criteria[0].quantity
        'drop_f1'
    """
    try:
        return policy_from(load_yaml(text))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def load_yaml(text: str) -> Any:
    """Load YAML whose mappings know their lines; used for policies and for the server's file of policies."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML ({getattr(error, 'problem', error)}).") from None


def policy_from(loaded: Any) -> Policy:
    """Build a policy from loaded YAML, checking every key and value."""
    if not isinstance(loaded, dict):
        raise ValueError(f"a policy must be a mapping with validation_criteria, got {type(loaded).__name__}.")
    _known_keys(loaded, KEYS)
    listed = loaded.get("validation_criteria")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{_at(loaded, 'validation_criteria')}validation_criteria must be a list of at least one criterion.")
    criteria = tuple(criterion for item in listed for criterion in _criteria(item))
    _refuse_repeats(criteria)
    return make_policy(
        criteria,
        guards=_guards(loaded),
        confidence=_number(loaded, "confidence", 0.95, 0.5, 1.0),
        expires_days=_number(loaded, "expires_days", 30.0, 0.0, 3650.0),
        promote=_choice(loaded, "promote", ("manual", "auto")),
        mode=_choice(loaded, "mode", ("enforce", "dry_run", "off")),
        hardware=_text(loaded, "hardware"),
        verify_files=_flag(loaded, "verify_files"),
    )


def make_policy(criteria: Iterable[Criterion], **settings: Any) -> Policy:
    """Make a policy and its digest, which covers what decides: the criteria and the confidence."""
    ordered = tuple(criteria)
    confidence = settings.get("confidence", 0.95)
    decisive = sorted([c.quantity, c.side, c.bound, c.slice_rows] for c in ordered)
    digest = hashlib.sha256(json.dumps([decisive, confidence]).encode()).hexdigest()[:16]
    return Policy(criteria=ordered, digest=digest, **settings)


def default_policy(task: str) -> Policy:
    """Return the policy used where nobody gave one: 5% faster, and the task's headline quality not down by more than a stated margin.

    Args:
        task: `binary` (roc_auc down by at most 0.01), `multiclass` (accuracy, 0.01) or `regression` (rmse up by at most 2%).
    """
    if task not in _DEFAULTS:
        raise ValueError(f"task must be one of {sorted(_DEFAULTS)}, got '{task}'.")
    return policy_from({"validation_criteria": _DEFAULTS[task]})


def tighten(policy: Policy, extra: Policy) -> Policy:
    """Combine a server's policy with one kept with the model: every criterion of both holds, so the result is never looser.

    Raises:
        ValueError: both use one slice id for different rows, which cannot be measured under one name.

    """
    return make_policy(
        _stricter((*policy.criteria, *extra.criteria)),
        guards=tuple(dict.fromkeys((*policy.guards, *extra.guards))),
        confidence=max(policy.confidence, extra.confidence),
        expires_days=min(policy.expires_days, extra.expires_days),
        promote=policy.promote,
        mode=policy.mode,
        hardware=policy.hardware,
        verify_files=policy.verify_files or extra.verify_files,
    )


def policy_text(policy: Policy) -> str:
    """Write a policy as the YAML that `parse_policy` reads back to an equal one.

    Example:
        >>> given = default_policy("binary")
        >>> parse_policy(policy_text(given)) == given
        True
    """
    settings = {key: getattr(policy, key) for key in KEYS if key not in ("guards", "validation_criteria")}
    written = {"guards": list(policy.guards), "validation_criteria": [_written(criterion) for criterion in policy.criteria], **settings}
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


def _written(criterion: Criterion) -> dict[str, Any]:
    where = {"id": criterion.slice_id, "slice": criterion.slice_rows} if criterion.slice_rows else {}
    kind = criterion.quantity.rsplit("/", 1)[-1].removesuffix(criterion.metric)
    if not kind:
        return {**where, "metric": criterion.metric, criterion.side: criterion.bound}
    if kind == "rel_drop_":
        return {**where, "metric": criterion.metric, "max_relative_drop": criterion.bound}
    # An improvement of 0 is the bound -0.0, which is another digest than a drop of 0.
    key = "min_improvement" if math.copysign(1.0, criterion.bound) < 0 else "max_drop"
    return {**where, "metric": criterion.metric, key: abs(criterion.bound)}


def _stricter(criteria: Iterable[Criterion]) -> list[Criterion]:
    kept: dict[tuple[str, str], Criterion] = {}
    for criterion in criteria:
        key = (criterion.quantity, criterion.side)
        other = kept.setdefault(key, criterion)
        if other.slice_rows != criterion.slice_rows:
            raise ValueError(
                f"slice id '{criterion.slice_id}' must mean the same rows, got {other.slice_rows!r} and {criterion.slice_rows!r}."
            )
        tighter = criterion.bound > other.bound if criterion.side == "min" else criterion.bound < other.bound
        kept[key] = criterion if tighter else other
    return list(kept.values())


def _criteria(item: Any) -> list[Criterion]:
    if not isinstance(item, dict):
        raise ValueError(f"each criterion must be a mapping such as {{metric: f1, max_drop: 0.01}}, got {item!r}.")
    _known_keys(item, CRITERION_KEYS)
    metric = item.get("metric")
    if not isinstance(metric, str) or not metrics.is_known(metric):
        near = difflib.get_close_matches(str(metric), metrics.known_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(metrics.known_names())}."
        raise ValueError(f"{_at(item, 'metric')}metric must be a known metric name, got {metric!r}; {hint}")
    bounds = [key for key in BOUNDS if key in item]
    if not bounds:
        raise ValueError(f"{_at(item)}criterion on {metric} needs a bound: one of {', '.join(BOUNDS)}.")
    return [_criterion(item, metric, bound) for bound in bounds]


def _criterion(item: dict[str, Any], metric: str, key: str) -> Criterion:
    value = item[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{_at(item, key)}{key} of {metric} must be a finite number, got {value!r}.")
    rows, name = _slice(item)
    prefix = f"slice/{name}/" if name else ""
    if key in ("min", "max"):
        return Criterion(prefix + metric, "min" if key == "min" else "max", float(value), metric, name, rows)
    if not metrics.is_quality(metric):
        raise ValueError(f"{_at(item, key)}{key} is for quality metrics, got {metric}; bound it with min or max (speedup for latency).")
    if key != "min_improvement" and not 0 <= value <= 1 and metrics.larger_is_better(metric):
        raise ValueError(f"{_at(item, key)}{key} of {metric} must be in [0, 1], got {value:g}; 0.01 means one point.")
    if value < 0:
        raise ValueError(f"{_at(item, key)}{key} of {metric} must not be negative, got {value:g}.")
    kind = "rel_drop_" if key == "max_relative_drop" else "drop_"
    bound = -float(value) if key == "min_improvement" else float(value)
    return Criterion(f"{prefix}{kind}{metric}", "max", bound, metric, name, rows)


def _slice(item: dict[str, Any]) -> tuple[str, str]:
    rows, name = item.get("slice", ""), item.get("id", "")
    if not isinstance(rows, str) or not isinstance(name, str):
        raise ValueError(f"{_at(item)}slice and id must be text, got {rows!r} and {name!r}.")
    if rows and not name:
        raise ValueError(f"{_at(item, 'slice')}a slice needs an id, which names its metrics: add `id: two_year`.")
    if name and not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"{_at(item, 'id')}id must be letters, digits, - and _, got '{name}'.")
    return (rows, name) if rows else ("", "")


def _refuse_repeats(criteria: tuple[Criterion, ...]) -> None:
    seen: dict[tuple[str, str], Criterion] = {}
    for criterion in criteria:
        key = (criterion.quantity, criterion.side)
        if key in seen:
            raise ValueError(f"{criterion.quantity} has two {criterion.side} bounds ({seen[key].bound:g}, {criterion.bound:g}); keep one.")
        seen[key] = criterion


def _known_keys(mapping: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}."
            raise ValueError(f"{_at(mapping, key)}unknown key '{key}'; {hint}")


def _at(mapping: dict[str, Any], key: str = "") -> str:
    if not isinstance(mapping, _Line):
        return ""
    return f"line {mapping.lines.get(key, mapping.line)}: "


def _number(loaded: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = loaded.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{_at(loaded, key)}{key} must be a number between {low:g} and {high:g}, got {value!r}; {default:g} is usual.")
    return float(value)


def _choice(loaded: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    # YAML reads a bare `off` as False; the policy means the word.
    value = "off" if loaded.get(key) is False and "off" in allowed else loaded.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(f"{_at(loaded, key)}{key} must be one of {', '.join(allowed)}, got {value!r}.")
    return str(value)


def _text(loaded: dict[str, Any], key: str) -> str:
    value = loaded.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{_at(loaded, key)}{key} must be text, got {value!r}.")
    return value


def _flag(loaded: dict[str, Any], key: str) -> bool:
    value = loaded.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{_at(loaded, key)}{key} must be true or false, got {value!r}.")
    return value


def _guards(loaded: dict[str, Any]) -> tuple[str, ...]:
    value = loaded.get("guards", ["champion"])
    if not isinstance(value, list) or not value or not all(isinstance(alias, str) and alias for alias in value):
        raise ValueError(f"{_at(loaded, 'guards')}guards must be a list of aliases such as [champion], got {value!r}.")
    return tuple(alias.lower() for alias in value)
