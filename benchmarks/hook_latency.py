"""How much the gate adds to setting an alias: the same requests to two live servers, one plain and one gated, in turns.

    python -m benchmarks.hook_latency --versions 1000 --requests 200

Both servers hold one registered model with many versions. Compared are an alias that is not guarded, `champion` moved to
a version whose evidence passes and is signed (on the plain server it just moves), `champion` refused, with the search for a
version that would pass, and the model read. Bound of a decision: 30 ms at the 95th percentile. Milliseconds hold for one machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import mlflow
from mlflow import MlflowClient

from benchmarks import results_file
from mlflow_opt.verdicts import signing
from tests.evidence_factory import WRONG, Evidence, candidate, good, logged_model, model_id_of, register
from tests.servers import LiveServer, serve

NAME = "churn"
BOUND_MS = 30.0
READ = "model read, no decision"
# Median and 95th percentile in ms, of the plain server and of the gated one.
Row = tuple[tuple[float, float], tuple[float, float]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        private, public = signing.make_key()
        (folder / "ci.key").write_bytes(private)
        os.environ[signing.VARIABLE] = str(folder / "ci.key")
        asked = _fill(f"sqlite:///{folder}/filled.db", given.versions, given.requests)
        for name in ("plain", "gated"):
            (folder / name).mkdir()
            shutil.copy(folder / "filled.db", folder / name / "mlflow.db")
        policy = f'"*": {{trusted_keys: ["{public}"]}}\n'
        with serve(folder / "plain", gated=False) as plain, serve(folder / "gated", policy=policy) as gated:
            rows = _compare(plain, gated, given.requests, asked)
    _save(rows, given.versions, given.requests)


def _save(rows: dict[str, Row], versions: int, requests: int) -> None:
    lines = [
        "| request | plain p50 / p95 ms | gated p50 / p95 ms | added at p50, and by the gated p95 to the plain p50, ms | bound at p95 |",
        "|---|---|---|---|---|",
    ]
    for name, (plain, gated) in rows.items():
        # Not p95 less p95: a server that stalls now and then without a gate would hide what the gate adds.
        added = [ours - plain[0] for ours in gated]
        cells = [f"{middle:.1f} / {high:.1f}" for middle, high in (plain, gated)]
        bound = "-" if name == READ else f"{BOUND_MS:g}"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {added[0]:+.1f} / {added[1]:+.1f} | {bound} |")
    lines += ["", f"{versions} versions, {requests} requests of each kind to each server in turns, sqlite, one worker, signed evidence."]
    figures = {name: {"plain_ms": plain, "gated_ms": gated} for name, (plain, gated) in rows.items()}
    results_file.save("hook_latency", {"versions": versions, "requests": requests, "bound_p95_ms": BOUND_MS, "rows": figures}, lines)


def _fill(database: str, versions: int, requests: int) -> dict[str, list[str]]:
    """Register many versions, then those that are asked for: a chain that passes one after the other, and one that fails."""
    # The registry looks for logged models in MLflow's default store.
    mlflow.set_tracking_uri(database)
    client = MlflowClient(database, database)
    model_id = logged_model(client)
    register(client, NAME, model_id)
    for _ in range(versions - 1):
        client.create_model_version(NAME, f"models:/{model_id}", model_id=model_id)
    passing = [good(client, NAME)]
    while len(passing) < requests:
        passing.append(good(client, NAME, model_id_of(client, NAME, passing[-1])))
    return {"dev": ["1", "2"], "passing": passing, "wrong": [candidate(client, NAME, Evidence("m-none", quantities=WRONG))]}


def _compare(plain: LiveServer, gated: LiveServer, requests: int, versions: dict[str, list[str]]) -> dict[str, Row]:
    def alias(named: str, asked: list[str]) -> Callable[[LiveServer, int], None]:
        def ask(server: LiveServer, turn: int) -> None:
            server.post("registered-models/alias", {"name": NAME, "alias": named, "version": asked[turn % len(asked)]})

        return ask

    def read(server: LiveServer, turn: int) -> None:
        del turn
        server.client().get_registered_model(NAME)

    return {
        "alias that is not guarded": _timed(plain, gated, requests, alias("dev", versions["dev"])),
        "champion accepted": _timed(plain, gated, requests, alias("champion", versions["passing"])),
        "champion refused": _timed(plain, gated, requests, alias("champion", versions["wrong"])),
        READ: _timed(plain, gated, requests, read),
    }


def _timed(plain: LiveServer, gated: LiveServer, requests: int, ask: Callable[[LiveServer, int], None]) -> Row:
    """Ask both servers in turns, now the one first and now the other; median and 95th percentile of each, in ms."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(requests):
        pairs = list(zip(times, (plain, gated), strict=True))
        for kept, server in pairs if turn % 2 else reversed(pairs):
            began = time.perf_counter()
            ask(server, turn)
            kept.append((time.perf_counter() - began) * 1e3)
    mine, ours = ((median(each), quantiles(each, n=20)[-1]) for each in times)
    return mine, ours


if __name__ == "__main__":
    main()
