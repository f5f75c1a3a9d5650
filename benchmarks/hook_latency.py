"""How much the gate adds to setting an alias: the same requests to two live servers, one plain and one gated, in turns.

    python -m benchmarks.hook_latency --versions 1000 --requests 200

Both servers hold one registered model with many versions. Compared are an alias that is not guarded, `champion` moved to
a version whose evidence passes (on the plain server it just moves), and `champion` refused, with the search for a
version that would pass. Ratios carry over to other machines, milliseconds do not.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import mlflow
from mlflow import MlflowClient

from mlflow_opt.fingerprint import fingerprint
from tests.evidence_factory import WRONG, Evidence, candidate, good, logged_model, model_id_of, register
from tests.servers import LiveServer, serve

NAME = "churn"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "empty.db"
        MlflowClient(f"sqlite:///{store}").search_experiments()
        for name in ("plain", "gated"):
            (Path(folder) / name).mkdir()
            shutil.copy(store, Path(folder) / name / "mlflow.db")
        with serve(Path(folder) / "plain", gated=False) as plain, serve(Path(folder) / "gated") as gated:
            _fill(plain, given.versions)
            _fill(gated, given.versions)
            _compare(plain, gated, given.requests)


def _fill(server: LiveServer, versions: int) -> None:
    """Register many versions straight into the database, which is what they would be there after a year."""
    client = _inside(server)
    model_id = logged_model(client)
    client.create_registered_model(NAME)
    for _ in range(versions):
        register(client, NAME, model_id)


def _inside(server: LiveServer) -> MlflowClient:
    # The registry looks for logged models in MLflow's default store.
    mlflow.set_tracking_uri(server.database)
    return MlflowClient(server.database, server.database)


def _compare(plain: LiveServer, gated: LiveServer, requests: int) -> None:
    print(f"{fingerprint()}\n\n| request | plain p50 / p95 ms | gated p50 / p95 ms | added p50 / p95 ms |\n|---|---|---|---|")
    _row("alias that is not guarded", _timed(plain, gated, ["1", "2"] * requests, ["1", "2"] * requests, "dev"))
    passing = {server.uri: _chain(server, requests) for server in (plain, gated)}
    _row("champion accepted", _timed(plain, gated, passing[plain.uri], passing[gated.uri], "champion"))
    wrong = {server.uri: _wrong(server) for server in (plain, gated)}
    _row("champion refused", _timed(plain, gated, [wrong[plain.uri]] * requests, [wrong[gated.uri]] * requests, "champion"))


def _chain(server: LiveServer, length: int) -> list[str]:
    """Make versions of which each passes against the one before."""
    client, versions = _inside(server), [""]
    for _ in range(length):
        versions.append(good(client, NAME, model_id_of(client, NAME, versions[-1]) if versions[-1] else ""))
    return versions[1:]


def _wrong(server: LiveServer) -> str:
    client = _inside(server)
    return candidate(client, NAME, Evidence("m-none", quantities=WRONG))


def _timed(plain: LiveServer, gated: LiveServer, of_plain: list[str], of_gated: list[str], alias: str) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for versions in zip(of_plain, of_gated, strict=True):
        for kept, server, version in zip(times, (plain, gated), versions, strict=True):
            began = time.perf_counter()
            server.post("registered-models/alias", {"name": NAME, "alias": alias, "version": version})
            kept.append((time.perf_counter() - began) * 1e3)
    return times


def _row(name: str, times: tuple[list[float], list[float]]) -> None:
    middle = [median(each) for each in times]
    high = [quantiles(each, n=20)[-1] for each in times]
    cells = [f"{mid:.1f} / {top:.1f}" for mid, top in zip(middle, high, strict=True)]
    print(f"| {name} | {cells[0]} | {cells[1]} | {middle[1] - middle[0]:+.1f} / {high[1] - high[0]:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
