"""Everything that a verdict needs, measured in one place: quality by the one scorer, speed by the one stopwatch.

`evidence` is for the verdict: intervals, the reference beside the candidate, the noise guard. `selection` and `time_models`
are for choosing among variants. Who measures here must not choose here: the variant chosen is measured anew on rows and
in processes that had no part in the choice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_opt import metrics
from mlflow_opt.data import Batch, Part, n_rows, take
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.measurement.own_metrics import OwnMetric, read_own
from mlflow_opt.measurement.pairing import compare_quality, parity
from mlflow_opt.measurement.scoring import BadScores, Scored, score
from mlflow_opt.measurement.sequential import Conditions, PairTimings, cost_of, ratios_of, time_pair
from mlflow_opt.measurement.stopwatch import PYFUNC_LOADER, Entry, Timings, memory_mb, time_models
from mlflow_opt.models import Model
from mlflow_opt.records import Measurement, Policy, Quantity, Task

__all__ = [
    "BadScores",
    "Conditions",
    "Evidence",
    "OwnMetric",
    "Scored",
    "Timings",
    "cost_of",
    "drop",
    "evidence",
    "own_metric",
    "quality",
    "ratios_of",
    "selection",
    "time_models",
    "time_pair",
]

logger = logging.getLogger(__name__)

# Rows a call when scoring: activations of a network on 10,000 images at once would not fit in memory.
SCORING_ROWS = 500
PYFUNC_SESSIONS, PYFUNC_CALLS = 3, 50


@dataclass(frozen=True)
class Evidence:
    """What was measured for a verdict: the candidate's quantities, and the reference's own for the record.

    Args:
        candidate: what is judged.
        reference: the reference's quality and cost, timed in the same processes.
        timings: how the sessions went.
    """

    candidate: Measurement
    reference: Measurement
    timings: PairTimings


def own_metric(reference: str) -> OwnMetric | None:
    """Load a user's metric from `path.py:function`; `""` is none."""
    return read_own(reference) if reference else None


def quality(model: Model, part: Part, task: Task, own: OwnMetric | None = None) -> Scored:
    """Score a model on the rows of a part.

    Args:
        model: what is scored.
        part: rows with labels.
        task: what is predicted.
        own: the user's own metric, None if there is none.

    Raises:
        BadScores: the model answered with another number of rows, another shape, or NaN.

    """
    return score(task, part.labels, _answers(model, part.rows), (own,) if own else (), model.threshold)


def drop(candidate: Scored, reference: Scored, metric: str) -> float:
    """Give how much a metric is worse than the reference's, as a plain value; positive is worse.

    Raises:
        ValueError: one of the two does not define the metric on these rows.

    """
    if metric not in candidate.values or metric not in reference.values:
        raise ValueError(f"{metric} must be defined on these rows, which have {sorted(candidate.values)}; choose one of these.")
    difference = reference.values[metric] - candidate.values[metric]
    return difference if metrics.larger_is_better(metric) else -difference


def selection(candidate: Scored, reference: Scored | None, part: Part) -> Measurement:
    """Give a variant's point values on the selection rows, for choosing among many; nothing here may be judged.

    Args:
        candidate: the variant's answers.
        reference: the baseline's answers on the same rows, None for the baseline itself.
        part: the rows, for their digest.

    """
    rows = len(candidate.labels)
    values = dict(candidate.values)
    if reference is not None:
        drops = {name: drop(candidate, reference, name) for name in candidate.values if name in reference.values}
        values |= {f"drop_{name}": value for name, value in drops.items()}
        values |= {f"rel_drop_{name}": value / abs(reference.values[name]) for name, value in drops.items() if reference.values[name]}
    found = {name: Quantity(value, value, value, rows) for name, value in values.items()}
    return Measurement(found | (parity(candidate, reference) if reference is not None else {}), data_digest=part.digest)


def evidence(candidate: Model, reference: Model, part: Part, task: Task, policy: Policy, conditions: Conditions | None = None) -> Evidence:
    """Measure a candidate beside its reference: everything that the policy asks, and the standard quantities.

    What cannot be measured is left out and so never passes: a quantile without samples enough, a slice without rows,
    the quality of a candidate whose answers are not finite (which the doubt then says).

    Args:
        candidate: the model to be judged.
        reference: the model that it would replace.
        part: labelled rows that nothing before has seen.
        task: what is predicted.
        policy: its criteria say what is needed, its confidence how sure.
        conditions: threads, batch size, time budget, seed, own metric.

    Raises:
        BadScores: the reference itself cannot be scored.
        ValueError: a slice of the policy is no query on these rows.
        RuntimeError: a timing session died.

    """
    how = conditions or Conditions()
    found, theirs, doubt = _compare(candidate, reference, part, task, policy, how)
    timings = time_pair(candidate, reference, part.rows, policy, how)
    found |= timings.quantities | _sizes(candidate) | _asked(candidate, part.rows, policy, how)
    theirs |= cost_of(timings.timings, 1) | _sizes(reference)
    doubts = "; ".join(text for text in (doubt, timings.doubt) if text)
    machine = fingerprint(how.threads, throughput_batch=timings.timings.batches[-1])
    return Evidence(
        Measurement(found, _identity(reference), part.digest, machine, doubts),
        Measurement(theirs, "", part.digest, machine, doubts),
        timings,
    )


def slice_mask(rows: Batch, query: str) -> npt.NDArray[np.bool_]:
    """Tell which rows of a table a pandas query picks.

    Example:
        >>> import pandas as pd
        >>> slice_mask(pd.DataFrame({"contract": ["One year", "Two year"]}), 'contract == "Two year"').tolist()
        [False, True]

    Raises:
        ValueError: the rows are arrays, or the query is not one on these columns.

    """
    if isinstance(rows, Mapping):
        raise ValueError(f"a slice is a query on a table's columns, and these rows are arrays: '{query}'; remove the slice.")
    try:
        # No local or global names: a policy speaks of columns only.
        picked = rows.reset_index(drop=True).query(query, local_dict={}, global_dict={}).index
    except (ValueError, KeyError, SyntaxError, TypeError, NameError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"slice must be a query on {', '.join(map(str, rows.columns[:20]))}, got '{query}': {error}.") from None
    mask = np.zeros(len(rows), dtype=bool)
    mask[picked.to_numpy()] = True
    return mask


def _answers(model: Model, rows: Batch) -> npt.NDArray[Any]:
    total = n_rows(rows)
    parts = [model.predict(take(rows, slice(start, start + SCORING_ROWS))) for start in range(0, total, SCORING_ROWS)]
    return np.concatenate(parts)


Found = dict[str, Quantity]


def _compare(candidate: Model, reference: Model, part: Part, task: Task, policy: Policy, how: Conditions) -> tuple[Found, Found, str]:
    """Compare quality on the part and on the policy's slices; give the candidate's quantities, the reference's, and a doubt."""
    theirs = quality(reference, part, task, how.own)
    masks = {(c.slice_id, c.slice_rows): slice_mask(part.rows, c.slice_rows) for c in policy.criteria if c.slice_rows}
    plain = {name: Quantity(value, value, value, len(part.labels)) for name, value in theirs.values.items()}
    try:
        ours = quality(candidate, part, task, how.own)
    except BadScores as error:
        logger.warning("The candidate cannot be scored: %s", error)
        return {}, plain, f"the candidate's {error}"
    found = compare_quality(ours, theirs, level=policy.confidence, seed=how.seed) | parity(ours, theirs)
    for (name, _), mask in masks.items():
        if not mask.any():
            logger.warning("The slice %s has no rows among the %d of part %s, so it cannot be judged.", name, len(mask), part.name)
            continue
        compared = compare_quality(ours.rows(mask), theirs.rows(mask), level=policy.confidence, seed=how.seed)
        compared |= parity(ours.rows(mask), theirs.rows(mask))
        found |= {f"slice/{name}/{metric}": quantity for metric, quantity in compared.items()}
    return found, plain, ""


def _sizes(model: Model) -> Found:
    exact = {"size_mb": model.size_mb, "parameters": float(model.parameters)}
    return {name: Quantity(value, value, value, 1) for name, value in exact.items()}


def _asked(model: Model, rows: Batch, policy: Policy, how: Conditions) -> Found:
    """Measure what is too slow to measure unless the policy asks for it."""
    asked = {criterion.quantity for criterion in policy.criteria}
    found: Found = {}
    if "pyfunc_p50_ms" in asked:
        found["pyfunc_p50_ms"] = time_pyfunc(model, rows, threads=how.threads, level=policy.confidence)
    if "memory_mb" in asked:
        megabytes = [memory_mb(model, rows, how.threads) for _ in range(PYFUNC_SESSIONS)]
        found["memory_mb"] = Quantity(float(np.median(megabytes)), min(megabytes), max(megabytes), len(megabytes))
    return found


def time_pyfunc(model: Model, rows: Batch, *, threads: int = 1, level: float = 0.95) -> Quantity:
    """Time one row through MLflow's pyfunc `predict`, schema check included: what `mlflow models serve` pays, in milliseconds."""
    entry = Entry(str(model.path), PYFUNC_LOADER)
    timings = time_models([entry], rows, sessions=PYFUNC_SESSIONS, threads=threads, calls=PYFUNC_CALLS)
    return Timings(timings.sittings, timings.batches, threads, level).latency(0)


def _identity(model: Model) -> str:
    return model.model_id or model.digest
