"""What a recipe is kept to as one step of a chain, so that it ends within its share of the time; alone it may do more."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_opt.records import Param

# A step that trains or searches ends that part after this share of its time: its measurement and its verdict come after it.
WORK = 0.55
VERDICT_S = 20.0
_FEWER: Mapping[str, Mapping[str, Param]] = {
    "compile": {"every": False},
    "select_features": {"bootstraps": 2},
    "tune": {"folds": 3, "finalists": 2},
    "regularize": {"trials": 1},
    "nas": {"rival": False, "finalists": 1, "search_epochs": 2},
    "prune": {"rates": "0.5,0.7", "steps": 1},
    "serve": {"trials": 2, "seconds": 0.8},
}
# New weights cannot catch up in a step's few epochs with a network that had as many as it needed; single zeros speed up nothing.
_OF_NETWORKS: Mapping[str, Mapping[str, Param]] = {"regularize": {"start": "given"}, "prune": {"method": "structured"}}
# How often a network is trained, about, and for how many epochs at most.
_TRAININGS = {"regularize": (7, 10), "nas": (3, 12), "prune": (3, 6), "distill": (2, 10)}
_LEAST_EPOCHS = 2


def limits(recipe: str, seconds: float, epoch_s: float, *, network: bool = False) -> dict[str, Param]:
    """Give the parameters that keep a recipe within its time.

    Example:
        >>> limits("prune", 300.0, 10.0)["epochs"], limits("prune", 300.0, 0.0).get("epochs")
        (5, None)

    Args:
        recipe: of the step.
        seconds: that it may take.
        epoch_s: of an epoch of the network at the beginning, 0 if it is not known or nothing is trained in epochs.
        network: whether the step's model is one.
    """
    searched = seconds * WORK
    found: dict[str, Param] = {**_FEWER.get(recipe, {}), **(_OF_NETWORKS.get(recipe, {}) if network else {}), "budget_s": VERDICT_S}
    if recipe in _TRAININGS and epoch_s:
        times, most = _TRAININGS[recipe]
        # A search over networks also trains: half of the time for either.
        searched = searched / 2 if recipe == "nas" else searched
        found["epochs"] = max(_LEAST_EPOCHS, min(most, int(searched / (times * epoch_s))))
    return found | {"time_budget_s": float(int(searched))}


def too_short(recipe: str, seconds: float, epoch_s: float) -> bool:
    """Tell whether a network cannot be trained for even the fewest epochs in the time of a step.

    Args:
        recipe: of the step.
        seconds: that it may take.
        epoch_s: of an epoch, 0 if it is not known.
    """
    return recipe in _TRAININGS and _TRAININGS[recipe][0] * _LEAST_EPOCHS * epoch_s > seconds * WORK
