"""A 300-tree LightGBM behind this server, `mlflow models serve` and its peers: the same requests, one worker, one client, in turns.

Run with `python -m benchmarks.serving`. Peers run where a Python that has them is named: PEER_LITSERVE, PEER_BENTOML and
PEER_MLSERVER are paths of interpreters. What no load may break is measured by `benchmarks.serving_hardships`.
Each figure is the median of the rounds, in each of which every server was loaded once; what came out in each round is in the JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.results_file import save
from benchmarks.serving_peers import mlserver_folder
from mlflow_opt import models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.records import Task
from mlflow_opt.serving.contender import cpu_seconds, free_port, mlflow_command, our_command, running
from mlflow_opt.serving.load import Load, closed_loop, request_bytes
from mlflow_opt.serving.settings import Settings

TREES, LEAVES, FEATURES = 300, 63, 30
ROUNDS, SECONDS, ROWS = 3, 2.0, 2000
PEERS = Path(__file__).resolve().parent / "serving_peers"
BESIDE = (1, 32)
PEER_NAMES = ("LitServe", "BentoML", "MLServer")


@dataclass(frozen=True)
class Contender:
    """A server: how it is started, how one sees that it is up, what it is asked."""

    name: str
    command: list[str]
    port: int
    requests: list[bytes]
    alive: str = "/ping"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What one contender did in one round at one number of connections."""

    load: Load
    cpu_us: float


def main() -> None:
    """Measure and write results/serving.*."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        booster = save_booster(folder / "booster", seed=0)
        rounds = _measure(list(_contenders(folder, booster)), folder)
    middle = {name: {beside: _median(each) for beside, each in by.items()} for name, by in rounds.items()}
    figures: dict[str, Any] = {
        "rounds": {name: {beside: [asdict(one) for one in each] for beside, each in by.items()} for name, by in rounds.items()},
        "load_average": os.getloadavg(),
    }
    save("serving", figures, [*_table(middle), "", *_bounds(middle)])


def save_booster(folder: Path, seed: int) -> Path:
    """Train the trees and save them with their signature."""
    import lightgbm
    import mlflow
    from mlflow.models import infer_signature

    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(rng.normal(size=(4000, FEATURES)), columns=_names())
    labels = (rows.x0 + rows.x1 * rows.x2 + rng.normal(size=len(rows)) > 0).astype(int)
    settings = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "seed": seed}
    trained = lightgbm.train(settings, lightgbm.Dataset(rows, labels), TREES)
    signature = infer_signature(rows, trained.predict(rows))
    mlflow.lightgbm.save_model(trained, str(folder), signature=signature, pip_requirements=["lightgbm"])
    return folder


def _names() -> list[str]:
    return [f"x{index}" for index in range(FEATURES)]


def bodies(count: int) -> list[bytes]:
    """Write rows as requests of MLflow's protocol, one row each."""
    rows = np.random.default_rng(1).normal(size=(count, FEATURES))
    return [json.dumps({"dataframe_split": {"columns": _names(), "data": [row.tolist()]}}).encode() for row in rows]


def _contenders(folder: Path, booster: Path) -> Iterator[Contender]:
    asked = [request_bytes(body) for body in bodies(ROWS)]
    variant = _variant(booster, folder / "variant")
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "benchmarks.serving_peers.empty_app:app", "--port", str(port), "--log-level", "warning"]
    yield Contender("empty ASGI app (the limit)", [*words, "--no-access-log"], port, asked)
    for name, model, settings in (
        ("ours, cache hits", booster, Settings(cache="memory")),
        ("ours, LightGBM", booster, Settings()),
        ("ours, LightGBM, no batching", booster, Settings(batching="off")),
        ("ours, drop-in variant", variant, Settings()),
    ):
        port = free_port()
        yield Contender(name, our_command(str(model), settings, port), port, asked)
    if "PEER_LITSERVE" in os.environ:
        port = free_port()
        command = [os.environ["PEER_LITSERVE"], str(PEERS / "litserve_app.py"), str(booster / "model.lgb"), str(port)]
        yield Contender("LitServe", command, port, asked, "/health")
    if "PEER_BENTOML" in os.environ:
        port = free_port()
        command = [os.environ["PEER_BENTOML"], "-m", "bentoml", "serve", "bento_service:Trees", "--port", str(port)]
        rows = [request_bytes(json.dumps({"rows": json.loads(body)["dataframe_split"]["data"]}).encode()) for body in bodies(ROWS)]
        env = {"BENCHMARK_BOOSTER": str(booster / "model.lgb"), "BENTOML_DO_NOT_TRACK": "True"}
        yield Contender("BentoML", [*command, "--working-dir", str(PEERS)], port, rows, "/livez", env)
    if "PEER_MLSERVER" in os.environ:
        port = free_port()
        place = mlserver_folder.write(folder / "mlserver", booster / "model.lgb", port)
        command = [str(Path(os.environ["PEER_MLSERVER"]).parent / "mlserver"), "start", str(place)]
        single = [json.loads(body)["dataframe_split"]["data"][0] for body in bodies(ROWS)]
        infer = [request_bytes(mlserver_folder.body(row), "/v2/models/trees/infer") for row in single]
        yield Contender("MLServer", command, port, infer, "/v2/models/trees/ready")
    port = free_port()
    yield Contender("mlflow models serve", mlflow_command(str(booster), port), port, asked)


def _variant(booster: Path, folder: Path) -> Path:
    model = models.load(str(booster))
    example = pd.DataFrame(np.random.default_rng(2).normal(size=(16, FEATURES)), columns=_names())
    graph = exporting.to_onnx(model, example, Task("binary", (0, 1)))
    return dropin.save_dropin(graph, model, folder, session=dropin.SessionOptions(), example=example).path


def _measure(contenders: list[Contender], folder: Path) -> dict[str, dict[int, list[Round]]]:
    """Keep every server up, and load one after another, several times: what the machine does meanwhile hits them alike."""
    found: dict[str, dict[int, list[Round]]] = {one.name: {beside: [] for beside in BESIDE} for one in contenders}
    with ExitStack() as stack:
        processes = {}
        for one in contenders:
            os.environ.update(one.env)
            log = folder / f"{one.port}.log"
            processes[one.name] = stack.enter_context(running(one.command, one.port, log, one.alive))
            closed_loop(one.port, one.requests, 8, 1.0)
        for _ in range(ROUNDS):
            for one in contenders:
                for beside in BESIDE:
                    pid = processes[one.name].pid
                    before = cpu_seconds(pid)
                    load = closed_loop(one.port, one.requests, beside, SECONDS)
                    spent = (cpu_seconds(pid) - before) / max(1, sum(load.statuses.values()))
                    found[one.name][beside].append(Round(load, spent * 1e6))
                    print(f"{one.name}, {beside}: {load.achieved:.0f}/s", flush=True)
    return found


def _median(rounds: list[Round]) -> dict[str, float]:
    rates = [one.load.achieved for one in rounds]
    return {
        "rate": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "p50": statistics.median(one.load.p50_ms for one in rounds),
        "p99": statistics.median(one.load.p99_ms for one in rounds),
        "cpu": statistics.median(one.cpu_us for one in rounds),
        "failed": float(sum(one.load.failed for one in rounds)),
    }


def _table(middle: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    lines = [
        f"{TREES} trees x {LEAVES} leaves, {FEATURES} features, one row a request, one worker; {ROUNDS} rounds of {SECONDS:g} s in turns.",
        "",
        "| | requests/s at 32 [lowest, highest round] | p50 / p99 ms | CPU us a request | requests/s at 1 | p50 ms at 1 | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by in sorted(middle.items(), key=lambda item: -item[1][32]["rate"]):
        many, one = by[32], by[1]
        lines.append(
            f"| {name} | {many['rate']:,.0f} [{many['low']:,.0f}, {many['high']:,.0f}] | {many['p50']:.1f} / {many['p99']:.1f} "
            f"| {many['cpu']:,.0f} | {one['rate']:,.0f} | {one['p50']:.2f} | {many['failed'] + one['failed']:.0f} |"
        )
    return lines


def _bounds(middle: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    rate = {name: by[32]["rate"] for name, by in middle.items()}
    ours, plain = rate["ours, LightGBM"], "ours, LightGBM, no batching"
    peers = {name: rate[name] for name in PEER_NAMES if name in rate}
    limit = rate["empty ASGI app (the limit)"]
    lines = [
        "| what | measured | asked |",
        "|---|---|---|",
        f"| over `mlflow models serve`, 32 connections | {ours / rate['mlflow models serve']:.0f}x | >= 50x |",
        f"| of an empty ASGI app | {ours / limit:.0%} | >= 45% |",
        f"| cache hits, of an empty ASGI app | {rate['ours, cache hits'] / limit:.0%} | >= 75% |",
        f"| batching over none at 32 connections | {ours / rate[plain]:.2f}x | >= 2x |",
        f"| batching over none at 1 connection | {middle['ours, LightGBM'][1]['rate'] / middle[plain][1]['rate']:.2f}x | >= 0.9x |",
    ]
    if peers:
        best = max(peers, key=lambda name: peers[name])
        lines.append(f"| over the best peer ({best}) | {ours / peers[best]:.1f}x | >= 8x |")
        quick = min([*peers, "mlflow models serve"], key=lambda name: middle[name][32]["p99"])
        own, theirs = (middle[name][32]["p99"] for name in ("ours, LightGBM", quick))
        lines.append(f"| p99 at 32 connections, beside the lowest of the others ({quick}) | {own:.1f} ms, {theirs:.1f} ms | lower |")
    missing = [name for name in PEER_NAMES if name not in rate]
    note = f"Not run here: {', '.join([*missing, 'Ray Serve'])}."
    return [*lines, "", note]


if __name__ == "__main__":
    main()
