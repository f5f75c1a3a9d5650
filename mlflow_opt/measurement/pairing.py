"""How much quality a candidate loses against its reference on the same rows, with intervals that do not promise too much.

Both models answer the same rows, so that what they share cancels and only the rows on which they differ carry noise. The
method follows the metric:

- accuracy: Tango's score interval for the difference of two paired shares, which is McNemar's setting (Tango 1998);
- precision_at_k: the same on the k rows that each model puts first (k is small: nothing smoother holds its level there);
- f1: bootstrap of the joint table of (label, answer, answer), which is the row bootstrap without touching the rows;
- roc_auc, average_precision: bootstrap of the rows' influence, for roc_auc DeLong's structural components (DeLong, DeLong &
  Clarke-Pearson 1988): ranking each of 2,000 resamples anew would take ten times as long for the same answer;
- the rest: bootstrap of the rows as multiplicities (Efron & Tibshirani 1993), both models on each resample.

A loss often sits in a handful of rows, and there a percentile bootstrap promises too much: if 2% of 500 rows are answered at
random, the true loss lies above its 97.5% end in 17% of samples; and two models that agree on every row seen are "exactly
equal". So the interval is `intervals.careful_interval`: corrected for skewness, and reckoning with rows not yet seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_opt import metrics
from mlflow_opt.measurement.influence import influence
from mlflow_opt.measurement.intervals import Sample, careful_interval, clopper_pearson, paired_share_difference
from mlflow_opt.measurement.own_metrics import call_own
from mlflow_opt.measurement.scoring import AVERAGED, Floats, Scored, averaged, f1_of, f1_parts, terms, top_rows
from mlflow_opt.records import Quantity

# Shares of rows: their intervals come from counts.
SHARES = ("accuracy", "precision_at_k")
RESAMPLES = 2000
# A user's function is called once a resample and model; spread and skewness need no more than this.
OWN_RESAMPLES = 300
FEWEST_OF_A_CLASS = 10
# Multiplicities held at once (8 bytes each), and rows times resamples at most: beyond 20,000 rows fewer resamples do.
CHUNK, MOST_WORK = 4_000_000, 40_000_000
Ends = tuple[float, float]
Pair = tuple[Floats, Floats]


@dataclass(frozen=True)
class Draws:
    """A metric of candidate and reference on the same resamples, and the rows' influence on each; candidate first."""

    values: Pair
    influence: Pair


def compare_quality(candidate: Scored, reference: Scored, *, level: float = 0.95, seed: int = 0) -> dict[str, Quantity]:
    """Give every quality metric of the candidate, and its loss against the reference, with intervals.

    Example:
        >>> from mlflow_opt.records import Task
        >>> from mlflow_opt.measurement.scoring import score
        >>> labels = np.arange(1000) % 2
        >>> scored = score(Task("binary", (0, 1)), labels, np.eye(2)[labels])
        >>> lost = compare_quality(scored, scored)["drop_accuracy"]
        >>> lost.value, round(lost.hi, 4)
        (0.0, 0.0038)

    Args:
        candidate: the candidate's answers.
        reference: the reference's answers on the same rows in the same order.
        level: two-sided confidence.
        seed: of the resampling.

    Returns:
        `Q`, `drop_Q` and `rel_drop_Q` for each metric Q that both have; positive is worse whatever the metric's direction.

    Raises:
        ValueError: the two were not scored on the same labels.

    """
    if not np.array_equal(candidate.labels, reference.labels):
        raise ValueError("a paired comparison needs both models on the same rows, got different labels; score both on one Part.")
    names = [name for name in candidate.values if name in reference.values]
    draws = _draw(names, candidate, reference, np.random.default_rng(seed))
    found: dict[str, Quantity] = {}
    for name in names:
        if name in SHARES:
            found |= _from_counts(name, candidate, reference, level)
        else:
            found |= _from_draws(name, draws[name], candidate, reference, level)
    return found


def parity(candidate: Scored, reference: Scored) -> dict[str, Quantity]:
    """Count rows whose answer differs (`label_flips`) and give the largest difference of any output (`max_abs_diff`): both exact."""
    rows = len(candidate.labels)
    largest = float(np.abs(candidate.outputs - reference.outputs).max())
    found = {"max_abs_diff": Quantity(largest, largest, largest, rows)}
    if candidate.task.kind != "regression":
        flips = float((candidate.answers != reference.answers).sum())
        found["label_flips"] = Quantity(flips, flips, flips, rows)
    return found


def _from_counts(name: str, candidate: Scored, reference: Scored, level: float) -> dict[str, Quantity]:
    picked = [np.ones(len(s.labels), dtype=bool) if name == "accuracy" else top_rows(s) for s in (candidate, reference)]
    right = [s.answers == s.labels if name == "accuracy" else s.labels == 1 for s in (candidate, reference)]
    ours, theirs = (chosen & hit for chosen, hit in zip(picked, right, strict=True))
    rows = int(picked[0].sum())
    hits, before = int(ours.sum()), int(theirs.sum())
    lost = paired_share_difference(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()), rows, level)
    value, scale = candidate.values[name], reference.values[name]
    drop = scale - value + 0.0
    found = {name: _quantity(value, clopper_pearson(hits, rows, level), rows), f"drop_{name}": _quantity(drop, lost, rows)}
    if before == 0:
        return found
    # The reference's own uncertainty matters only where the loss is large; taken as independent it errs on the safe side.
    own = abs(drop) / scale**2 * (before / rows - clopper_pearson(before, rows, level)[0])
    relative = drop / scale - math.hypot((drop - lost[0]) / scale, own), drop / scale + math.hypot((lost[1] - drop) / scale, own)
    return found | {f"rel_drop_{name}": _quantity(drop / scale, relative, rows)}


def _from_draws(name: str, draws: Draws, candidate: Scored, reference: Scored, level: float) -> dict[str, Quantity]:
    rows, ours, theirs = len(candidate.labels), candidate.values[name], reference.values[name]
    sign = 1.0 if metrics.larger_is_better(name) else -1.0
    unseen = _unseen(name, candidate)
    # Adding zero turns -0.0 into 0.0.
    drop = sign * (theirs - ours) + 0.0
    lost, pull = (sign * (pair[1] - pair[0]) for pair in (draws.values, draws.influence))
    found = {
        name: _quantity(ours, _careful(ours, Sample(draws.values[0], draws.influence[0], unseen, rows), level), rows),
        f"drop_{name}": _quantity(drop, _careful(drop, Sample(lost, pull, -sign * unseen, rows), level), rows),
    }
    if _too_few(name, candidate):
        return {key: Quantity(quantity.value, -math.inf, math.inf, rows) for key, quantity in found.items()}
    if theirs == 0:
        return found
    scale = abs(theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = lost / np.abs(draws.values[1])
    pull = (pull - drop / theirs * draws.influence[1]) / scale
    relative = _careful(drop / scale, Sample(shares, pull, -sign * unseen / scale, rows), level)
    return found | {f"rel_drop_{name}": _quantity(drop / scale, relative, rows)}


def _careful(value: float, sample: Sample, level: float) -> Ends:
    usable = np.isfinite(sample.draws)
    # A resample may define no metric; where that is common the rows are too few for an interval.
    if usable.mean() < 0.9:
        return -math.inf, math.inf
    return careful_interval(value, Sample(sample.draws[usable], sample.influence, sample.unseen, sample.rows), level)


def _too_few(name: str, scored: Scored) -> bool:
    """Tell whether a class has so few rows that their own spread says little about other rows of it."""
    if name not in ("roc_auc", "average_precision") and (name != "f1" or scored.task.kind != "binary"):
        return False
    return bool(np.bincount(scored.labels, minlength=len(scored.task.classes)).min() < FEWEST_OF_A_CLASS)


def _quantity(value: float, ends: Ends, rows: int) -> Quantity:
    return Quantity(value, min(ends[0], value), max(ends[1], value), rows)


def _unseen(name: str, scored: Scored) -> Floats:
    """Give what it would change, in units of the metric, if a row were answered as another, random row was.

    In a regression: as far off as another row was. An answer for another row may be off by any number of times the usual
    error, and imagining such rows would leave nothing provable.
    """
    order = np.random.default_rng(0).permutation(len(scored.labels))
    other = scored.outputs[order]
    if scored.task.kind == "regression":
        other = scored.labels + (scored.outputs - scored.labels)[order]
    own = next((metric for metric in scored.own if metric.name == name), None)
    if own:
        # No slope of a user's function could be taken cheaply: the mean change stands for each row's.
        return np.array([call_own(own, scored.raw_labels, other) - scored.values[name]])
    asked, as_is = (
        influence(name, scored.task, scored.labels, scored.outputs, answers, scored.threshold) for answers in (other, scored.outputs)
    )
    return asked - as_is


def _draw(names: list[str], candidate: Scored, reference: Scored, rng: np.random.Generator) -> dict[str, Draws]:
    drawn = {"f1": _resampled_tables(candidate, reference, rng)} if "f1" in names else {}
    by_row = [name for name in names if name in AVERAGED or name in ("roc_auc", "average_precision")]
    drawn |= _resampled_rows(by_row, candidate, reference, rng) if by_row else {}
    return drawn | {own.name: _resampled_own(own.function, candidate, reference, rng) for own in candidate.own if own.name in names}


def _resampled_tables(candidate: Scored, reference: Scored, rng: np.random.Generator) -> Draws:
    """Resample the joint table of (label, candidate's answer, reference's answer), for f1."""
    classes, rows = len(candidate.task.classes), len(candidate.labels)
    cells, counts = np.unique(np.stack([candidate.labels, candidate.answers, reference.answers]), axis=1, return_counts=True)
    draws = rng.multinomial(rows, counts / rows, size=RESAMPLES).astype(float)
    ours, theirs = (f1_of(candidate.task, f1_parts(classes, cells[0], cells[side], draws)) for side in (1, 2))
    return Draws((ours, theirs), (_influence("f1", candidate), _influence("f1", reference)))


def _resampled_rows(names: list[str], candidate: Scored, reference: Scored, rng: np.random.Generator) -> dict[str, Draws]:
    rows = len(candidate.labels)
    pulls = {name: (_influence(name, candidate), _influence(name, reference)) for name in names}
    ready = {name: [_row_terms(name, s, pull) for s, pull in zip((candidate, reference), pulls[name], strict=True)] for name in names}
    parts: dict[str, tuple[list[Floats], list[Floats]]] = {name: ([], []) for name in names}
    resamples = min(RESAMPLES, max(500, MOST_WORK // rows))
    step = max(1, CHUNK // rows)
    for start in range(0, resamples, step):
        weights = np.stack(
            [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(min(step, resamples - start))]
        ).astype(float)
        for name in names:
            for side, each in enumerate(ready[name]):
                parts[name][side].append(averaged(name, weights @ each))
    return {name: Draws((np.concatenate(ours), np.concatenate(theirs)), pulls[name]) for name, (ours, theirs) in parts.items()}


def _influence(name: str, scored: Scored) -> Floats:
    return influence(name, scored.task, scored.labels, scored.outputs, scored.outputs, scored.threshold)


def _row_terms(name: str, scored: Scored, pull: Floats) -> Floats:
    if name in AVERAGED:
        return terms(name, scored.labels, scored.outputs)
    return np.column_stack([np.ones(len(pull)), scored.values[name] + pull])


def _resampled_own(function: Callable[[Any, Any], float], candidate: Scored, reference: Scored, rng: np.random.Generator) -> Draws:
    rows = len(candidate.labels)
    picks = [rng.integers(rows, size=rows) for _ in range(OWN_RESAMPLES)]
    found = [[float(function(s.raw_labels[pick], s.outputs[pick])) for pick in picks] for s in (candidate, reference)]
    return Draws((np.array(found[0]), np.array(found[1])), (np.empty(0), np.empty(0)))
