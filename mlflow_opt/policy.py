"""Read a policy from YAML: strict, with errors that name the key and the line, because a policy misread is a gate left open."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mlflow_opt import metrics
from mlflow_opt.records import Criterion, Policy
from mlflow_opt.verdicts import policy_values as values
from mlflow_opt.verdicts.policy_values import Loader, at

_ALWAYS = ("guards", "validation_criteria", "confidence", "expires_days", "promote", "mode", "hardware", "verify_files")
# The last four are written only where they say something.
KEYS = (*_ALWAYS, "data_digest", "trusted_keys", "trusted_experiments", "waivers")
CRITERION_KEYS = ("id", "slice", "metric", "min", "max", "max_drop", "max_relative_drop", "min_improvement")
BOUNDS = CRITERION_KEYS[3:]

# Default margins: what a paired test can decide on the rows that the bundled sets give the gate. One point of accuracy
# takes about 1,500 paired rows when 2% of the answers change; fewer rows are answered with INCONCLUSIVE, not with PASS.
_DEFAULTS = {
    "binary": [{"metric": "speedup", "min": 1.05}, {"metric": "roc_auc", "max_drop": 0.01}],
    "multiclass": [{"metric": "speedup", "min": 1.05}, {"metric": "accuracy", "max_drop": 0.01}],
    "regression": [{"metric": "speedup", "min": 1.05}, {"metric": "rmse", "max_relative_drop": 0.02}],
}


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
        return yaml.load(text, Loader)  # noqa: S506 - Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML ({getattr(error, 'problem', error)}).") from None


def policy_from(loaded: Any) -> Policy:
    """Build a policy from loaded YAML, checking every key and value."""
    if not isinstance(loaded, dict):
        raise ValueError(f"a policy must be a mapping with validation_criteria, got {type(loaded).__name__}.")
    values.known_keys(loaded, KEYS)
    listed = loaded.get("validation_criteria")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{at(loaded, 'validation_criteria')}validation_criteria must be a list of at least one criterion.")
    criteria = tuple(criterion for item in listed for criterion in _criteria(item))
    _refuse_repeats(criteria)
    return make_policy(
        criteria,
        guards=values.guards(loaded),
        confidence=values.number(loaded, "confidence", 0.95, 0.5, 1.0),
        expires_days=values.number(loaded, "expires_days", 30.0, 0.0, 3650.0),
        promote=values.choice(loaded, "promote", ("manual", "auto")),
        mode=values.choice(loaded, "mode", ("enforce", "dry_run", "off")),
        hardware=values.text(loaded, "hardware"),
        verify_files=values.flag(loaded, "verify_files"),
        data_digest=values.text(loaded, "data_digest"),
        trusted_keys=values.trusted(loaded, "trusted_keys", "[/etc/mlflow/ci.pub]"),
        trusted_experiments=values.trusted(loaded, "trusted_experiments", "['12']"),
        waivers=values.waivers(loaded),
    )


def make_policy(criteria: Iterable[Criterion], **settings: Any) -> Policy:
    """Make a policy and its digest, which covers what decides: the criteria and the confidence."""
    ordered = tuple(criteria)
    confidence = settings.get("confidence", 0.95)
    decisive = sorted([c.quantity, c.side, c.bound, c.slice_rows] for c in ordered)
    digest = hashlib.sha256(json.dumps([decisive, confidence]).encode()).hexdigest()[:16]
    return Policy(criteria=ordered, digest=digest, **settings)


def default_policy(task: str, speedup: float = 1.05) -> Policy:
    """Return the policy used where nobody gave one: 5% faster, and the task's headline quality not down by more than a stated margin.

    Args:
        task: `binary` (roc_auc down by at most 0.01), `multiclass` (accuracy, 0.01) or `regression` (rmse up by at most 2%).
        speedup: to ask instead; recipes that look for quality ask for less than 1.
    """
    if task not in _DEFAULTS:
        raise ValueError(f"task must be one of {sorted(_DEFAULTS)}, got '{task}'.")
    criteria = [{**one, "min": speedup} if one["metric"] == "speedup" else one for one in _DEFAULTS[task]]
    return policy_from({"validation_criteria": criteria})


def tighten(policy: Policy, extra: Policy) -> Policy:
    """Combine a server's policy with one kept with the model: every criterion of both holds, so the result is never looser.

    Promotion, mode and waivers are the server's alone.

    Raises:
        ValueError: the two cannot both hold: one slice id for different rows, or nothing that both trust.

    """
    settings = _settings(policy) | {
        "guards": tuple(dict.fromkeys((*policy.guards, *extra.guards))),
        "confidence": max(policy.confidence, extra.confidence),
        "expires_days": min(policy.expires_days, extra.expires_days),
        "verify_files": policy.verify_files or extra.verify_files,
        "hardware": _one("hardware", policy.hardware, extra.hardware),
        "data_digest": _one("data_digest", policy.data_digest, extra.data_digest),
        "trusted_keys": _both("trusted_keys", policy.trusted_keys, extra.trusted_keys),
        "trusted_experiments": _both("trusted_experiments", policy.trusted_experiments, extra.trusted_experiments),
    }
    return make_policy(_stricter((*policy.criteria, *extra.criteria)), **settings)


def with_criteria(policy: Policy, criteria: Iterable[Criterion]) -> Policy:
    """Return a policy with other criteria and all else kept."""
    return make_policy(criteria, **_settings(policy))


def policy_text(policy: Policy) -> str:
    """Write a policy as the YAML that `parse_policy` reads back to an equal one.

    Example:
        >>> given = default_policy("binary")
        >>> parse_policy(policy_text(given)) == given
        True
    """
    settings = {key: value for key, value in _settings(policy).items() if key in _ALWAYS or value}
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    written = {"guards": shown.pop("guards"), "validation_criteria": [_written(criterion) for criterion in policy.criteria], **shown}
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


def _settings(policy: Policy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(Policy) if field.name not in ("criteria", "digest")}


def _both(key: str, one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    if not one or not other:
        return one or other
    common = tuple(each for each in one if each in other)
    if not common:
        raise ValueError(f"{key} must have something in common with what the policy asks for already, got {', '.join(other)}.")
    return common


def _one(key: str, one: str, other: str) -> str:
    if one and other and one != other:
        raise ValueError(f"{key} must be '{one}', as the policy asks for already, got '{other}'.")
    return one or other


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
    values.known_keys(item, CRITERION_KEYS)
    metric = item.get("metric")
    if not isinstance(metric, str) or not metrics.is_known(metric):
        near = difflib.get_close_matches(str(metric), metrics.known_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(metrics.known_names())}."
        raise ValueError(f"{at(item, 'metric')}metric must be a known metric name, got {metric!r}; {hint}")
    bounds = [key for key in BOUNDS if key in item]
    if not bounds:
        raise ValueError(f"{at(item)}criterion on {metric} needs a bound: one of {', '.join(BOUNDS)}.")
    return [_criterion(item, metric, bound) for bound in bounds]


def _criterion(item: dict[str, Any], metric: str, key: str) -> Criterion:
    value = item[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{at(item, key)}{key} of {metric} must be a finite number, got {value!r}.")
    rows, name = _slice(item)
    prefix = f"slice/{name}/" if name else ""
    if key in ("min", "max"):
        return Criterion(prefix + metric, "min" if key == "min" else "max", float(value), metric, name, rows)
    if not metrics.is_quality(metric):
        raise ValueError(f"{at(item, key)}{key} is for quality metrics, got {metric}; bound it with min or max (speedup for latency).")
    if key != "min_improvement" and not 0 <= value <= 1 and metrics.larger_is_better(metric):
        raise ValueError(f"{at(item, key)}{key} of {metric} must be in [0, 1], got {value:g}; 0.01 means one point.")
    if value < 0:
        raise ValueError(f"{at(item, key)}{key} of {metric} must not be negative, got {value:g}.")
    kind = "rel_drop_" if key == "max_relative_drop" else "drop_"
    bound = -float(value) if key == "min_improvement" else float(value)
    return Criterion(f"{prefix}{kind}{metric}", "max", bound, metric, name, rows)


def _slice(item: dict[str, Any]) -> tuple[str, str]:
    rows, name = item.get("slice", ""), item.get("id", "")
    if not isinstance(rows, str) or not isinstance(name, str):
        raise ValueError(f"{at(item)}slice and id must be text, got {rows!r} and {name!r}.")
    if rows and not name:
        raise ValueError(f"{at(item, 'slice')}a slice needs an id, which names its metrics: add `id: two_year`.")
    if name and not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"{at(item, 'id')}id must be letters, digits, - and _, got '{name}'.")
    return (rows, name) if rows else ("", "")


def _refuse_repeats(criteria: tuple[Criterion, ...]) -> None:
    seen: dict[tuple[str, str], Criterion] = {}
    for criterion in criteria:
        key = (criterion.quantity, criterion.side)
        if key in seen:
            raise ValueError(f"{criterion.quantity} has two {criterion.side} bounds ({seen[key].bound:g}, {criterion.bound:g}); keep one.")
        seen[key] = criterion
