"""The only scorer: quality metrics of one model on labelled rows, each row carrying a weight.

Weights are what a paired bootstrap needs: a resample is the same rows with other multiplicities, so that 2,000 of
them are matrix products and cumulative sums instead of 2,000 passes through a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_opt import metrics
from mlflow_opt.measurement.own_metrics import OwnMetric, call_own
from mlflow_opt.records import Task

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

# Metrics that are a smooth function of means over rows.
AVERAGED = frozenset({"log_loss", "mae", "rmse", "mape", "r2"})
# The share of rows, highest score first, that precision_at_k looks at.
TOP_SHARE = 0.005
# The worst a single row can cost in log loss: an answer of 0 for the true class counts as this.
LEAST_PROBABILITY = 1e-15
# Probabilities written in single precision sum to one within this.
SUM_TOLERANCE = 1e-3


class BadScores(ValueError):  # noqa: N818 - named for what it is about, like the standard library's StopIteration
    """A model's answer cannot be scored: another number of rows, another shape, or values that are not finite."""


@dataclass(frozen=True)
class Scored:
    """One model's answers on labelled rows, ready to be compared with another's on the same rows.

    Args:
        task: what is predicted.
        labels: class codes in score-column order, or the targets of a regression; shape (n,).
        outputs: probabilities, shape (n, classes), or predictions, shape (n,).
        raw_labels: labels as they are in the data, for a user's own metric.
        values: metric name -> value; a metric that these rows do not define (one class only) is absent.
        own: the user's own metrics.
        threshold: probability of the later class from which a binary model answers it.
    """

    task: Task
    labels: npt.NDArray[Any]
    outputs: Floats
    raw_labels: npt.NDArray[Any]
    values: Mapping[str, float]
    own: tuple[OwnMetric, ...] = ()
    threshold: float = 0.5

    @property
    def answers(self) -> npt.NDArray[Any]:
        """Return the predicted class codes (ties go to the earlier class), or the predictions of a regression."""
        return self.outputs if self.task.kind == "regression" else decided(self.outputs, self.threshold)

    def rows(self, mask: npt.NDArray[np.bool_]) -> Scored:
        """Return the same for some of the rows."""
        return make_scored(self.task, self.raw_labels[mask], self.labels[mask], self.outputs[mask], self.own, self.threshold)


def score(task: Task, labels: npt.NDArray[Any], scores: Any, own: tuple[OwnMetric, ...] = (), threshold: float = 0.5) -> Scored:
    """Score a model's answers against labels.

    Example:
        >>> task = Task("binary", (0, 1))
        >>> scored = score(task, np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]))
        >>> scored.values["accuracy"], scored.values["roc_auc"]
        (0.75, 1.0)

    Args:
        task: what is predicted, with its classes in score-column order.
        labels: shape (n,), as in the data.
        scores: what the model gave: (n, classes) probabilities or logits, or (n,) for a regression.
        own: the user's own metrics.
        threshold: probability of the later class from which a binary model answers it.

    Raises:
        BadScores: the answer has another shape than labels and classes ask for, or is not finite.
        ValueError: a label is none of the task's classes.

    """
    outputs = _outputs(task, scores, len(labels))
    if task.kind == "regression":
        return make_scored(task, labels, np.asarray(labels, dtype=float), outputs, own)
    return make_scored(task, labels, _codes(task, labels), outputs, own, threshold)


def decided(outputs: Floats, threshold: float = 0.5) -> Codes:
    """Give the class code that each row is answered with: of the largest probability, the earlier of equals, or by a threshold."""
    return np.argmax(outputs, axis=1) if threshold == 0.5 else (outputs[:, 1] >= threshold).astype(np.int64)


def make_scored(
    task: Task, raw: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: Floats, own: tuple[OwnMetric, ...], threshold: float = 0.5
) -> Scored:
    """Compute every metric of the task that these rows define."""
    weights = np.ones((1, len(labels)))
    values = {name: float(weighted(name, task, labels, outputs, weights, threshold)[0]) for name in metrics.QUALITY[task.kind]}
    values |= {metric.name: call_own(metric, raw, outputs) for metric in own}
    return Scored(task, labels, outputs, raw, {name: value for name, value in values.items() if math.isfinite(value)}, own, threshold)


def weighted(name: str, task: Task, labels: npt.NDArray[Any], outputs: Floats, weights: Floats, threshold: float = 0.5) -> Floats:
    """Compute one metric under many weightings of the rows.

    Args:
        name: a quality metric of the task.
        task: what is predicted.
        labels: codes or targets, shape (n,).
        outputs: probabilities (n, classes) or predictions (n,).
        weights: shape (weightings, n), not negative.
        threshold: probability from which a binary model answers the later class.

    Returns:
        one value a weighting, NaN where it is not defined.

    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if name == "accuracy":
            return np.asarray(weights @ (decided(outputs, threshold) == labels) / weights.sum(1))
        if name == "f1":
            return f1_of(task, f1_parts(len(task.classes), labels, decided(outputs, threshold), weights))
        if name in AVERAGED:
            return averaged(name, weights @ terms(name, labels, outputs))
        if name == "roc_auc":
            columns = [1] if task.kind == "binary" else range(len(task.classes))
            return np.asarray(np.mean([_auc(labels == code, outputs[:, code], weights) for code in columns], axis=0))
        return _ranked(name, labels == 1, outputs[:, 1], weights)


def terms(name: str, labels: npt.NDArray[Any], outputs: Floats) -> Floats:
    """Give the row-wise terms whose weighted sums make an averaged metric, shape (n, terms); the first is 1."""
    one = np.ones(len(labels))
    if name == "log_loss":
        chosen = outputs[np.arange(len(labels)), labels]
        return np.column_stack([one, -np.log(np.clip(chosen, LEAST_PROBABILITY, 1.0))])
    error = outputs - labels
    if name == "r2":
        # Centred, or the sums of squares of a target far from zero lose their digits.
        centred = labels - labels.mean()
        return np.column_stack([one, error**2, centred, centred**2])
    if name == "rmse":
        return np.column_stack([one, error**2])
    if name == "mape":
        return np.column_stack([one, np.abs(error) / np.maximum(np.abs(labels), np.finfo(float).eps)])
    return np.column_stack([one, np.abs(error)])


def averaged(name: str, sums: Floats) -> Floats:
    """Turn weighted sums of `terms` (last axis) into the metric."""
    means = sums[..., 1:] / sums[..., :1]
    if name == "rmse":
        return np.asarray(np.sqrt(means[..., 0]))
    if name == "r2":
        spread = means[..., 2] - means[..., 1] ** 2
        return np.where(spread > 0, 1 - means[..., 0] / spread, np.nan)
    return np.asarray(means[..., 0])


def f1_parts(classes: int, labels: npt.NDArray[Any], answers: Codes, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Give hits, labels and answers of each class under many weightings, each of shape (weightings, classes)."""
    one = np.eye(classes)
    truths, given = one[labels], one[answers]
    return weights @ (truths * given), weights @ truths, weights @ given


def f1_of(task: Task, parts: tuple[Floats, Floats, Floats]) -> Floats:
    """Turn `f1_parts` into f1: of the positive class if binary, else the mean over the classes that occur or are answered."""
    hits, truths, given = parts
    present = truths + given > 0
    f1 = np.where(present, 2 * hits / np.maximum(truths + given, 1e-300), 0.0)
    if task.kind == "binary":
        return np.where(present[:, 1], f1[:, 1], np.nan)
    return np.asarray(f1.sum(1) / present.sum(1))


def _auc(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    order = np.argsort(scores, kind="stable")
    starts = _group_starts(scores[order])
    wins = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    losses = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(losses, axis=1) - losses / 2
    return np.asarray((wins * below).sum(1) / (wins.sum(1) * losses.sum(1)))


def _ranked(name: str, positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    order = np.argsort(-scores, kind="stable")
    starts = _group_starts(scores[order])
    hits = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    every = np.add.reduceat(weights[:, order], starts, axis=1)
    seen = np.cumsum(every, axis=1)
    if name == "average_precision":
        precision = np.cumsum(hits, axis=1) / np.maximum(seen, 1e-300)
        return np.asarray((precision * hits).sum(1) / hits.sum(1))
    wanted = np.maximum(np.ceil(seen[:, -1:] * TOP_SHARE - 1e-9), 1.0)
    # Rows tied at the cut are taken in part: the expectation over their order, not the luck of the sort.
    taken = np.clip(wanted - (seen - every), 0, every)
    return np.asarray((taken * hits / np.maximum(every, 1e-300)).sum(1) / wanted[:, 0])


def top_rows(scored: Scored) -> npt.NDArray[np.bool_]:
    """Mark the rows that precision_at_k looks at; of rows tied at the cut, the first ones."""
    rows = len(scored.labels)
    mask = np.zeros(rows, dtype=bool)
    mask[np.argsort(-scored.outputs[:, 1], kind="stable")[: max(1, math.ceil(rows * TOP_SHARE - 1e-9))]] = True
    return mask


def _group_starts(ordered: Floats) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _codes(task: Task, labels: npt.NDArray[Any]) -> Codes:
    known = {label: code for code, label in enumerate(task.classes)}
    unknown = sorted({str(label) for label in np.unique(labels) if label not in known})
    if unknown:
        raise ValueError(f"labels must be among the task's classes {list(task.classes)}, got {unknown[:5]} too.")
    return np.array([known[label] for label in labels.tolist()], dtype=np.int64)


def _outputs(task: Task, scores: Any, rows: int) -> Floats:
    array = np.asarray(scores, dtype=float)
    wanted = (rows,) if task.kind == "regression" else (rows, len(task.classes))
    if array.shape == (rows, 1):
        array = array[:, 0]
    if task.kind == "binary" and array.shape == (rows,):
        array = _two_columns(array)
    if array.shape != wanted:
        raise BadScores(f"scores must have shape {wanted}, one row a row asked, got {array.shape}.")
    bad = int((~np.isfinite(array)).reshape(rows, -1).any(1).sum())
    if bad:
        raise BadScores(
            f"scores must be finite, got NaN or infinity in {bad} of {rows} rows; look for missing and huge values in the data."
        )
    return array if task.kind == "regression" else _probabilities(array)


def _two_columns(single: Floats) -> Floats:
    """Read one output of a binary network: a probability of the positive class if all lie in [0, 1], else a logit."""
    if ((single >= 0) & (single <= 1)).all():
        return np.column_stack([1 - single, single])
    return np.column_stack([np.zeros_like(single), single])


def _probabilities(array: Floats) -> Floats:
    fits = (array >= -SUM_TOLERANCE).all() and (np.abs(array.sum(1) - 1) < SUM_TOLERANCE).all()
    if fits:
        return array
    shifted = np.exp(array - array.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
