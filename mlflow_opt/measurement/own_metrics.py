"""A user's own quality metric: a function in a file of theirs."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_opt import metrics

Function = Callable[..., Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OwnMetric:
    """A user's own metric: its name (`own_profit`) and function(labels, scores) -> float, larger is better."""

    name: str
    function: Function


def read_own(reference: str) -> OwnMetric:
    """Load a user's metric from `path.py:function`; its code runs in this process.

    Args:
        reference: a Python file and a function of (labels, scores) in it, which returns a number; larger is better.

    Raises:
        ValueError: not of that form, no such file or function, or it does not take two arguments.

    """
    function = function_of(reference, "metric", ("labels", "scores"))
    return OwnMetric(metrics.OWN_PREFIX + reference.rpartition(":")[2], function)


def function_of(reference: str, what: str, takes: tuple[str, ...]) -> Function:
    """Load a user's function from `path.py:function`; its code runs in this process.

    Args:
        reference: a Python file and a function in it.
        what: the function's part here, for messages: `metric`, `space`.
        takes: what it is called with.

    Raises:
        ValueError: not of that form, no such file or function, or it takes another number of arguments.

    """
    path, separator, name = reference.rpartition(":")
    if not separator or not name.isidentifier():
        raise ValueError(f"{what} must be path.py:function, got '{reference}'; for example {what}=profit.py:profit.")
    if not Path(path).is_file():
        raise ValueError(f"{what} must name a Python file, got '{path}', which does not exist.")
    spec = importlib.util.spec_from_file_location(f"mlflow_opt_own_{name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{what} must name a Python file, got '{path}'; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    # Where the source of a class in it is looked for.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Function | None = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{what} must name a function of {path}, which has no function '{name}'.")
    if len(inspect.signature(function).parameters) != len(takes):
        raise ValueError(f"a {what} takes ({', '.join(takes)}), {path}:{name} takes {inspect.signature(function)}.")
    return function


def call_own(metric: OwnMetric, labels: npt.NDArray[Any], outputs: Floats) -> float:
    """Call a user's metric and insist on a number."""
    value = metric.function(labels, outputs)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{metric.name} must return a number, got {type(value).__name__}; return float(...).")
    return float(value)
