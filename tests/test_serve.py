"""The recipe `serve`: what it tries, what it chooses, and one run of it against real servers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_opt.flavours import model_files
from mlflow_opt.serving.contender import Found, Objective, find_rate, free_port, our_command, running
from mlflow_opt.serving.load import Load, poisson_times, request_bytes, zipf_order
from mlflow_opt.serving.settings import SETTINGS_TAG, Settings, with_tag
from mlflow_opt.serving.study import BASELINE, Tried, bodies
from mlflow_opt.serving.study_page import study_page
from recipes.serve import advise, best_of, ladder, serve
from tests.serving_models import mixed, numbers, save_booster, serving_models

__all__ = ["serving_models"]


def _tried(name: str, rate: float, settings: Settings | None = None, *, met: bool = True) -> Tried:
    load = Load(rate, rate, 1.0, 2.0, 3.0, {200: 100})
    return Tried(name, settings, Found(load, met, rate * 2, 100.0, (load,)))


def test_ladder_adds_one_part_at_a_time_when_it_is_made() -> None:
    steps = ladder(2, exact=True)
    assert (steps["async"].batching, steps["batching"].batching, steps["cache"].cache) == ("off", "exact", "memory")
    assert steps["workers_2"] == replace(steps["batching"], workers=2)
    assert "workers_1" not in ladder(1, exact=True)
    assert ladder(2, exact=False)["batching"].batching == "always"


def test_best_of_takes_the_simplest_when_rates_are_not_told_apart() -> None:
    tried = [_tried(BASELINE, 9000), _tried("async", 950, Settings()), _tried("trial_0", 1000, Settings(max_batch=8))]
    best = best_of(tried, cache=False)
    assert best is not None
    assert best.name == "async"


def test_best_of_takes_a_cache_only_when_it_was_asked_for() -> None:
    tried = [_tried("async", 100, Settings()), _tried("cache", 1000, Settings(cache="memory"))]
    chosen = [best_of(tried, cache=cache) for cache in (False, True)]
    assert [one.name if one else "" for one in chosen] == ["async", "cache"]


def test_best_of_takes_nothing_when_the_objective_is_not_met() -> None:
    assert best_of([_tried(BASELINE, 10), _tried("async", 100, Settings(), met=False)], cache=False) is None


def test_advise_says_compile_when_the_model_has_no_fast_path() -> None:
    tried = [_tried(BASELINE, 10), _tried("async", 20, Settings()), _tried("batching", 20, Settings()), _tried("cache", 40, Settings())]
    said = " ".join(advise(tried, "pyfunc: a model of mlflow.sklearn", "no: pyfunc"))
    assert "mlflow-opt compile" in said
    assert "2.0x the requests" in said


@pytest.mark.parametrize("met", [True, False], ids=["met", "missed"])
def test_study_page_says_what_was_chosen_when_written(met: bool) -> None:
    tried = [_tried(BASELINE, 100), _tried("async", 950, Settings())]
    params = {"model": "models:/churn@champion", "data": "x.parquet", "price_per_core_hour": 0.04}
    text = study_page(tried, tried[1] if met else None, ["Batching brings <2x."], Objective(20.0), params)
    assert ("9.5x" in text) is met
    assert ("mlflow-opt start_server --model models:/churn@champion" in text) is met
    assert ("objective not met" in text) is not met
    assert "Batching brings &lt;2x." in text
    assert "-P p95_ms=20.0" in text


def test_poisson_times_have_the_rate_when_they_are_many() -> None:
    times = poisson_times(500, 20, seed=3)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    # Exponential gaps: the deviation is as large as the mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (times == poisson_times(500, 20, seed=3)).all()


def test_zipf_order_repeats_the_first_keys_most_when_the_exponent_is_large() -> None:
    counts = np.bincount(zipf_order(100, 20_000, 1.0, seed=0), minlength=100)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.3)
    flat = np.bincount(zipf_order(100, 20_000, 0.0, seed=0), minlength=100)
    assert flat.max() / flat.min() < 2


def test_bodies_hold_one_row_each_when_written() -> None:
    rows = [json.loads(body)["dataframe_split"] for body in bodies(mixed(10), 4)]
    assert len(rows) == 4
    assert all(len(row["data"]) == 1 and row["columns"] == ["age", "income", "visits", "plan"] for row in rows)
    assert rows[0]["data"][0][3] is None
    arrays = [json.loads(body)["inputs"] for body in bodies({"x": np.arange(6).reshape(3, 2)}, 10)]
    assert arrays == [[[0, 1]], [[2, 3]], [[4, 5]]]


@pytest.mark.parametrize(("p95_ms", "met"), [(10_000.0, True), (0.0001, False)], ids=["easy", "impossible"])
def test_find_rate_says_whether_it_is_met_when_the_objective_is(
    serving_models: Mapping[str, Path], tmp_path: Path, p95_ms: float, met: bool
) -> None:
    port = free_port()
    requests = [request_bytes(body) for body in bodies(numbers(20), 20)]
    command = our_command(str(serving_models["booster"]), Settings(), port)
    with running(command, port, tmp_path / "log") as process:
        found = find_rate(process, port, requests, Objective(p95_ms, seconds=0.3, connections=16, steps=2))
    assert found.met is met
    assert (found.sustained > 0) is met
    assert [load.offered for load in found.curve] == sorted(load.offered for load in found.curve)
    assert process.returncode is not None


def test_find_rate_asks_enough_requests_when_the_server_is_slow(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    port = free_port()
    # An objective that nothing meets drives the rate down, to where a short stretch would hold next to no request.
    requests = [request_bytes(body) for body in bodies(mixed(20), 20)]
    command = our_command(str(serving_models["pipeline"]), Settings(), port)
    with running(command, port, tmp_path / "log") as process:
        found = find_rate(process, port, requests, Objective(0.0001, seconds=0.05, connections=4, steps=3))
    assert min(sum(load.statuses.values()) for load in found.curve) >= 20
    assert np.isfinite([load.p50_ms for load in found.curve]).all()


def test_running_says_why_when_a_server_does_not_come_up(tmp_path: Path) -> None:
    port = free_port()
    with (
        pytest.raises(RuntimeError, match="no such model folder"),
        running(our_command(str(tmp_path / "nothing"), Settings(), port), port, tmp_path / "log"),
    ):
        raise AssertionError("it must not come up")


@pytest.mark.slow
def test_serve_measures_and_stores_when_run(tracking_uri: str, tmp_path: Path) -> None:
    made = MlflowClient().create_logged_model("0", name="booster")
    saved = save_booster(tmp_path / "booster")
    model_files.stamp(saved, made.model_id, "")
    MlflowClient().log_model_artifacts(made.model_id, str(saved))
    MlflowClient().finalize_logged_model(made.model_id, "READY")
    rows = numbers(400).assign(target=np.arange(400) % 2)
    rows.to_parquet(tmp_path / "rows.parquet")
    uri = f"models:/{made.model_id}"
    serve(model=uri, data=str(tmp_path / "rows.parquet"), p95_ms=1000.0, trials=1, seconds=0.3, connections=8)
    client = MlflowClient()
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {"baseline", "async", "batching", "cache", "trial_0"} <= set(children)
    names = {frozenset(run.data.metrics) for run in children.values()}
    assert len(names) == 1
    assert {"requests_per_s", "serve_p95_ms", "cost_per_million"} <= set(names.pop())
    assert children["async"].data.metrics["requests_per_s"] > children["baseline"].data.metrics["requests_per_s"]
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"curves.png", "report.html"}
    assert "| baseline" in parent.data.tags["mlflow.note.content"]
    stored = client.get_logged_model(made.model_id).tags
    assert with_tag(Settings(), stored).cache == "off"
    assert json.loads(stored[SETTINGS_TAG])["batching"] in ("exact", "off")
