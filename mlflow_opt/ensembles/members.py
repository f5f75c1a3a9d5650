"""The members of an ensemble, wherever they are: inside a scikit-learn ensemble, or registered as versions of their own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_opt import models
from mlflow_opt.export import exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.flavours.contracts import columns_of
from mlflow_opt.measurement.scoring import score
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from mlflow_opt.tables import learner_files, learners
from mlflow_opt.tables.learners import Fitted, Learner

logger = logging.getLogger(__name__)

KINDS = ("Voting", "Stacking", "Bagging")


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Args:
        name: unique in its pool.
        source: the trained estimator with its columns, or a model of any flavour.
        learner: how another one like it is trained; None where nobody knows.
    """

    name: str
    source: Fitted | Model
    learner: Learner | None = None

    def scores(self, rows: pd.DataFrame, task: Task) -> np.ndarray:
        """Give probabilities (rows, classes), or values (rows,)."""
        raw = self.source.scores(rows) if isinstance(self.source, Fitted) else self.source.predict(rows)
        some = np.asarray(task.classes)[np.zeros(len(rows), dtype=int)] if task.classes else np.zeros(len(rows))
        # The scorer knows what raw scores are: probabilities, logits, one column or two.
        return np.asarray(score(task, some, raw).outputs)

    def graph(self, example: pd.DataFrame, task: Task, folder: Path) -> OnnxGraph:
        """Export it; an estimator is saved in the folder on the way.

        Raises:
            ValueError: it has no ONNX form.
        """
        native = learner_files.save(self.source, example, folder) if isinstance(self.source, Fitted) else self.source
        return exporting.to_onnx(native, example, task)


@dataclass(frozen=True)
class Pool:
    """The members to choose from.

    Args:
        kind: of the ensemble that they come from: `voting`, `stacking`, `bagging` or `versions`.
        members: at least two.
        weights: with which the ensemble averages their scores, empty where it does something else.
    """

    kind: str
    members: tuple[Member, ...]
    weights: tuple[float, ...] = ()

    @property
    def trainable(self) -> bool:
        """Tell whether every member can be trained again on other rows."""
        return all(member.learner is not None for member in self.members)

    @property
    def names(self) -> list[str]:
        """Name the members."""
        return [member.name for member in self.members]

    def joined(self, weights: Sequence[int], task: Task) -> Fitted | None:
        """Build scikit-learn's voting ensemble of the members with a weight, already trained; None for versions of any flavour."""
        kept = [(one, weight) for one, weight in zip(self.members, weights, strict=True) if weight]
        sources = [one.source for one, _ in kept if isinstance(one.source, Fitted)]
        if len(sources) < len(kept):
            return None
        made = voting([(one.name, source.estimator) for (one, _), source in zip(kept, sources, strict=True)], task, [w for _, w in kept])
        made.feature_names_in_ = np.array(sources[0].columns, dtype=object)
        return Fitted(made, sources[0].columns, {}, 0.0)


def pool_of(model: Model) -> Pool:
    """Take a scikit-learn ensemble apart: voting, stacking or bagging, at the end of a pipeline or alone.

    Args:
        model: scikit-learn, or a variant that carries such a model. What a stacking ensemble's last estimator learnt is left out:
            whole-number weights take its place.

    Raises:
        ValueError: it is no ensemble of models, or a member gives no probabilities.
    """
    native = learners.native_of(model)
    estimator = native.runtime.core if native.flavour == "sklearn" else native.native
    before, ensemble = _last(estimator)
    kind = next((one for one in KINDS if type(ensemble).__name__ in (f"{one}Classifier", f"{one}Regressor")), "")
    if not kind:
        raise ValueError(
            f"prune_ensemble chooses among the models of a {', '.join(KINDS[:-1])} or {KINDS[-1]} ensemble, got {type(ensemble).__name__}; "
            "give such a model, or members= with registered versions; a forest or boosted trees are made smaller by `prune`."
        )
    columns = columns_of(native.signature, getattr(estimator, "feature_names_in_", None))
    if columns is None:
        raise ValueError(f"the model '{model.uri or model.path}' must name its columns; save it with a signature of a table.")
    entrance = [] if native.runtime.frame else [_matrix_of(columns)]
    parts = _bagged(ensemble, columns, alone=not before) if kind == "Bagging" else _listed(ensemble)
    found = [
        Member(name, _fitted([*(picked or entrance), *before], one, columns), _learner([*entrance, *before], template, columns))
        for name, one, template, picked in parts
    ]
    _require_probabilities(found, hasattr(ensemble, "classes_"))
    if len(found) < 2:
        raise ValueError(f"an ensemble has at least two members to choose among, this {type(ensemble).__name__} has {len(found)}.")
    return Pool(kind.lower(), tuple(found), _weights_of(kind, ensemble))


def pool_of_versions(uris: Sequence[str], threads: int) -> Pool:
    """Load registered versions, of any flavours, as the members of an ensemble that does not exist yet.

    Raises:
        ValueError: fewer than two, or they take different columns.
    """
    if len(uris) < 2:
        raise ValueError(
            f"members must name at least two models, got '{', '.join(uris)}'; separate them by commas: models:/a/1,models:/b/2."
        )
    loaded = [models.load(uri, threads) for uri in uris]
    asked = [columns_of(one.signature, None) for one in loaded]
    for uri, columns in zip(uris, asked, strict=True):
        if columns is None or sorted(map(str, columns)) != sorted(map(str, asked[0] or [])):
            raise ValueError(
                f"members must take the same columns of a table, '{uris[0]}' takes {asked[0]} and '{uri}' takes {columns}; "
                "give versions that were trained on one table and saved with its signature."
            )
    names = [re.sub(r"\W+", "_", uri.removeprefix("models:")).strip("_") for uri in uris]
    found = [
        Member(f"{name}_{at}" if names.count(name) > 1 else name, one, _learner_of(one))
        for at, (name, one) in enumerate(zip(names, loaded, strict=True))
    ]
    return Pool("versions", tuple(found), (1.0,) * len(found))


def voting(members: Sequence[tuple[str, Any]], task: Task, weights: Sequence[int] | None = None) -> Any:
    """Put trained estimators together as scikit-learn's own voting ensemble, as `fit` would leave it.

    Args:
        members: name and trained estimator; a classifier was trained on class codes or on labels of the same order.
        task: its classes become the ensemble's.
        weights: one a member; all alike if None.
    """
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import Bunch

    given = list(weights) if weights is not None else None
    made = VotingClassifier(list(members), voting="soft", weights=given) if task.classes else VotingRegressor(list(members), weights=given)
    made.estimators_ = [one for _, one in members]
    made.named_estimators_ = Bunch(**dict(members))
    if task.classes:
        made.le_ = LabelEncoder().fit(np.asarray(task.classes))
        made.classes_ = made.le_.classes_
    return made


# Name, trained member, template (None where another one would be another model), and the step that picks its columns.
_Part = tuple[str, Any, Any, list[tuple[str, Any]]]


def _listed(ensemble: Any) -> list[_Part]:
    kept = [(name, one) for name, one in ensemble.estimators if not isinstance(one, str)]
    return [(name, one, template, []) for (name, template), one in zip(kept, ensemble.estimators_, strict=True)]


def _bagged(ensemble: Any, columns: Sequence[Any], *, alone: bool) -> list[_Part]:
    found: list[_Part] = []
    for at, (one, wanted) in enumerate(zip(ensemble.estimators_, ensemble.estimators_features_, strict=True)):
        every = np.array_equal(wanted, np.arange(ensemble.n_features_in_))
        if not every and not alone:
            raise ValueError(
                "members of a bagging ensemble on some columns of a pipeline have no export; use max_features=1.0, or no pipeline."
            )
        found.append((f"member_{at}", one, None, [_matrix_of([columns[place] for place in wanted])] if alone else []))
    return found


def _weights_of(kind: str, ensemble: Any) -> tuple[float, ...]:
    if kind == "Stacking" or getattr(ensemble, "voting", "soft") == "hard":
        return ()
    given = getattr(ensemble, "weights", None)
    if given is None:
        return (1.0,) * len(ensemble.estimators_)
    kept = [one for one, (_, member) in zip(given, ensemble.estimators, strict=True) if not isinstance(member, str)]
    return tuple(float(one) for one in kept)


def _matrix_of(columns: Sequence[Any]) -> tuple[str, Any]:
    from sklearn.compose import ColumnTransformer

    # What it passes through does not matter to it, only the names do.
    empty = pd.DataFrame(np.zeros((1, len(columns))), columns=list(columns))
    return "matrix", ColumnTransformer([("all", "passthrough", list(columns))]).fit(empty)


def _last(estimator: Any) -> tuple[list[tuple[str, Any]], Any]:
    before: list[tuple[str, Any]] = []
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            before += estimator.steps[:-1]
            estimator = estimator.steps[-1][1]
        else:
            return before, estimator


def _fitted(steps: list[tuple[str, Any]], estimator: Any, columns: Sequence[Any]) -> Fitted:
    return Fitted(_chain(steps, estimator), tuple(columns), {}, 0.0)


def _chain(steps: list[tuple[str, Any]], estimator: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return Pipeline([*steps, ("member", estimator)]) if steps else estimator


def _learner(steps: list[tuple[str, Any]], template: Any, columns: Sequence[Any]) -> Learner | None:
    if template is None:
        return None
    from sklearn.base import clone

    whole = clone(_chain(steps, template))
    try:
        learners.with_columns(whole, columns)
    except ValueError as why:
        logger.info("The ensemble's members cannot be trained again, so they are compared on the calibration rows alone: %s", why)
        return None
    return Learner(whole, tuple(columns))


def _learner_of(model: Model) -> Learner | None:
    try:
        return learners.learner_of(model)
    except ValueError as why:
        logger.info("%s cannot be trained again, so the members are compared on the calibration rows alone: %s", model.uri, why)
        return None


def _require_probabilities(found: Sequence[Member], classifies: bool) -> None:
    without = [
        one.name for one in found if isinstance(one.source, Fitted) and classifies and not hasattr(one.source.estimator, "predict_proba")
    ]
    if without:
        raise ValueError(
            f"members must give probabilities to be averaged, {', '.join(without)} give none; use estimators with predict_proba."
        )
