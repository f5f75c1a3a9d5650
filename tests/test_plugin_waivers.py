"""Waivers through the hook: who may, what is recorded, when they end, and what they never cover."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from mlflow_opt.plugin.discovery import history_of
from mlflow_opt.plugin.history import TABLE, read_history
from mlflow_opt.records import Quantity
from mlflow_opt.verdicts.waivers import TAG
from tests.attack_scene import stage
from tests.evidence_factory import (
    GOOD,
    UNSURE,
    WRONG,
    Evidence,
    candidate,
    champion,
    good,
    logged_model,
    model_id_of,
    pointed,
    refused,
    register,
    registry,
)
from tests.servers import ADMIN, LiveServer

ALLOWED = "churn: {waivers: true}\n"
NAN = Quantity(math.nan, math.nan, math.nan, 900)


def day(ahead: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + ahead * 86_400))


def asked(metric: str = "drop_roc_auc", until: str = "", **changed: Any) -> str:
    return json.dumps({"metric": metric, "owner": "ann", "reason": "campaign", "until": until or day(7), "alias": "champion"} | changed)


def promote_wrong(client: MlflowClient, **changed: Any) -> str:
    """Let a good version hold the alias, and a wrong one by a waiver take its place."""
    first = good(client, "churn")
    client.set_registered_model_alias("churn", "champion", first)
    version = good(client, "churn", model_id_of(client, "churn", first), quantities=WRONG, **changed)
    refused(lambda: client.set_registered_model_alias("churn", "champion", version))
    client.set_model_version_tag("churn", version, TAG, asked())
    client.set_registered_model_alias("churn", "champion", version)
    return version


def expire(client: MlflowClient) -> None:
    """Let time pass for the waivers that the table holds."""
    with registry(client).store.engine.begin() as connection:
        rows = connection.execute(sa.select(TABLE.c.sequence, TABLE.c.evidence)).all()
        for sequence, text in rows:
            connection.execute(TABLE.update().where(TABLE.c.sequence == sequence).values(evidence=text.replace(day(7), day(-1))))


def test_waived_version_is_promoted_and_says_so_everywhere_when_the_policy_allows(
    gated: MlflowClient, serve_policy: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    serve_policy(ALLOWED)
    version = promote_wrong(gated)
    assert champion(gated) == version
    told = history_of(gated, "churn")
    assert [entry["action"] for entry in told] == ["accepted", "refused", "waiver", "waived"]
    assert told[-1]["outcome"] == "FAIL"
    said = f"drop_roc_auc is WAIVED until {day(7)} by ann, granted to 'unauthenticated': campaign"
    assert any(said in reason for reason in told[-1]["reasons"])
    assert any("it is FAIL: drop_roc_auc must be at most 0.01" in reason for reason in told[-1]["reasons"])
    tags = gated.get_model_version("churn", version).tags
    assert said in tags["mlflow_opt.waivers"]
    assert tags["mlflow_opt.gate"].startswith("waived (FAIL) for champion")
    assert TAG not in tags
    assert any("moves to version 2 on a waiver" in record.message for record in caplog.records)
    entry = read_history(registry(gated).store.engine, "churn")[-1]
    assert [waiver["metric"] for waiver in json.loads(entry.evidence)["waivers"]] == ["drop_roc_auc"]


@pytest.mark.parametrize("text", ["churn: {mode: enforce}\n", "churn: {waivers: false}\n", "churn: {waivers: []}\n"])
def test_waiver_is_refused_when_the_policy_does_not_allow_any(gated: MlflowClient, serve_policy: Callable[[str], None], text: str) -> None:
    serve_policy(text)
    version = good(gated, "churn", quantities=WRONG)
    assert "forbids waivers" in refused(lambda: gated.set_model_version_tag("churn", version, TAG, asked()))
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["refused", "refused"]


def test_waiver_granted_before_is_none_when_the_policy_forbids_them_now(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(ALLOWED)
    version = good(gated, "churn", quantities=WRONG)
    gated.set_model_version_tag("churn", version, TAG, asked())
    serve_policy("churn: {waivers: [bob]}\n")
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    serve_policy(ALLOWED)
    gated.set_registered_model_alias("churn", "champion", version)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"owner": ""}, "owner is missing"),
        ({"reason": " "}, "reason is missing"),
        ({"reason": "x" * 501}, "in 500 characters"),
        ({"until": "soon"}, "2026-12-31"),
        ({"until": day(-1)}, "until must be a day from today"),
        ({"until": day(400)}, "until must be a day from today"),
        ({"metric": "accuracy"}, "drop_accuracy"),
        ({"metric": "nonsense"}, "names no criterion"),
        ({"alias": "dev"}, "alias must be a guarded one"),
    ],
)
def test_waiver_is_refused_when_it_is_not_complete(
    gated: MlflowClient, serve_policy: Callable[[str], None], changed: dict[str, str], said: str
) -> None:
    serve_policy(ALLOWED)
    version = good(gated, "churn", quantities=WRONG)
    if changed.get("metric") == "accuracy":
        # A criterion of another task of the default policy: it may be waived, and covers nothing of this one.
        gated.set_model_version_tag("churn", version, TAG, asked(**changed))
        refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
        return
    assert said in refused(lambda: gated.set_model_version_tag("churn", version, TAG, asked(**changed)))
    assert history_of(gated, "churn")[-1]["action"] == "refused"


# What is written, what is said of it, and whether the refusal shows the criterion as waived all the same.
NEVER_COVERED: dict[str, tuple[dict[str, Any], str, bool]] = {
    "nan": ({"quantities": GOOD | {"drop_roc_auc": NAN}}, "not a usable value", False),
    "missing": ({"quantities": {"speedup": GOOD["speedup"]}}, "not measured", False),
    "run of another model": ({"tags": {"mlflow_opt.model_id": "m-other"}}, "measured model 'm-other'", False),
    "another reference": ({"tags": {"mlflow_opt.reference_model_id": "m-other"}}, "compares with 'm-other'", True),
    "another policy": ({"tags": {"mlflow_opt.policy_digest": "0" * 16}}, "the policy in force is", True),
    "stale": ({"age_days": 31.0}, "days old", True),
    "noisy machine": ({"doubt": "load was 7 on 2 cores"}, "too noisy", True),
    "logged twice": ({"extra": (("gate_drop_roc_auc", 0.0),)}, "logged 2 times", False),
    "unfinished": ({"status": "RUNNING"}, "must be FINISHED", False),
    "another criterion": ({"quantities": WRONG | {"speedup": UNSURE["speedup"]}}, "INCONCLUSIVE: speedup", True),
}


@pytest.mark.parametrize(("changed", "said", "shown"), NEVER_COVERED.values(), ids=NEVER_COVERED.keys())
def test_waiver_does_not_help_when_the_doubt_is_about_the_evidence(
    gated: MlflowClient, serve_policy: Callable[[str], None], changed: dict[str, Any], said: str, shown: bool
) -> None:
    serve_policy(ALLOWED)
    version = good(gated, "churn", **({"quantities": WRONG} | changed))
    gated.set_model_version_tag("churn", version, TAG, asked())
    text = refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert said in text
    assert ("is WAIVED until" in text) == shown
    assert champion(gated) == ""


def test_waiver_is_none_when_it_has_expired(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(ALLOWED)
    version = good(gated, "churn", quantities=WRONG)
    gated.set_model_version_tag("churn", version, TAG, asked())
    expire(gated)
    assert "FAIL: drop_roc_auc" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert "mlflow_opt.waivers" not in gated.get_model_version("churn", version).tags


def test_waived_version_may_come_back_only_as_long_as_its_waiver_holds(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(ALLOWED)
    version = promote_wrong(gated)
    for _ in range(2):
        gated.set_registered_model_alias("churn", "champion", "1")
        gated.set_registered_model_alias("churn", "champion", version)
        assert history_of(gated, "churn")[-1]["action"] == "rollback"
    gated.set_registered_model_alias("churn", "champion", "1")
    expire(gated)
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == "1"


def test_waiver_covers_one_version_when_its_number_is_used_again(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(ALLOWED)
    version = good(gated, "churn", quantities=WRONG)
    gated.set_model_version_tag("churn", version, TAG, asked())
    source = model_id_of(gated, "churn", version)
    gated.delete_registered_model("churn")
    assert register(gated, "churn", source) == version
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert "mlflow_opt.waivers" not in gated.get_model_version("churn", version).tags


def test_waiver_is_for_one_alias_and_one_version_when_there_are_more(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy("churn: {waivers: true, guards: [champion, prod]}\n")
    first, second = good(gated, "churn", quantities=WRONG), good(gated, "churn", quantities=WRONG)
    gated.set_model_version_tag("churn", first, TAG, asked())
    refused(lambda: gated.set_registered_model_alias("churn", "prod", first))
    refused(lambda: gated.set_registered_model_alias("churn", "champion", second))
    gated.set_registered_model_alias("churn", "champion", first)


def test_automatic_promotion_uses_no_waiver(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy("churn: {waivers: true, promote: auto}\n")
    version = good(gated, "churn", quantities=WRONG)
    gated.set_model_version_tag("churn", version, TAG, asked())
    gated.set_registered_model_alias("churn", "challenger", version)
    assert (champion(gated), pointed(gated, "challenger")) == ("", version)
    assert history_of(gated, "churn")[-1]["action"] == "refused"


def test_waived_version_is_what_the_next_one_replaces(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(ALLOWED)
    version = promote_wrong(gated)
    after = good(gated, "churn", model_id_of(gated, "churn", version))
    gated.set_registered_model_alias("churn", "champion", after)
    assert (champion(gated), pointed(gated, "previous")) == (after, version)
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["accepted", "refused", "waiver", "waived", "accepted"]


# --- live servers -----------------------------------------------------------------------------------------------------


def test_waiver_by_rest_is_recorded_and_not_stored_when_the_live_server_allows(policy_server: LiveServer) -> None:
    scene = stage(policy_server, "waived-churn")
    version = candidate(scene.client, scene.name, Evidence(scene.champion_id, quantities=WRONG))
    assert scene.set_alias(version).status_code == 403
    body = {"name": scene.name, "version": version, "key": TAG}
    assert scene.rest("model-versions/set-tag", **body, value=asked(granted_by="admin", user="admin")).ok
    assert history_of(scene.client, scene.name)[-1]["user"] == "unauthenticated"
    assert scene.set_alias(version).ok
    assert scene.aliases() == {"champion": version, "previous": "1"}
    assert scene.rest("model-versions/delete-tag", "DELETE", **body).status_code == 403


def test_waiver_by_rest_is_refused_when_the_live_server_does_not_allow_it(policy_server: LiveServer) -> None:
    for name, said in (("plain-churn", "forbids waivers"), ("ann-churn", "'unauthenticated' is none of them")):
        scene = stage(policy_server, name)
        version = candidate(scene.client, scene.name, Evidence(scene.champion_id, quantities=WRONG))
        answer = scene.rest("model-versions/set-tag", name=name, version=version, key=TAG, value=asked())
        assert answer.status_code == 403
        assert said in answer.json()["message"]
        assert scene.set_alias(version).status_code == 403
        assert scene.unmoved()


def test_waiver_is_the_named_users_when_basic_auth_knows_them(auth_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for user in ("ann-w", "bob-w"):
        assert auth_server.post("users/create", {"username": user, "password": "a-long-password"}, auth=ADMIN).ok
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann-w")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
    client = auth_server.client()
    version = good(client, "ann-churn", logged_model(client), quantities=WRONG)
    body = {"name": "ann-churn", "version": version, "key": TAG, "value": asked()}
    for who in ("bob-w", ADMIN[0]):
        password = ADMIN[1] if who == ADMIN[0] else "a-long-password"
        answer = auth_server.post("model-versions/set-tag", body, auth=(who, password))
        assert f"'{who}' is none of them" in answer.json()["message"]
    assert auth_server.post("model-versions/set-tag", body, auth=("ann-w", "a-long-password")).ok
    assert auth_server.post("registered-models/alias", body | {"alias": "champion"}, auth=("bob-w", "a-long-password")).ok
    told = history_of(client, "ann-churn")
    assert [(entry["action"], entry["user"]) for entry in told[-2:]] == [("waiver", "ann-w"), ("waived", "bob-w")]
    assert "granted to 'ann-w'" in " ".join(told[-1]["reasons"])
