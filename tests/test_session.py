"""What a recipe does when it is given something wrong, is interrupted, or loses its server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_opt.signature import COULD_NOT_RUN, execute
from recipes.compile import compile
from tests import servers, stripes

ROOT = Path(__file__).resolve().parent.parent
ROWS = 400


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS), "target": np.arange(ROWS) % 2})


def write(folder: Path, table: pd.DataFrame) -> str:
    table.to_parquet(folder / "given.parquet")
    return str(folder / "given.parquet")


def missing_file(folder: Path) -> list[str]:
    return ["--data", str(folder / "nothing.parquet")]


def unreadable(folder: Path) -> list[str]:
    (folder / "given.parquet").write_text("no parquet")
    return ["--data", str(folder / "given.parquet")]


def unknown_target(folder: Path) -> list[str]:
    return ["--data", write(folder, frame()), "--target", "targte"]


def nan_labels(folder: Path) -> list[str]:
    table = frame().astype({"target": float})
    table.loc[3, "target"] = np.nan
    return ["--data", write(folder, table)]


def one_class(folder: Path) -> list[str]:
    return ["--data", write(folder, frame().assign(target=1))]


def few_rows(folder: Path) -> list[str]:
    return ["--data", write(folder, frame().head(20))]


def no_model(folder: Path) -> list[str]:
    return ["--data", write(folder, frame()), "--model", "models:/nobody/3"]


def broken_model(folder: Path) -> list[str]:
    (folder / "bad.onnx").write_bytes(b"no graph")
    return ["--data", write(folder, frame()), "--model", str(folder / "bad.onnx")]


def other_model(folder: Path) -> list[str]:
    return ["--data", write(folder, frame()), "--model", str(stripes.cnn(folder, stripes.pictures(folder, rows=300), epochs=1))]


def unknown_parameter(folder: Path) -> list[str]:
    return ["--data", write(folder, frame()), "--thread", "2"]


def unknown_policy_key(folder: Path) -> list[str]:
    (folder / "policy.yaml").write_text("validation_criteria: [{metric: speedup, minimum: 1.2}]\n")
    return ["--data", write(folder, frame()), "--policy", str(folder / "policy.yaml")]


def unknown_metric(folder: Path) -> list[str]:
    (folder / "policy.yaml").write_text("validation_criteria:\n  - {metric: f2, max_drop: 0.1}\n")
    return ["--data", write(folder, frame()), "--policy", str(folder / "policy.yaml")]


BAD = (
    (missing_file, "nothing.parquet"),
    (unreadable, "given.parquet"),
    (unknown_target, "target"),
    (nan_labels, "1"),
    (one_class, "two different values"),
    (few_rows, "rows"),
    (no_model, "nobody"),
    (broken_model, "bad.onnx"),
    (other_model, "trained on"),
    (unknown_parameter, "threads"),
    (unknown_policy_key, "min"),
    (unknown_metric, "line 2"),
)


@pytest.mark.parametrize(("make", "told"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_compile_says_what_is_wrong_and_registers_nothing_when_given(
    make: object, told: str, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    assert execute(compile, [*make(tmp_path), "--register_as", "bad"]) == COULD_NOT_RUN
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    client = MlflowClient(tracking_uri)
    assert not client.search_registered_models()
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    assert {run.info.status for run in runs} <= {"FAILED"}


def test_compile_says_so_at_once_when_the_tracking_server_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{servers.free_port()}")
    started = time.monotonic()
    try:
        assert execute(compile, []) == COULD_NOT_RUN
    finally:
        mlflow.set_tracking_uri(before)
    assert "tracking server must answer" in capsys.readouterr().err
    assert time.monotonic() - started < 20


def test_compile_ends_its_runs_as_killed_when_interrupted(tmp_path: Path, tracking_uri: str) -> None:
    process = _start(tmp_path, tracking_uri)
    client = MlflowClient(tracking_uri)
    _wait_for_child(client, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    runs = _runs(client)
    assert {run.info.status for run in runs} <= {"KILLED", "FINISHED"}
    assert [run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags] == ["KILLED"]


def test_compile_keeps_what_it_measured_when_the_server_goes_away(tmp_path: Path) -> None:
    with servers.serve(tmp_path / "server") as server:
        process = _start(tmp_path, server.uri)
        _wait_for_child(server.client(), process)
    # The server is down now, in the middle of the run.
    _, told = process.communicate(timeout=240)
    assert process.returncode == COULD_NOT_RUN
    kept = list(tmp_path.glob("mlflow-opt-rescue-*.json"))
    assert len(kept) == 1
    assert kept[0].name in told
    assert json.loads(kept[0].read_text())["measured"][0]["variant"] == "baseline"


def _start(folder: Path, uri: str) -> subprocess.Popen[str]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(3000, 6)), columns=list("abcdef"))
    table["target"] = (table["a"] + rng.normal(size=3000) > 0).astype(int)
    data = write(folder, table)
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    environment.pop("MLFLOW_EXPERIMENT_ID", None)
    command = [sys.executable, "-m", "recipes.compile", "--data", data]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def _wait_for_child(client: MlflowClient, process: subprocess.Popen[str]) -> None:
    """Wait until the baseline's child run has its metrics."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        if any("roc_auc" in run.data.metrics for run in _runs(client)):
            return
        time.sleep(0.3)
    raise AssertionError("no child run within two minutes")


def _runs(client: MlflowClient) -> list:  # type: ignore[type-arg]
    return list(client.search_runs([str(one.experiment_id) for one in client.search_experiments()]))
