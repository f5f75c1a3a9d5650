from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Live servers, gated and not.
pytest_plugins = ["tests.servers"]


def pytest_configure() -> None:
    # A test never reports to anyone, and never writes into the store of the person who runs it.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in (
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_OPT_POLICY",
        "MLFLOW_OPT_DEBUG",
    ):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a program sets up for its terminal, so that the next test can still capture the log."""
    loggers = [logging.getLogger(name) for name in ("mlflow_opt", "recipes", "__main__", "mlflow.models.signature")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a migrated, empty sqlite database once: the migrations take longer than most tests."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give a sqlite store of the test's own, with its artifacts in the test's folder, and make it MLflow's default."""
    import mlflow

    folder = tmp_path / "tracking"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(folder)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.MlflowClient(uri).create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    yield uri
    mlflow.set_tracking_uri(before)
