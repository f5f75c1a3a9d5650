"""Look over a table before a model is trained on it: columns that say nothing, say too much, or will make trouble later."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt.measurement.scoring import weighted
from mlflow_opt.records import Task
from mlflow_opt.tables import column_codes

logger = logging.getLogger(__name__)

# A column that explains so much of the target alone, or ranks the classes so well, is suspected to hold it.
LEAK_SHARE, LEAK_AUC = 0.9, 0.99
MANY_CATEGORIES = 100
# One column's suspicion needs no more rows than this.
_ROWS = 20_000
# The rarest class has at most this part of an equal share: then the classes are unequal.
_UNEQUAL = 0.6
_SHOWN = 8


@dataclass(frozen=True)
class Audit:
    """What is odd about a table's columns.

    Args:
        constant: columns with one value, missing ones not counted as a second.
        empty: columns without any value.
        twins: column -> an earlier column with the same values.
        infinite: column -> its number of infinite values.
        many: text column -> its number of different values, where there are many.
        dates: columns of dates.
        leaks: column -> how well it alone predicts the target, in words.
        imbalance: the rarest class in words, `""` if the classes are balanced or there are none.
    """

    constant: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    twins: Mapping[str, str] = field(default_factory=dict)
    infinite: Mapping[str, int] = field(default_factory=dict)
    many: Mapping[str, int] = field(default_factory=dict)
    dates: tuple[str, ...] = ()
    leaks: Mapping[str, str] = field(default_factory=dict)
    imbalance: str = ""

    @property
    def useless(self) -> frozenset[str]:
        """Name the columns that no model can gain from."""
        return frozenset((*self.constant, *self.empty, *self.twins))

    @property
    def warnings(self) -> list[str]:
        """Say what may make every figure of a model wrong."""
        return [
            f"Column {name!r} predicts the target almost alone ({how}): if it is known only after the fact, every figure here is too good; "
            f"leave it out (exclude={name} of baseline and select_features)."
            for name, how in self.leaks.items()
        ]

    def findings(self) -> list[str]:
        """Say everything, warnings first, one sentence a matter."""
        said = list(self.warnings)
        said += [self.imbalance] if self.imbalance else []
        said += [f"Without any value, so not used: {listed(self.empty)}."] if self.empty else []
        said += [f"The same value in every row, so not used: {listed(self.constant)}."] if self.constant else []
        said += [f"Copies of another column, so not used: {listed([f'{a} (= {b})' for a, b in self.twins.items()])}."] if self.twins else []
        if self.infinite:
            counts = listed([f"{name} ({count})" for name, count in self.infinite.items()])
            said.append(f"Infinite values in {counts}: trees take them as the largest number; a linear model does without these columns.")
        if self.many:
            counts = listed([f"{name} ({count})" for name, count in self.many.items()])
            said.append(f"Texts with many different values: {counts}; values that training has not seen are answered as unknown.")
        return said


def audit(rows: pd.DataFrame, labels: np.ndarray, task: Task) -> Audit:
    """Look over a table's columns.

    Helps to find what makes a model's figures meaningless before anybody believes them. Does not find a leak that takes two
    columns together, or one that the split carries (rows of one customer on both sides).

    Example:
        >>> rows = pd.DataFrame({"known_later": [0.0, 1.0] * 200, "same": 1, "none": np.nan})
        >>> found = audit(rows, np.array([0, 1] * 200), Task("binary", (0, 1)))
        >>> found.constant, found.empty, list(found.leaks)
        (('same',), ('none',), ['known_later'])

    Args:
        rows: train rows.
        labels: shape (n,).
        task: what is predicted.
    """
    distinct = {str(name): int(rows[name].nunique(dropna=True)) for name in rows}
    missing = rows.isna().any()
    empty = tuple(name for name, count in distinct.items() if count == 0)
    constant = tuple(name for name, count in distinct.items() if count == 1 and not missing[name])
    numbers = [str(name) for name in rows if rows[name].dtype.kind == "f"]
    infinite = {name: int(np.isinf(rows[name].to_numpy()).sum()) for name in numbers}
    dates = tuple(str(name) for name in rows if rows[name].dtype.kind in "mM")
    texts = [name for name in distinct if not column_codes.is_number(rows[name]) and name not in dates]
    usable = [name for name in distinct if name not in (*empty, *constant, *dates)]
    return Audit(
        constant=constant,
        empty=empty,
        twins=_twins(rows[usable]),
        infinite={name: count for name, count in infinite.items() if count},
        many={name: distinct[name] for name in texts if distinct[name] > MANY_CATEGORIES},
        dates=dates,
        leaks=_leaks(rows[usable], labels, task),
        imbalance=imbalance(labels, task),
    )


def suspicions(rows: pd.DataFrame, labels: np.ndarray, task: Task) -> list[str]:
    """Name the columns that may hold the target, in the log at once and for the report: whoever searches finds the leak first."""
    found = audit(rows, labels, task).warnings
    for text in found:
        logger.warning("%s", text)
    return found


def imbalance(labels: np.ndarray, task: Task) -> str:
    """Name the rarest class where the classes are unequal enough to mislead accuracy, `""` otherwise.

    Example:
        >>> imbalance(np.array(["no"] * 9 + ["yes"]), Task("binary", ("no", "yes")))
        "The classes are unequal: 10.0% of the train rows are 'yes' (1 in 10), so always answering 'no' has an accuracy of 0.900."
    """
    if not task.classes:
        return ""
    values, counts = np.unique(labels, return_counts=True)
    share, rare, common = counts.min() / counts.sum(), values[counts.argmin()], values[counts.argmax()]
    if share * len(values) > _UNEQUAL:
        return ""
    return (
        f"The classes are unequal: {share:.1%} of the train rows are {_plain(rare)!r} (1 in {1 / share:.0f}), so always answering "
        f"{_plain(common)!r} has an accuracy of {counts.max() / counts.sum():.3f}."
    )


def listed(names: Sequence[str]) -> str:
    """List names, the first few of many."""
    shown = ", ".join(map(str, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _twins(rows: pd.DataFrame) -> dict[str, str]:
    seen: dict[bytes, str] = {}
    found = {}
    for name in rows:
        column = rows[name]
        # Texts and numbers never equal each other, and a copy in another number type is a copy.
        values = column.astype(float) if column_codes.is_number(column) else column.astype(object)
        key = pd.util.hash_pandas_object(values, index=False).to_numpy().tobytes()
        if key in seen:
            found[str(name)] = seen[key]
        else:
            seen[key] = str(name)
    return found


def _leaks(rows: pd.DataFrame, labels: np.ndarray, task: Task) -> dict[str, str]:
    some = slice(0, _ROWS)
    codes = column_codes.coded(rows.iloc[some], labels[some], task)
    truth = _truth(labels[some], task)
    found = {}
    for name, column in zip(rows.columns, codes.T, strict=True):
        answers = _alone(column, truth)
        share = 1 - float(((truth - answers) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum())
        if share >= LEAK_SHARE:
            found[str(name)] = f"it explains {share:.1%} of it on rows that it was not fitted on"
        elif task.kind == "binary":
            area = float(weighted("roc_auc", task, truth[:, 1].astype(int), answers, np.ones((1, len(answers))))[0])
            found |= {str(name): f"ROC-AUC {area:.4f} on rows that it was not fitted on"} if area >= LEAK_AUC else {}
    return found


def _truth(labels: np.ndarray, task: Task) -> np.ndarray:
    if task.classes:
        return np.asarray(np.eye(len(task.classes))[column_codes.target_codes(labels, task)])
    # Ranks: a few huge values would otherwise be all that there is to explain.
    return np.asarray(column_codes.leading(labels, task)[:, None])


def _alone(codes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Answer each half of the rows with the other half's mean over the rows of the same code."""
    half = column_codes.random_half(np.arange(len(codes)))
    answers: np.ndarray = np.empty_like(truth)
    for mine, others in ((half, ~half), (~half, half)):
        counts = np.bincount(codes[others], minlength=codes.max() + 1)
        for at in range(truth.shape[1]):
            sums = np.bincount(codes[others], weights=truth[others, at], minlength=codes.max() + 1)
            means = np.where(counts > 0, sums / np.maximum(counts, 1), truth[others, at].mean())
            answers[mine, at] = means[codes[mine]]
    return answers


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
