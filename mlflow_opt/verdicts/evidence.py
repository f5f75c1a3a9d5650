"""What a measurement looks like on an MLflow run, in both directions: recipes write it, the registry hook reads it back.

Every judged quantity Q is four metrics, `gate_Q`, `gate_Q_lo`, `gate_Q_hi`, `gate_Q_n`, and its bounds are `gate_Q_min`
and `gate_Q_max`. What the verdict is bound to is tags. Nothing here talks to MLflow: dictionaries go in and come out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields

from mlflow_opt.records import Binding, Measurement, Outcome, Policy, Quantity, Verdict

PREFIX = "mlflow_opt."
# On the LoggedModel: the run whose metrics are the evidence for it.
EVIDENCE_RUN = PREFIX + "evidence_run"
VERDICT = PREFIX + "verdict"
DOUBT = PREFIX + "doubt"
PASSED = "gate_passed"
_SUFFIXES = ("_lo", "_hi", "_n")
_LOGGED_MODEL = re.compile(r"models:/+(m-[\w-]+)")
# Where MLflow keeps a logged model's files, under the experiment's artifacts.
_ITS_FILES = re.compile(r".*/models/(m-[\w-]+)/artifacts/?")


def model_behind(source: str, location: str) -> str:
    """Say which logged model a registered version is, empty if it is none.

    Both are written when the version is created and never change. A copy's source names the version that was copied, which
    may be deleted and made anew as another model, so a copy is known by where its files are.

    Example:
        >>> model_behind("models:/m-1", "s3://b/1/models/m-1/artifacts"), model_behind("models:/a/3", "s3://b/1/models/m-1/artifacts")
        ('m-1', 'm-1')
        >>> model_behind("s3://elsewhere/model", "s3://elsewhere/model")
        ''

    Args:
        source: the version's source.
        location: where its files are downloaded from.

    """
    found = _LOGGED_MODEL.fullmatch(source) or _ITS_FILES.fullmatch(location)
    return found.group(1) if found else ""


def identity(source: str, location: str, name: str, version: int | str) -> str:
    """Say what evidence calls a registered version as a reference: its logged model, else its place in the registry."""
    return model_behind(source, location) or f"models:/{name}/{version}"


def to_metrics(measured: Measurement, policy: Policy, verdict: Verdict) -> dict[str, float]:
    """Write the judged quantities, their bounds and the decision as run metrics.

    A quantity that was not measured is left out rather than written as NaN: its absence is what the reader must see.
    """
    metrics: dict[str, float] = {PASSED: float(verdict.passed)}
    for criterion in policy.criteria:
        metrics[f"gate_{criterion.quantity}_{criterion.side}"] = criterion.bound
        quantity = measured.quantities.get(criterion.quantity)
        if quantity is not None:
            metrics |= _four(criterion.quantity, quantity)
    return metrics


def from_metrics(metrics: Mapping[str, float], tags: Mapping[str, str]) -> Measurement:
    """Read a measurement back from the metrics and tags of an evidence run; what is incomplete is left out, never guessed."""
    quantities = {}
    for key in metrics:
        name = key.removeprefix("gate_")
        parts = [metrics.get(f"gate_{name}{suffix}") for suffix in _SUFFIXES]
        if key.startswith("gate_") and all(part is not None for part in parts):
            lo, hi, n = (float(part) for part in parts if part is not None)
            quantities[name] = Quantity(float(metrics[key]), lo, hi, int(n) if math.isfinite(n) and n < 1e15 else 0)
    return Measurement(
        quantities=quantities,
        reference=tags.get(PREFIX + "reference_model_id", ""),
        data_digest=tags.get(PREFIX + "data_digest", ""),
        fingerprint=tags.get(PREFIX + "fingerprint", ""),
        doubt=tags.get(DOUBT, ""),
    )


def to_tags(binding: Binding, outcome: Outcome, doubt: str = "") -> dict[str, str]:
    """Write what a verdict is bound to as run tags."""
    tags = {PREFIX + field.name: str(getattr(binding, field.name)) for field in fields(Binding)}
    return tags | {VERDICT: outcome.value} | ({DOUBT: doubt} if doubt else {})


def from_tags(tags: Mapping[str, str]) -> Binding:
    """Read the binding back.

    Raises:
        ValueError: a part is missing or empty; evidence that does not say what it is about is no evidence.

    """
    values = {field.name: tags.get(PREFIX + field.name, "") for field in fields(Binding)}
    missing = [name for name, value in values.items() if not value and name != "reference_model_id"]
    if missing:
        raise ValueError(
            f"evidence must name what it is bound to, and {', '.join(missing)} is missing; measure again with `mlflow-opt gate`."
        )
    if not values["measured_at"].isdigit():
        raise ValueError(f"measured_at must be milliseconds since the epoch, got '{values['measured_at']}'.")
    return Binding(**{**values, "measured_at": int(values["measured_at"])})  # type: ignore[arg-type]


def _four(name: str, quantity: Quantity) -> dict[str, float]:
    return {
        f"gate_{name}": quantity.value,
        f"gate_{name}_lo": quantity.lo,
        f"gate_{name}_hi": quantity.hi,
        f"gate_{name}_n": float(quantity.n),
    }
