"""One row over HTTP: a model behind `mlflow models serve`, behind this server, and its successor there; up together, asked in turns."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_opt.records import Quantity
from mlflow_opt.rows.batches import Batch
from mlflow_opt.runs import tracking
from mlflow_opt.serving.contender import free_port, mlflow_command, our_command, running
from mlflow_opt.serving.load import closed_loop, request_bytes
from mlflow_opt.serving.settings import Settings, with_tag
from mlflow_opt.serving.study import bodies

_ROUNDS, _SECONDS, _ROWS = 7, 0.7, 200


@dataclass(frozen=True)
class ServedLatency:
    """Median milliseconds from request to answer of one connection: before, by the server alone, after; and the share saved."""

    before: Quantity
    server: Quantity
    after: Quantity
    saved: Quantity


def compare(before: Path, after: Path, rows: Batch, settings: Settings) -> ServedLatency:
    """Measure what a client sees of a model under MLflow's server and of its successor under ours.

    Args:
        before: folder of the model as it was.
        after: folder of the model as it is now.
        rows: to ask with, one a request.
        settings: of our server.

    Raises:
        RuntimeError: a server does not come up, or a request fails.
    """
    asked = [request_bytes(body) for body in bodies(rows, _ROWS)]
    ports = (free_port(), free_port(), free_port())
    ours = [our_command(str(model), settings, port) for model, port in ((before, ports[1]), (after, ports[2]))]
    commands = (mlflow_command(str(before), ports[0]), *ours)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for port, command in zip(ports, commands, strict=True):
            stack.enter_context(running(command, port, Path(folder) / f"{port}.log"))
            closed_loop(port, asked, 1, _SECONDS)
        rounds = [[closed_loop(port, asked, 1, _SECONDS) for port in ports] for _ in range(_ROUNDS)]
    failed = sum(load.failed for each in rounds for load in each)
    if failed:
        raise RuntimeError(f"served latency needs every request answered, {failed} failed; try the model with `mlflow models serve`.")
    times = np.array([[load.p50_ms for load in each] for each in rounds])
    first, server, last = (_middle(times[:, at]) for at in range(3))
    return ServedLatency(first, server, last, _middle(1 - times[:, 2] / times[:, 0]))


def settings_of(model_id: str) -> Settings:
    """Give the settings that a model is served with: those stored with it, else the defaults."""
    return with_tag(Settings(), tracking.model_tags(model_id))


def _middle(values: np.ndarray) -> Quantity:
    """Give the median of the rounds with their range: of seven rounds that is an interval of 98% for the median."""
    return Quantity(float(np.median(values)), float(values.min()), float(values.max()), len(values))
