"""Following the registry: swaps, versions that are refused, verdicts, settings stored with a model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from mlflow_opt.flavours import model_files
from mlflow_opt.gate import judge
from mlflow_opt.records import Binding, Criterion, Measurement, Policy, Quantity
from mlflow_opt.serving.app import Application
from mlflow_opt.serving.settings import SETTINGS_TAG, Settings, tuned
from mlflow_opt.verdicts import evidence
from tests.serving_models import client, numbers, save_booster, split, with_application

URI = "models:/churn@champion"
POLICY = Policy(criteria=(Criterion("speedup", "min", 1.2, "speedup"),))


def _log(folder: Path, seed: int) -> str:
    """Register a booster of its own as the next version of `churn`; returns the version."""
    made = MlflowClient().create_logged_model("0", name=f"booster-{seed}")
    saved = save_booster(folder / str(seed), seed=seed)
    model_files.stamp(saved, made.model_id, "")
    MlflowClient().log_model_artifacts(made.model_id, str(saved))
    MlflowClient().finalize_logged_model(made.model_id, "READY")
    if not MlflowClient().search_registered_models("name = 'churn'"):
        MlflowClient().create_registered_model("churn")
    return str(MlflowClient().create_model_version("churn", f"models:/{made.model_id}", model_id=made.model_id).version)


def _point(version: str) -> None:
    MlflowClient().set_registered_model_alias("churn", "champion", version)


def _prove(version: str, low: float = 1.3, **changed: str) -> None:
    """Give a version evidence whose speedup is at least `low` in truth; `changed` falsifies tags."""
    found = MlflowClient().get_model_version("churn", version)
    model_id = str(found.source).removeprefix("models:/")
    measured = Measurement({"speedup": Quantity(low + 0.1, low, low + 0.2, 400)})
    verdict = judge(measured, POLICY)
    digest = model_files.folder_digest(model_files.locate(f"models:/{model_id}").path)
    binding = Binding(model_id, digest, "rows", "split", "policy", "", "cpu", "binary", int(time.time() * 1000))
    tags = evidence.to_tags(binding, verdict.outcome) | changed
    run = MlflowClient().create_run("0")
    metrics = [Metric(key, value, 0, 0) for key, value in evidence.to_metrics(measured, POLICY, verdict).items()]
    MlflowClient().log_batch(run.info.run_id, metrics, tags=[RunTag(key, value) for key, value in tags.items()])
    MlflowClient().set_terminated(run.info.run_id)
    MlflowClient().set_logged_model_tags(model_id, {evidence.EVIDENCE_RUN: run.info.run_id})


async def _ask(application: Application) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return await client(application).post("/invocations", content=split(numbers(1)), headers=headers)


def test_server_swaps_when_the_alias_moves_and_fails_no_request(tracking_uri: str, tmp_path: Path) -> None:
    versions = [_log(tmp_path, seed) for seed in (1, 2)]
    _point(versions[0])

    async def check(application: Application) -> None:
        first = (await _ask(application)).content
        asked: list[httpx.Response] = []
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                asked.append(await _ask(application))
                # Answers from the cache come without a turn of the event loop.
                await asyncio.sleep(0)

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for turn in range(6):
            _point(versions[(turn + 1) % 2])
            await application.live.look()
        stop.set()
        await asyncio.gather(*asking)
        assert {answer.status_code for answer in asked} == {200}
        assert len({answer.content for answer in asked}) == 2
        assert application.live.swaps == 6
        assert (await _ask(application)).content == first
        assert (await client(application).get("/version")).json()["version"] == versions[0]

    with_application(URI, check, watch_s=1000.0, cache="memory")


def test_server_watches_by_itself_when_it_runs(tracking_uri: str, tmp_path: Path) -> None:
    versions = [_log(tmp_path, seed) for seed in (1, 2)]
    _point(versions[0])

    async def check(application: Application) -> None:
        _point(versions[1])
        for _ in range(200):
            if application.live.swaps:
                break
            await asyncio.sleep(0.05)
        assert application.live.served.facts.version.number == versions[1]

    with_application(URI, check, watch_s=0.05)


def test_server_keeps_the_old_version_when_the_new_one_fails(tracking_uri: str, tmp_path: Path) -> None:
    good, broken = _log(tmp_path, 1), _log(tmp_path, 2)
    _point(good)
    stored = model_files.locate(f"models:/churn/{broken}").path
    (stored / "model.lgb").write_text("no trees")

    async def check(application: Application) -> None:
        before = (await _ask(application)).content
        _point(broken)
        await application.live.look()
        shown = (await client(application).get("/version")).json()
        assert (shown["version"], shown["refused"]["version"]) == (good, f"models:/churn/{broken}")
        assert (await _ask(application)).content == before
        # It is not loaded again at every look, and forgotten when the alias comes back.
        refused = application.live.refused
        await application.live.look()
        assert application.live.refused is refused
        _point(good)
        await application.live.look()
        assert application.live.refused is None
        assert (await client(application).get("/ready")).status_code == 200

    with_application(URI, check, watch_s=1000.0)


def test_server_goes_on_when_the_registry_is_gone(tracking_uri: str, tmp_path: Path) -> None:
    _point(_log(tmp_path, 1))

    async def check(application: Application) -> None:
        MlflowClient().delete_registered_model_alias("churn", "champion")
        await application.live.look()
        assert (await _ask(application)).status_code == 200

    with_application(URI, check, watch_s=1000.0)


def test_server_does_not_start_when_the_alias_names_nothing(tracking_uri: str) -> None:
    async def check(application: Application) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(ValueError, match="must name a version that the registry has"):
        with_application(URI, check)


def test_server_refuses_a_version_when_a_verdict_is_required_and_missing(tracking_uri: str, tmp_path: Path) -> None:
    proven, unproven = _log(tmp_path, 1), _log(tmp_path, 2)
    _prove(proven)
    _point(proven)

    async def check(application: Application) -> None:
        shown = (await client(application).get("/version")).json()
        assert shown["verdict"]["outcome"] == "PASS"
        _point(unproven)
        await application.live.look()
        assert application.live.served.facts.version.number == proven
        assert application.live.refused is not None
        assert "must have a PASS" in application.live.refused.why

    with_application(URI, check, watch_s=1000.0, require_verdict=True)


@pytest.mark.parametrize(
    ("low", "changed", "outcome"),
    [
        (1.3, {}, "PASS"),
        (1.0, {}, "FAIL"),
        (1.15, {}, "INCONCLUSIVE"),
        (1.0, {evidence.VERDICT: "PASS"}, "FAIL"),
        (1.3, {evidence.VERDICT: "FAIL"}, "FAIL"),
        (1.3, {evidence.PREFIX + "model_id": "m-another"}, "INCONCLUSIVE"),
        (1.3, {evidence.PREFIX + "model_digest": "other files"}, "FAIL"),
        (1.3, {evidence.PREFIX + "task": ""}, "INCONCLUSIVE"),
    ],
    ids=["pass", "fail", "undecided", "tag_says_pass", "tag_says_fail", "another_model", "other_files", "incomplete"],
)
def test_server_shows_the_verdict_when_evidence_is_as_it_is(
    tracking_uri: str, tmp_path: Path, low: float, changed: dict[str, str], outcome: str
) -> None:
    version = _log(tmp_path, 1)
    _prove(version, low, **changed)

    async def check(application: Application) -> None:
        assert application.live.served.facts.standing.outcome == outcome

    if outcome == "FAIL" and low == 1.0:
        # The interval [1.0, 1.2] does not decide at 1.2; below it, it fails.
        _prove(version, 0.9, **changed)
    with_application(f"models:/churn/{version}", check)


def test_server_uses_the_settings_stored_with_the_model_when_none_are_given(tracking_uri: str, tmp_path: Path) -> None:
    version = _log(tmp_path, 1)
    model_id = str(MlflowClient().get_model_version("churn", version).source).removeprefix("models:/")
    stored = replace(Settings(), max_batch=7, window_ms=1.5, batching="always", queue=3)
    mlflow.MlflowClient().set_logged_model_tags(model_id, {SETTINGS_TAG: tuned(stored)})

    async def check(application: Application) -> None:
        found = application.live.served.facts.settings
        # A given setting wins, a stored one comes next, and what is not tuned is never taken from the model.
        assert (found.max_batch, found.window_ms, found.batching, found.queue) == (9, 1.5, "always", 1000)

    with_application(f"models:/churn/{version}", check, max_batch=9)
