"""What a search of a table's model may propose: parameters of its own kind, of other kinds, or a user's own space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_opt.records import Task
from mlflow_opt.search import search_spaces
from mlflow_opt.search.search_spaces import Dimension, Suggest
from mlflow_opt.tables import model_families
from mlflow_opt.tables.learners import Learner

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# The parameter that names the family where several are searched.
FAMILY = "family"


@dataclass(frozen=True)
class Family:
    """One kind of model that a search may choose, and what it may change of it."""

    name: str
    learner: Learner
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class Proposal:
    """What a trial is to train."""

    family: Family
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """All that a search may propose.

    Args:
        families: at least one; the first is the model's own.
        own: the user's space for the one family, None for the families' dimensions.
        threads: that an estimator trains with, 0 to leave it as it is.
    """

    families: tuple[Family, ...]
    own: Suggest | None = None
    threads: int = 0

    def propose(self, trial: BaseTrial) -> Proposal:
        """Ask a trial what to train; ask Optuna's FixedTrial to know what an earlier one trained."""
        family = self.families[0]
        if len(self.families) > 1:
            named = {one.name: one for one in self.families}
            family = named[trial.suggest_categorical(FAMILY, list(named))]
        if self.own is not None:
            params = self.own(trial)
        else:
            params = {one.name: one.suggest(trial, self.prefix(family)) for one in family.dimensions}
        known = family.learner.params()
        strange = sorted(set(params) - set(known))
        if strange:
            raise ValueError(f"a space must give parameters of {family.learner.kind}, got {', '.join(strange)}; it has {', '.join(known)}.")
        fixed = search_spaces.fixed_for(family.learner.kind, known, set(params))
        threads = {"n_jobs": self.threads} if self.threads and "n_jobs" in known else {}
        return Proposal(family, {**fixed, **threads, **params})

    def prefix(self, family: Family) -> str:
        """Give what a family's parameters are prefixed with in a study."""
        return f"{family.name}_" if len(self.families) > 1 else ""

    def of_models(self) -> list[dict[str, Any]]:
        """Write every family's own parameters as a study names them, the model's own first."""
        found = []
        for family in self.families:
            known = search_spaces.own_values(family.learner.kind, family.learner.params())
            named = {self.prefix(family) + name: value for name, value in known.items()}
            found.append(named | ({FAMILY: family.name} if len(self.families) > 1 else {}))
        return found

    def distributions(self) -> dict[str, Any]:
        """Give Optuna's distributions of all parameters.

        Raises:
            ValueError: the user's space gives what the estimator does not have.
        """
        from optuna.distributions import CategoricalDistribution

        if self.own is not None:
            return search_spaces.distributions_of(lambda trial: dict(self.propose(trial).params))
        found: dict[str, Any] = {}
        for family in self.families:
            prefix, dimensions = self.prefix(family), family.dimensions

            def suggest(trial: Any, prefix: str = prefix, dimensions: tuple[Dimension, ...] = dimensions) -> dict[str, Any]:
                return {one.name: one.suggest(trial, prefix) for one in dimensions}

            found |= search_spaces.distributions_of(suggest)
        if len(self.families) > 1:
            found[FAMILY] = CategoricalDistribution([one.name for one in self.families])
        return found


def families_of(learner: Learner, rows: pd.DataFrame, task: Task, *, timed: bool, seed: int, every: bool = False) -> tuple[Family, ...]:
    """List the families that a search may choose from, the model's own first.

    Args:
        learner: how the model is trained.
        rows: train rows, which set the ranges.
        task: what is predicted.
        timed: whether latency counts too.
        seed: of the other families' estimators.
        every: also other families than the model's own.

    Raises:
        ValueError: no ranges are known for the model.
    """
    named = {"own": learner} | (model_families.other_learners(learner, rows, task, seed) if every else {})
    return tuple(
        Family(name, one, search_spaces.dimensions_for(one.kind, one.params(), len(rows), timed=timed)) for name, one in named.items()
    )
