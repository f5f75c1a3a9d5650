"""Latency as an MLflow evaluator: `mlflow.models.evaluate(..., evaluators=["default", "latency"])`.

The same stopwatch as everywhere here: fresh processes, one distinct row a call. It says what a model costs on this
machine; it is no evidence for a promotion, which needs a reference measured beside it (`mlflow-opt gate`).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

from mlflow_opt.records import Quantity

logger = logging.getLogger(__name__)
_DEFAULTS = {"sessions": 3, "calls": 200, "threads": 1}


class LatencyEvaluator(ModelEvaluator):
    """MLflow's evaluator plugin that measures `latency_p50_ms` (the model's own call) and `pyfunc_p50_ms` (MLflow's predict).

    Use it to see what MLflow's schema check costs beside the model itself. It needs a logged model (`models:/...`),
    which it loads again in fresh processes; a plain function has none and is passed over with a warning.

    Example:
        >>> LatencyEvaluator().can_evaluate(model_type="classifier", evaluator_config={})
        True

    """

    # MLflow asks with these names.
    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Mapping[str, Any], **_: Any) -> bool:
        """Tell that any type of model can be timed, but only where someone named this evaluator."""
        del model_type, evaluator_config
        # Where nobody names evaluators MLflow takes every one that is installed, and asks from this function of its own. Who
        # installs a plugin has not asked for seconds of timing in every evaluation.
        return sys._getframe(1).f_code.co_name != "resolve_evaluators_and_configs"

    def evaluate(
        self, *, dataset: Any, evaluator_config: Mapping[str, Any], model_id: str | None = None, **_: Any
    ) -> EvaluationResult | None:
        """Time the model on the data set's rows; MLflow logs what is returned.

        Args:
            dataset: MLflow's evaluation data set; its features are the rows.
            evaluator_config: `sessions` (3), `calls` a session (200), `threads` a call may use (1).
            model_id: the logged model.
            **_: what else MLflow hands to evaluators.

        Raises:
            ValueError: an unknown setting.

        """
        unknown = sorted(set(evaluator_config) - set(_DEFAULTS))
        if unknown:
            raise ValueError(f"latency takes the settings {', '.join(_DEFAULTS)}, got {', '.join(unknown)}.")
        if not model_id:
            logger.warning("Latency needs a logged model, which fresh processes can load; give models:/... instead of a function.")
            return None
        # MLflow's class has no annotations.
        result: Any = EvaluationResult
        found: EvaluationResult = result(
            metrics=_measured(model_id, dataset.features_data, {**_DEFAULTS, **evaluator_config}), artifacts={}
        )
        return found


def _measured(model_id: str, rows: Any, settings: Mapping[str, int]) -> dict[str, float]:
    import pandas as pd
    from mlflow.artifacts import download_artifacts

    from mlflow_opt.measurement.stopwatch import PYFUNC_LOADER, Entry, time_models

    with tempfile.TemporaryDirectory() as folder:
        path = download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=folder)
        entries = [Entry(path, PYFUNC_LOADER)]
        if isinstance(rows, pd.DataFrame):
            # The model's own call is prepared from a table; an array goes through pyfunc only.
            entries.append(Entry(path))
        timings = time_models(entries, rows, sessions=settings["sessions"], threads=settings["threads"], calls=settings["calls"])
    metrics = _three("pyfunc_p50_ms", timings.latency(0))
    if len(entries) == 1:
        return metrics
    metrics |= _three("latency_p50_ms", timings.latency(1))
    for name, share in (("latency_p95_ms", 0.95), ("latency_p99_ms", 0.99)):
        if timings.resolves(1, share):
            metrics |= _three(name, timings.latency(1, share))
    return metrics


def _three(name: str, quantity: Quantity) -> dict[str, float]:
    return {name: quantity.value, f"{name}_lo": quantity.lo, f"{name}_hi": quantity.hi}
