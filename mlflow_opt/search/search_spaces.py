"""What a search may change: the parameters of each kind of estimator, their ranges, and a user's own space from a file.

A range is made for the table (a leaf of 200 rows means nothing on 300 rows) and widened to hold the model's own value, so
that a search can begin where the model is.

References: the ranges follow Probst, Boulesteix & Bischl 2019, "Tunability: importance of hyperparameters of machine
learning algorithms", and LightGBM's documentation, "Parameters tuning".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlflow_opt.measurement.own_metrics import function_of

# Trial -> parameters, as Optuna's users write it.
Suggest = Callable[[Any], dict[str, Any]]
Value = str | int | float | bool | None

# A boosting model stops early, so this is only the end of its patience.
MOST_ROUNDS = 2000


@dataclass(frozen=True)
class Dimension:
    """One parameter's range, or its choices.

    Args:
        name: of the parameter.
        kind: `float`, `int` or `choice`.
        low: smallest value.
        high: largest value.
        log: whether the scale is logarithmic.
        choices: the values of a choice.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()

    def suggest(self, trial: Any, prefix: str = "") -> Any:
        """Ask a trial for a value."""
        name = prefix + self.name
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.choices)
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holding(self, value: Any) -> Dimension:
        """Widen it to hold a value, where it can.

        Example:
            >>> real("C", 0.01, 10.0).holding(50.0).high
            50.0
        """
        if self.kind == "choice":
            return self if value in self.choices else replace(self, choices=(*self.choices, value))
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.log and value <= 0):
            return self
        return replace(self, low=min(self.low, value), high=max(self.high, value))


def real(name: str, low: float, high: float, *, log: bool = True) -> Dimension:
    """Make a range of numbers, logarithmic unless told otherwise."""
    return Dimension(name, "float", low, high, log)


def whole(name: str, low: int, high: int, *, log: bool = True) -> Dimension:
    """Make a range of whole numbers, logarithmic unless told otherwise."""
    return Dimension(name, "int", low, max(low + 1, high), log)


def choice(name: str, *choices: Value) -> Dimension:
    """Make a choice."""
    return Dimension(name, "choice", choices=choices)


def dimensions_for(kind: str, params: Mapping[str, Any], rows: int, *, timed: bool = False) -> tuple[Dimension, ...]:
    """List what is worth changing in an estimator.

    Example:
        >>> [one.name for one in dimensions_for("Ridge", {"alpha": 1.0}, 500)]
        ['alpha']

    Args:
        kind: name of the estimator's class.
        params: its own parameters; ranges are widened to hold them.
        rows: that it trains on.
        timed: whether latency counts too; then the number of trees is searched instead of stopped early.

    Raises:
        ValueError: no space is known for this kind.
    """
    found = _boosting(kind, rows, timed) or _forest(kind, rows) or _linear(kind)
    if not found:
        raise ValueError(
            f"tune knows the ranges of LightGBM, XGBoost, scikit-learn's forests and linear models, not of {kind}; "
            "write them as a function trial -> parameters in a Python file and give space=path.py:function."
        )
    known = own_values(kind, params)
    return tuple(one.holding(known[one.name]) if one.name in known else one for one in found if one.name in params)


def own_values(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Give an estimator's own parameters as the space spells them: what LightGBM does not use is switched off."""
    known = dict(params)
    if kind.startswith("LGBM") and not known.get("subsample_freq"):
        known["subsample"] = 1.0
    if kind.startswith("XGB"):
        # XGBoost keeps None where its own default holds.
        defaults = {"learning_rate": 0.3, "max_depth": 6, "min_child_weight": 1.0, "subsample": 1.0, "colsample_bytree": 1.0}
        defaults |= {"reg_lambda": 1.0, "reg_alpha": 0.0, "n_estimators": 100}
        known |= {name: value for name, value in defaults.items() if known.get(name) is None}
    return known


def fixed_for(kind: str, params: Mapping[str, Any], searched: Collection[str]) -> dict[str, Any]:
    """Give what must be set beside what is searched: a cap on rounds, and what makes a searched parameter count at all.

    Args:
        kind: name of the estimator's class.
        params: its own parameters.
        searched: names of the parameters that a trial sets.
    """
    found: dict[str, Any] = {}
    if kind.startswith("LGBM") and "subsample" in searched:
        found["subsample_freq"] = params.get("subsample_freq") or 1
    if kind.startswith(("LGBM", "XGB")) and "n_estimators" not in searched:
        found["n_estimators"] = max(MOST_ROUNDS, own_values(kind, params)["n_estimators"])
    return found


def distributions_of(suggest: Suggest) -> dict[str, Any]:
    """Ask a space for one proposal and give Optuna's distributions of what it asked for.

    Raises:
        ValueError: it gave no parameters, or asked for none.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    # A user's function may give anything.
    found: object = suggest(trial)
    if not isinstance(found, dict) or not trial.distributions:
        raise ValueError(
            f"a space must ask the trial for values and return them as a dictionary, got {found!r}; see Optuna's suggest_float."
        )
    return dict(trial.distributions)


def within(params: Mapping[str, Any], distributions: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of some parameters those that a space knows, numbers moved to the nearest end of its range.

    Args:
        params: of a model or of an earlier trial.
        distributions: Optuna's, by name.
    """
    found: dict[str, Any] = {}
    for name, distribution in distributions.items():
        if name not in params:
            continue
        value = params[name]
        if hasattr(distribution, "choices"):
            if value in distribution.choices:
                found[name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = type(distribution.low)(min(max(value, distribution.low), distribution.high))
    return found


def read_space(reference: str) -> Suggest:
    """Load a user's own space from `path.py:function`; its code runs in this process and in every worker.

    Args:
        reference: a Python file and a function of one Optuna trial in it, which returns the estimator's parameters.

    Raises:
        ValueError: not of that form, no such file or function, or it does not take one argument.
    """
    function: Suggest = function_of(reference, "space", ("trial",))
    return function


def _boosting(kind: str, rows: int, timed: bool) -> list[Dimension]:
    if not kind.startswith(("LGBM", "XGB")):
        return []
    common = [real("learning_rate", 0.01, 0.3), real("subsample", 0.5, 1.0, log=False), real("colsample_bytree", 0.3, 1.0, log=False)]
    common += [real("reg_lambda", 1e-3, 100.0), real("reg_alpha", 1e-3, 10.0)]
    if timed:
        common.append(whole("n_estimators", 20, MOST_ROUNDS // 2))
    if kind.startswith("LGBM"):
        leaves = max(16, min(255, rows // 20))
        return [*common, whole("num_leaves", 4, leaves), whole("min_child_samples", 2, max(20, min(200, rows // 20)))]
    return [*common, whole("max_depth", 2, 10, log=False), real("min_child_weight", 0.5, 100.0)]


def _forest(kind: str, rows: int) -> list[Dimension]:
    if kind not in {f"{name}{task}" for name in ("RandomForest", "ExtraTrees") for task in ("Classifier", "Regressor")}:
        return []
    return [
        whole("n_estimators", 50, 500),
        choice("max_features", "sqrt", 0.2, 0.35, 0.5, 0.75, 1.0),
        whole("min_samples_leaf", 1, max(5, min(64, rows // 50))),
        choice("max_depth", None, 6, 10, 16, 24),
    ]


def _linear(kind: str) -> list[Dimension]:
    spaces = {
        ("LogisticRegression", "LinearSVC", "LinearSVR"): [real("C", 1e-4, 1e3)],
        ("Ridge", "RidgeClassifier"): [real("alpha", 1e-4, 1e4)],
        ("Lasso",): [real("alpha", 1e-6, 1e2)],
        ("ElasticNet",): [real("alpha", 1e-6, 1e2), real("l1_ratio", 0.0, 1.0, log=False)],
        ("SGDClassifier", "SGDRegressor"): [real("alpha", 1e-7, 1e-1), choice("penalty", "l2", "l1", "elasticnet")],
    }
    return next((found for kinds, found in spaces.items() if kind in kinds), [])
