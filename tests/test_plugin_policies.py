"""Which policy decides: the server's file, the default, the model's own; the modes; automatic promotion; what clients are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_opt.plugin.discovery import active_gate, history_of
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.store import GatedStore
from mlflow_opt.policy import default_policy, parse_policy, policy_text
from mlflow_opt.records import Quantity
from tests.evidence_factory import GOOD, WRONG, Evidence, candidate, champion, good, logged_model, pointed, refused, register

STRICT = "churn: {validation_criteria: [{metric: speedup, min: 1.5}, {metric: f1, min: 0.8}]}\n"


def strict_evidence(reference: str) -> Evidence:
    policy = parse_policy(policy_text(parse_policy("validation_criteria: [{metric: speedup, min: 1.5}, {metric: f1, min: 0.8}]")))
    return Evidence(reference, quantities={"speedup": GOOD["speedup"], "f1": Quantity(0.9, 0.88, 0.92, 4000)}, policy=policy)


def test_server_policy_decides_when_it_names_the_model(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(STRICT)
    source = logged_model(gated)
    by_default = good(gated, "churn", source)
    assert "f1 must be at least 0.8" in refused(lambda: gated.set_registered_model_alias("churn", "champion", by_default))
    gated.set_registered_model_alias("churn", "champion", candidate(gated, "churn", strict_evidence(source)))


def test_default_policy_guards_when_no_pattern_matches(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(STRICT)
    version = register(gated, "other", logged_model(gated))
    refused(lambda: gated.set_registered_model_alias("other", "champion", version))
    gated.set_registered_model_alias("other", "champion", good(gated, "other"))


@pytest.mark.parametrize(
    "text",
    [
        "churn: {validation_criteria: [}",
        "churn: {validation_criteria: [{metric: nonsense, max: 1}]}",
        "",
        "[]",
        "churn: 3",
        "churn: {gaurds: [x]}",
    ],
)
def test_everything_guarded_is_denied_when_the_policy_file_is_broken(
    gated: MlflowClient, serve_policy: Callable[[str], None], text: str
) -> None:
    version = good(gated, "churn")
    serve_policy(text)
    assert "policy.yaml" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    refused(lambda: gated.rename_registered_model("churn", "other"))
    refused(lambda: gated.set_registered_model_tag("churn", "mlflow_opt.policy", policy_text(default_policy("binary"))))
    gate = active_gate(gated, "churn")
    assert gate
    assert gate.mode == "deny"
    with pytest.raises(ValueError, match="denies every promotion"):
        gate.policy("binary")


def test_everything_guarded_is_denied_when_the_policy_file_is_gone(
    gated: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = good(gated, "churn")
    monkeypatch.setenv("MLFLOW_OPT_POLICY", str(tmp_path / "nowhere.yaml"))
    assert "nowhere.yaml" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))


@pytest.mark.parametrize("name", ["\u0441hurn", "CHURN", "churn\u200b", "\uff43hurn"], ids=ascii)
def test_lookalike_is_guarded_like_the_name_it_resembles_when_the_rest_is_off(
    gated: MlflowClient, serve_policy: Callable[[str], None], name: str
) -> None:
    serve_policy(STRICT + '"*": {mode: "off"}\n')
    version = good(gated, name)
    assert "f1 must be at least 0.8" in refused(lambda: gated.set_registered_model_alias(name, "champion", version))
    gated.set_registered_model_alias("other", "champion", register(gated, "other", logged_model(gated)))
    assert folded(name) == "churn"


def test_dry_run_lets_through_and_says_so_when_evidence_fails(
    gated: MlflowClient, serve_policy: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    serve_policy("churn: {mode: dry_run}\n")
    version = good(gated, "churn", quantities=WRONG)
    gated.set_registered_model_alias("churn", "champion", version)
    assert champion(gated) == version
    last = history_of(gated, "churn")[-1]
    assert (last["action"], last["outcome"]) == ("dry_run", "FAIL")
    assert [record.levelname for record in caplog.records if "mode dry_run let" in record.message] == ["WARNING"]


def test_off_is_recorded_and_logged_when_an_alias_moves(
    gated: MlflowClient, serve_policy: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    serve_policy('churn: {mode: "off"}\n')
    version = register(gated, "churn", logged_model(gated))
    gated.set_registered_model_alias("churn", "champion", version)
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["off"]
    assert any(record.levelname == "WARNING" and "mode off let" in record.message for record in caplog.records)


def test_store_says_loudly_that_the_gate_is_active_when_it_opens(
    tracking_uri: str, serve_policy: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    serve_policy('churn: {mode: dry_run}\n"x-*": {mode: "off"}\n')
    GatedStore(f"gated+{tracking_uri}")
    (said,) = [record for record in caplog.records if "gate is ACTIVE" in record.message]
    assert said.levelname == "WARNING"
    assert "churn (dry_run), x-* (off); any other model: the built-in default (enforce)" in said.message


def test_hardware_glob_keeps_out_when_measured_elsewhere(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy('churn: {hardware: "*Xeon*"}\nfraud: {hardware: "*EPYC*"}\n')
    source = logged_model(gated)
    version = good(gated, "churn", source)
    assert "a machine like '*Xeon*'" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    gated.set_registered_model_alias("fraud", "champion", good(gated, "fraud", source))


def test_own_policy_tightens_and_never_loosens_when_kept_with_the_model(gated: MlflowClient) -> None:
    extra = "validation_criteria: [{metric: speedup, min: 3}]"
    version = good(gated, "churn")
    gated.set_registered_model_tag("churn", "mlflow_opt.policy", extra)
    assert "speedup must be at least 3" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    looser = "validation_criteria: [{metric: speedup, min: 1.0}]"
    assert "stricter" in refused(lambda: gated.set_registered_model_tag("churn", "mlflow_opt.policy", looser))
    assert "stricter" in refused(lambda: gated.delete_registered_model_tag("churn", "mlflow_opt.policy"))
    assert "speedup" in refused(
        lambda: gated.set_registered_model_tag("churn", "mlflow_opt.policy", "validation_criteria: [{metric: speedup}]")
    )
    gated.set_registered_model_tag("churn", "mlflow_opt.policy", "validation_criteria: [{metric: speedup, min: 4}, {metric: f1, min: 0.1}]")
    gate = active_gate(gated, "churn")
    assert gate
    bounds = {criterion.quantity: criterion.bound for criterion in gate.policy("binary").criteria}
    assert bounds == {"speedup": 4.0, "drop_roc_auc": 0.01, "f1": 0.1}


def test_own_policy_is_taken_when_given_at_creation(gated: MlflowClient) -> None:
    gated.create_registered_model("churn", tags={"mlflow_opt.policy": "validation_criteria: [{metric: speedup, min: 3}]"})
    version = good(gated, "churn")
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    refused(lambda: gated.create_registered_model("other", tags={"mlflow_opt.policy": "nonsense"}))


def test_own_policy_may_be_dropped_when_the_server_is_set_to_dry_run(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy("churn: {mode: enforce}\n")
    gated.create_registered_model("churn", tags={"mlflow_opt.policy": "validation_criteria: [{metric: speedup, min: 300}]"})
    refused(lambda: gated.delete_registered_model_tag("churn", "mlflow_opt.policy"))
    serve_policy("churn: {mode: dry_run}\n")
    gated.delete_registered_model_tag("churn", "mlflow_opt.policy")
    serve_policy("churn: {mode: enforce}\n")
    gated.set_registered_model_alias("churn", "champion", good(gated, "churn"))
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["policy", "refused", "dry_run", "accepted"]


def test_discovery_tells_the_policy_that_decides_when_asked(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy(STRICT.replace("churn: {", "churn: {guards: [Champion, prod], "))
    gated.create_registered_model("churn")
    gated.create_registered_model("other")
    ours, default = active_gate(gated, "churn"), active_gate(gated, "other")
    assert ours
    assert default
    assert ours.guards == ("champion", "prod")
    assert ours.policy("binary").digest == ours.policy("regression").digest == strict_evidence("").policy.digest
    assert default.policy("regression").digest == default_policy("regression").digest
    assert parse_policy(gated.get_registered_model("churn").tags["mlflow_opt.effective_policy"]) == ours.policy("binary")


def test_discovery_is_none_when_the_registry_has_no_gate(tracking_uri: str) -> None:
    plain = MlflowClient(tracking_uri, tracking_uri)
    plain.create_registered_model("churn")
    assert active_gate(plain, "churn") is None
    assert history_of(plain, "churn") == []


@pytest.mark.parametrize(("quantities", "moved"), [(GOOD, True), (WRONG, False)], ids=["passes", "fails"])
def test_challenger_becomes_champion_only_when_it_passes_and_promotion_is_automatic(
    gated: MlflowClient, serve_policy: Callable[[str], None], quantities: dict[str, Quantity], moved: bool
) -> None:
    serve_policy("churn: {promote: auto}\n")
    version = good(gated, "churn", quantities=quantities)
    gated.set_registered_model_alias("churn", "challenger", version)
    assert pointed(gated, "challenger") == version
    assert champion(gated) == (version if moved else "")
    assert [entry["action"] for entry in history_of(gated, "churn")] == ["accepted" if moved else "refused"]


def test_challenger_moves_nothing_when_promotion_is_manual_or_the_mode_is_dry_run(
    gated: MlflowClient, serve_policy: Callable[[str], None]
) -> None:
    serve_policy("churn: {promote: auto, mode: dry_run}\n")
    for name, actions in (("churn", ["advised"]), ("other", [])):
        gated.set_registered_model_alias(name, "challenger", good(gated, name))
        assert champion(gated, name) == ""
        assert [entry["action"] for entry in history_of(gated, name)] == actions
