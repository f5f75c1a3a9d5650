"""MLflow's other doors: the hardware tag on every run, latency as an evaluator, and files hashed where a policy asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import ModelSignature, infer_signature

from mlflow_opt.flavours.model_files import folder_digest
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.plugin.evaluator import LatencyEvaluator
from tests.evidence_factory import Evidence, champion, refused, register, write_evidence

# MLflow's evaluate and its import hooks warn of themselves and of scikit-learn.
_WARNINGS = ("ImportWarning", "FutureWarning", "DeprecationWarning", "PendingDeprecationWarning", "UserWarning")
THIRD_PARTIES = pytest.mark.filterwarnings(*(f"ignore::{name}" for name in _WARNINGS))
# MLflow's function has no annotations.
EVALUATE: Any = mlflow.models.evaluate
ROWS = pd.DataFrame({"a": np.linspace(0, 1, 60), "b": np.linspace(1, 2, 60)})
TARGET = (ROWS["a"] * 3 + 1).rename("target")


def signature() -> ModelSignature:
    return infer_signature(ROWS, TARGET.to_numpy())


def logged_regressor() -> Any:
    from sklearn.linear_model import LinearRegression

    fitted = LinearRegression().fit(ROWS, TARGET)
    return mlflow.sklearn.log_model(fitted, name="model", signature=signature(), pip_requirements=[], serialization_format="cloudpickle")


def test_plugins_are_found_when_read_from_metadata() -> None:
    (evaluator,) = metadata.entry_points(group="mlflow.model_evaluator", name="latency")
    assert evaluator.load() is LatencyEvaluator
    assert "mlflow_opt.plugin.context:HardwareContext" in {
        entry.value for entry in metadata.entry_points(group="mlflow.run_context_provider")
    }


def test_run_is_tagged_with_the_hardware_when_it_starts(tracking_uri: str) -> None:
    with mlflow.start_run() as run:
        pass
    tag = mlflow.MlflowClient(tracking_uri).get_run(run.info.run_id).data.tags["mlflow_opt.hardware"]
    assert set(tag.split("; ")) == {pair for pair in fingerprint().split("; ") if not pair.startswith("threads=")}


@THIRD_PARTIES
def test_evaluate_logs_our_latencies_when_the_evaluator_is_named(tracking_uri: str) -> None:
    info = logged_regressor()
    config = {"default": {"log_explainer": False}, "latency": {"sessions": 2, "calls": 40}}
    with mlflow.start_run() as run:
        result = EVALUATE(
            info.model_uri,
            ROWS.assign(target=TARGET),
            targets="target",
            model_type="regressor",
            evaluators=["default", "latency"],
            evaluator_config=config,
        )
    logged = MlflowClient(tracking_uri).get_run(run.info.run_id).data.metrics
    for name in ("pyfunc_p50_ms", "latency_p50_ms"):
        assert logged[name] == result.metrics[name]
        assert 0 < logged[f"{name}_lo"] <= logged[name] <= logged[f"{name}_hi"]
    assert logged["latency_p50_ms"] < logged["pyfunc_p50_ms"]
    assert "root_mean_squared_error" in logged


@THIRD_PARTIES
def test_evaluate_times_nothing_when_nobody_names_the_evaluator(tracking_uri: str) -> None:
    info = logged_regressor()
    data = ROWS.assign(target=TARGET)
    config = {"log_explainer": False, "log_model_explainability": False}
    result = EVALUATE(info.model_uri, data, targets="target", model_type="regressor", evaluator_config=config)
    assert "root_mean_squared_error" in result.metrics
    assert not [name for name in result.metrics if "p50" in name]


def test_evaluator_passes_over_a_function_when_there_is_no_logged_model(caplog: pytest.LogCaptureFixture) -> None:
    assert LatencyEvaluator().evaluate(dataset=None, evaluator_config={}) is None
    assert "needs a logged model" in caplog.text


def test_evaluator_names_its_settings_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match="got session"):
        LatencyEvaluator().evaluate(dataset=None, evaluator_config={"session": 3}, model_id="m-1")


def test_files_are_held_against_the_evidence_when_the_policy_verifies_them(
    gated: MlflowClient, serve_policy: Callable[[str], None], tracking_uri: str
) -> None:
    serve_policy("churn: {verify_files: true}\n")
    model_id = str(logged_regressor().model_id)
    gated.set_logged_model_tags(model_id, {"mlflow_opt.source_model_id": "m-source"})
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    honest = replace(Evidence("m-source"), tags={"mlflow_opt.model_digest": folder_digest(folder)})
    write_evidence(gated, model_id, honest)
    version = register(gated, "churn", model_id)
    stored = Path(gated.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    (stored / "extra.txt").write_text("changed after it was measured")
    assert "must be those that were measured" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    (stored / "extra.txt").unlink()
    gated.set_registered_model_alias("churn", "champion", version)
    assert champion(gated) == version
