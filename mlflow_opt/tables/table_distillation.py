"""Small students of a table's model, taught by its probabilities or by the labels: the same student both ways.

A student on soft labels is a classifier like any other: each row is repeated once a class, weighed by the teacher's
probability of that class, which is the cross-entropy with the teacher exactly and needs no loss of its own in any library.

Sources: Bucila et al., "Model compression", 2006; Hinton et al., "Distilling the knowledge in a neural network", 2015
(temperature); Fakoor et al., "Fast, accurate, and simple models for tabular data via augmented distillation", 2020.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_opt.ensembles import voting
from mlflow_opt.records import Task
from mlflow_opt.tables.learners import Fitted

Floats = npt.NDArray[np.float64]
Kind = Literal["lightgbm", "mlp", "linear"]
KINDS: tuple[Kind, ...] = ("lightgbm", "mlp", "linear")

# A class that the teacher all but rules out teaches nothing and costs a row.
_LEAST_WEIGHT = 1e-3
_LEAST = 1e-12


@dataclass(frozen=True)
class Lesson:
    """What a student learns from.

    Args:
        rows: real and new ones.
        targets: probabilities (rows, classes), or values (rows,).
        weights: of the rows, shape (rows,).
    """

    rows: pd.DataFrame
    targets: Floats
    weights: Floats


@dataclass(frozen=True)
class Student:
    """What kind of student, and how large.

    Args:
        kind: `lightgbm`, `mlp` or `linear`.
        trees: of LightGBM.
        leaves: of each tree.
        hidden: units of the perceptron's one hidden layer.
    """

    kind: Kind
    trees: int = 100
    leaves: int = 31
    hidden: int = 64


def soft_lesson(
    rows: pd.DataFrame, labels: npt.NDArray[Any], more: pd.DataFrame, teacher: Callable[[pd.DataFrame], Floats], task: Task, mix: float
) -> Lesson:
    """Let a teacher answer real and new rows; on the real ones its answer is mixed with the truth.

    Args:
        rows: real rows.
        labels: class codes or targets of the real rows.
        more: new rows, or none.
        teacher: gives probabilities or values.
        task: what is predicted.
        mix: share of the truth in the targets of real rows, in [0, 1].
    """
    truth = hard_targets(labels, task)
    targets = mix * truth + (1 - mix) * teacher(rows)
    if not len(more):
        return Lesson(rows, targets, np.ones(len(rows)))
    every = pd.concat([rows, more], ignore_index=True)
    return Lesson(every, np.concatenate([targets, teacher(more)]), np.ones(len(every)))


def hard_lesson(rows: pd.DataFrame, labels: npt.NDArray[Any], task: Task) -> Lesson:
    """Make the lesson that needs no teacher: the real rows and their labels."""
    return Lesson(rows, hard_targets(labels, task), np.ones(len(rows)))


def hard_targets(labels: npt.NDArray[Any], task: Task) -> Floats:
    """Write class codes as probabilities of 0 and 1; targets stay as they are."""
    return np.eye(len(task.classes))[labels] if task.classes else np.asarray(labels, dtype=float)


def teach(student: Student, lesson: Lesson, task: Task, *, temperature: float = 1.0, seed: int = 0) -> Fitted:
    """Train a student on a lesson.

    Args:
        student: its kind and size.
        lesson: rows with probabilities or values.
        task: what is predicted.
        temperature: above 1 softens the targets while the student learns; its answers are sharpened again by the same factor
            (scores before the link are multiplied by it), so that they are probabilities at temperature 1. 1 for a regression.
        seed: of everything random.

    Returns:
        A pipeline that takes the lesson's columns.
    """
    started = time.perf_counter()
    entrance = (_codes if student.kind == "lightgbm" else voting.scaled)(lesson.rows)
    matrix = entrance.fit_transform(lesson.rows)
    with warnings.catch_warnings():
        from sklearn.exceptions import ConvergenceWarning

        # A student that has not converged is a small student; its quality says what that costs.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        last = _classifier(student, matrix, lesson, temperature, seed) if task.classes else _regressor(student, matrix, lesson, seed)
    from sklearn.pipeline import Pipeline

    made = Pipeline([("columns", entrance), ("student", last)])
    return Fitted(made, tuple(lesson.rows.columns), {}, time.perf_counter() - started)


def softened(targets: Floats, temperature: float) -> Floats:
    """Divide the logits of probabilities by a temperature.

    Example:
        >>> softened(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
        [[0.75, 0.25]]
    """
    powers = np.clip(targets, _LEAST, 1) ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _classifier(student: Student, matrix: Any, lesson: Lesson, temperature: float, seed: int) -> Any:
    targets = lesson.targets if temperature == 1 else softened(lesson.targets, temperature)
    places, classes = np.nonzero(targets > _LEAST_WEIGHT)
    weights = targets[places, classes] * lesson.weights[places]
    made = _estimator(student, classifies=True, seed=seed)
    if student.kind == "lightgbm":
        # A leaf holds as many rows as without copies: counted once a class it could hold a single one.
        made.set_params(min_child_samples=round(made.min_child_samples * len(places) / len(targets)))
    made.fit(np.asarray(matrix)[places], classes, sample_weight=weights / weights.mean())
    if temperature != 1:
        _sharpen(made, temperature)
    return made


def _regressor(student: Student, matrix: Any, lesson: Lesson, seed: int) -> Any:
    made = _estimator(student, classifies=False, seed=seed)
    middle, scale = float(lesson.targets.mean()), float(lesson.targets.std()) or 1.0
    if student.kind != "mlp":
        return made.fit(np.asarray(matrix), lesson.targets, sample_weight=lesson.weights)
    # A network learns targets near 0 and 1; what that shifts and scales goes into its last layer.
    made.fit(np.asarray(matrix), (lesson.targets - middle) / scale)
    made.coefs_[-1] = made.coefs_[-1] * scale
    made.intercepts_[-1] = made.intercepts_[-1] * scale + middle
    return made


def _estimator(student: Student, *, classifies: bool, seed: int) -> Any:
    if student.kind == "lightgbm":
        from lightgbm import LGBMClassifier, LGBMRegressor

        quiet: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "verbose": -1, "deterministic": True, "force_row_wise": True}
        kind = LGBMClassifier if classifies else LGBMRegressor
        return kind(n_estimators=student.trees, num_leaves=student.leaves, learning_rate=max(0.03, min(0.1, 10 / student.trees)), **quiet)
    if student.kind == "mlp":
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        network = MLPClassifier if classifies else MLPRegressor
        return network(hidden_layer_sizes=(student.hidden,), early_stopping=True, max_iter=60, random_state=seed)
    from sklearn.linear_model import LogisticRegression, Ridge

    return LogisticRegression(max_iter=500) if classifies else Ridge()


def _sharpen(estimator: Any, factor: float) -> None:
    """Multiply what a classifier computes before its link."""
    if hasattr(estimator, "booster_"):
        booster = estimator.booster_
        for tree, said in enumerate(booster.dump_model()["tree_info"]):
            for leaf in range(int(said["num_leaves"])):
                booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) * factor)
    elif hasattr(estimator, "coefs_"):
        estimator.coefs_[-1] = estimator.coefs_[-1] * factor
        estimator.intercepts_[-1] = estimator.intercepts_[-1] * factor
    else:
        estimator.coef_ = estimator.coef_ * factor
        estimator.intercept_ = estimator.intercept_ * factor


def _codes(rows: pd.DataFrame) -> Any:
    """Make the entrance of boosted trees: ordinal codes for texts; missing numbers stay missing, which trees split on.

    All texts share one vocabulary: a tree's split on codes is the same with gaps between them, and the graph then looks all
    columns up at once.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OrdinalEncoder

    texts, numbers, flags = voting.kinds(rows)
    found = {value for name in texts for value in rows[name].dropna().unique()}
    shared: Any = [np.array(sorted(found), dtype=object)] * len(texts) if all(isinstance(one, str) for one in found) else "auto"
    codes = OrdinalEncoder(categories=shared, handle_unknown="use_encoded_value", unknown_value=-1)
    blocks = [("texts", codes, texts), ("numbers", "passthrough", [*numbers, *flags])]
    return ColumnTransformer([block for block in blocks if block[2]])
