"""How much each row moves a quality metric: its slope in the row's weight (Hampel 1974, "The influence curve and its role").

The mean of the squares over the rows is the metric's variance times the number of rows, their cubes say how skewed it is.
Asked about other answers to the same rows, it also says what one row's metric would lose if it were answered otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mlflow_opt.measurement.scoring import AVERAGED, Floats, Scored, averaged, decided, f1_parts, terms
from mlflow_opt.records import Task

# Slopes of averages are taken over this share of one row's weight.
_NUDGE = 1e-5


def influence(name: str, task: Task, labels: npt.NDArray[np.generic], outputs: Floats, asked: Floats, threshold: float = 0.5) -> Floats:
    """Give the influence of rows on a metric, were they answered as `asked`, all else being as in `outputs`.

    Example:
        >>> task = Task("regression")
        >>> answers = np.array([1.0, 1.0, 1.0, 5.0])
        >>> influence("mae", task, np.zeros(4), answers, answers).round(3).tolist()
        [-1.0, -1.0, -1.0, 3.0]

    Args:
        name: a quality metric of the task, but for accuracy and precision_at_k, whose intervals need none.
        task: what is predicted.
        labels: codes or targets, shape (n,).
        outputs: the model's answers, shape (n, classes) or (n,).
        asked: answers of the same shape; `outputs` itself for the influence of the rows as they are.
        threshold: probability from which a binary model answers the later class.

    Returns:
        shape (n,), in units of the metric; a row's weight moves the metric by this over n.

    """
    if name in AVERAGED:
        total = terms(name, labels, outputs).sum(0)
        step = _NUDGE * terms(name, labels, asked)
        return np.asarray((averaged(name, total + step) - averaged(name, total)) / _NUDGE * len(labels))
    if name == "f1":
        return _f1(task, labels, decided(outputs, threshold), decided(asked, threshold))
    if name == "average_precision":
        return _average_precision(labels == 1, outputs[:, 1], asked[:, 1])
    columns: Iterable[int] = [1] if task.kind == "binary" else range(len(task.classes))
    return np.asarray(np.mean([_area(labels == code, outputs[:, code], asked[:, code]) for code in columns], axis=0))


def pull(name: str, scored: Scored) -> Floats:
    """Give every row's part in a metric of some answers, whose spread over the root of n is the metric's standard error.

    Args:
        name: a quality metric, but for precision_at_k.
        scored: the answers.
    """
    if name == "accuracy":
        return np.asarray(scored.answers == scored.labels, dtype=float)
    return influence(name, scored.task, scored.labels, scored.outputs, scored.outputs, scored.threshold)


def _f1(task: Task, labels: npt.NDArray[np.generic], answers: npt.NDArray[np.int64], asked: npt.NDArray[np.int64]) -> Floats:
    hits, truths, given = f1_parts(len(task.classes), labels, answers, np.ones((1, len(labels))))
    size = np.maximum((truths + given)[0], 1e-300)
    present = (truths + given)[0] > 0
    share = np.array([0.0, 1.0]) if task.kind == "binary" else present / present.sum()
    f1, codes = 2 * hits[0] / size, labels.astype(np.int64)
    return np.asarray(
        len(labels) * (share[codes] * (2 * (codes == asked) - f1[codes]) / size[codes] - share[asked] * f1[asked] / size[asked])
    )


def _area(positive: npt.NDArray[np.bool_], scores: Floats, asked: Floats) -> Floats:
    """DeLong's structural components: a row's placement among the other class, centred and scaled."""
    ups, downs = np.sort(scores[positive]), np.sort(scores[~positive])
    placed = np.where(positive, _placement(downs, asked), 1 - _placement(ups, asked))
    share = positive.mean()
    return np.asarray((placed - _placement(downs, ups).mean()) / np.where(positive, share, 1 - share))


def _average_precision(positive: npt.NDArray[np.bool_], scores: Floats, asked: Floats) -> Floats:
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], positive[order].astype(float)
    last = np.searchsorted(-ranked, -ranked, "right") - 1
    seen, found = last + 1.0, np.cumsum(hit)[last]
    # A row counts in the precision at every positive row that is ranked no higher.
    first = np.searchsorted(-ranked, -asked, "left")
    inverse, level = (np.append(np.cumsum((hit * term)[::-1])[::-1], 0.0)[first] for term in (1 / seen, found / seen**2))
    upto = np.searchsorted(-ranked, -asked, "right")
    precision = np.append(0.0, np.cumsum(hit))[upto] / np.maximum(upto, 1)
    value = hit @ (found / seen) / hit.sum()
    return np.asarray((positive * (precision + inverse - value) - level) * len(scores) / hit.sum())


def _placement(ordered: Floats, scores: Floats) -> Floats:
    """Give the share of `ordered` that lies below each score, ties counted half."""
    below, upto = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return np.asarray((below + upto) / (2 * len(ordered)))
