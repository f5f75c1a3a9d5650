"""Which model a version is: what its readers download, whatever its source's name came to mean later, or its number was before."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_opt.flavours.model_files import folder_digest
from mlflow_opt.plugin.discovery import active_gate, history_of
from tests.attack_scene import Scene, stage
from tests.evidence_factory import (
    Evidence,
    champion,
    experiment,
    good,
    logged_model,
    model_id_of,
    refused,
    register,
    registry,
    write_evidence,
)
from tests.servers import LiveServer


@pytest.fixture
def scene(gated_server: LiveServer, request: pytest.FixtureRequest) -> Scene:
    return stage(gated_server, f"identity-{abs(hash(request.node.name))}")


def other_then_copied(scene: Scene) -> tuple[str, str]:
    """Copy a version without evidence from another model; returns that model and the copy's number."""
    other = f"{scene.name}-other"
    scene.bare(other)
    return other, str(scene.client.copy_model_version(f"models:/{other}/1", scene.name).version)


def test_copy_is_what_its_readers_download_when_its_original_is_made_anew_as_a_good_model(scene: Scene) -> None:
    other, copied = other_then_copied(scene)
    scene.client.delete_registered_model(other)
    good(scene.client, other, scene.champion_id)
    answer = scene.set_alias(copied)
    assert (answer.status_code, scene.unmoved()) == (403, True), answer.text
    assert "has no evidence" in answer.json()["message"]


def test_copy_is_what_its_readers_download_when_its_original_is_renamed_away(scene: Scene) -> None:
    other, copied = other_then_copied(scene)
    assert scene.rest("registered-models/rename", name=other, new_name=f"{other}-away").ok
    good(scene.client, other, scene.champion_id)
    assert scene.set_alias(copied).status_code == 403
    assert scene.unmoved()


def test_source_that_is_spelled_like_a_good_models_files_is_refused_when_they_are_elsewhere(scene: Scene) -> None:
    passing = model_id_of(scene.client, scene.name, scene.against_champion())
    made = scene.rest("model-versions/create", name=scene.name, source=f"s3://mine/models/{passing}/artifacts")
    answer = scene.set_alias(made.json()["model_version"]["version"])
    assert answer.status_code == 403
    assert f"the version's files must be those of {passing}" in answer.json()["message"]
    assert scene.unmoved()


def test_reference_is_what_the_champion_is_when_a_copy_holds_the_alias_and_its_original_changes(scene: Scene) -> None:
    other = f"{scene.name}-other"
    good(scene.client, other, scene.champion_id)
    copied = str(scene.client.copy_model_version(f"models:/{other}/1", scene.name).version)
    first = model_id_of(scene.client, other, "1")
    assert scene.set_alias(copied).ok
    scene.client.delete_registered_model(other)
    scene.bare(other)
    gate = active_gate(scene.client, scene.name)
    assert gate
    assert gate.references["champion"] == first


def test_rollback_is_refused_when_another_model_was_renamed_into_the_place_of_a_champion(scene: Scene) -> None:
    other = f"{scene.name}-other"
    scene.bare(other)
    scene.client.delete_registered_model(scene.name)
    assert scene.rest("registered-models/rename", name=other, new_name=scene.name).ok
    answer = scene.set_alias("1")
    assert answer.status_code == 403
    assert scene.aliases() == {}


def placed(client: MlflowClient, name: str) -> str:
    return str(registry(client).create_model_version(name, "s3://bucket/model").version)


@pytest.fixture
def adopted(gated: MlflowClient, tracking_uri: str) -> MlflowClient:
    """Make version 1, which is no logged model, a former champion from before the hook, and version 2 today's."""
    plain = MlflowClient(tracking_uri, tracking_uri)
    plain.create_registered_model("churn")
    plain.set_registered_model_alias("churn", "champion", placed(plain, "churn"))
    model_id = logged_model(gated)
    write_evidence(gated, model_id, Evidence("models:/churn/1"))
    gated.set_registered_model_alias("churn", "champion", register(gated, "churn", model_id))
    return gated


def test_rollback_goes_to_a_version_that_is_no_logged_model_when_it_was_champion(adopted: MlflowClient) -> None:
    adopted.set_registered_model_alias("churn", "champion", "1")
    assert champion(adopted) == "1"


def test_rollback_is_refused_when_a_place_is_given_to_another_model(adopted: MlflowClient) -> None:
    adopted.delete_registered_model("churn")
    adopted.create_registered_model("churn")
    assert placed(adopted, "churn") == "1"
    assert "no logged model" in refused(lambda: adopted.set_registered_model_alias("churn", "champion", "1"))


def test_rollback_is_refused_when_a_model_is_renamed_into_a_place(adopted: MlflowClient) -> None:
    adopted.create_registered_model("other")
    placed(adopted, "other")
    adopted.delete_registered_model("churn")
    adopted.rename_registered_model("other", "churn")
    assert "no logged model" in refused(lambda: adopted.set_registered_model_alias("churn", "champion", "1"))


def test_reference_is_nothing_that_can_be_measured_when_its_place_was_given_to_another(gated: MlflowClient, tracking_uri: str) -> None:
    plain = MlflowClient(tracking_uri, tracking_uri)
    plain.create_registered_model("churn")
    plain.set_registered_model_alias("churn", "champion", placed(plain, "churn"))
    gated.delete_registered_model("churn")
    gated.create_registered_model("churn")
    placed(gated, "churn")
    model_id = logged_model(gated)
    write_evidence(gated, model_id, Evidence("models:/churn/1"))
    version = register(gated, "churn", model_id)
    assert "'models:/churn/1, which is deleted'" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == ""


def test_alias_of_a_lookalike_proves_nothing_when_the_guarded_one_is_asked_for(
    gated: MlflowClient, serve_policy: Callable[[str], None]
) -> None:
    serve_policy('churn: {mode: "off"}\n')
    version = register(gated, "churn", logged_model(gated))
    gated.set_registered_model_alias("churn", "Champion", version)
    serve_policy("churn: {mode: enforce}\n")
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    assert champion(gated) == ""


def test_lookalike_of_a_guarded_name_is_guarded_when_the_rest_is_a_dry_run(
    gated: MlflowClient, serve_policy: Callable[[str], None]
) -> None:
    serve_policy('churn: {mode: enforce}\n"*": {mode: dry_run}\n')
    version = register(gated, "\u0441hurn", logged_model(gated))
    refused(lambda: gated.set_registered_model_alias("\u0441hurn", "champion", version))


def test_prompt_tag_does_not_hide_the_gate_when_the_model_has_real_versions(gated: MlflowClient) -> None:
    register(gated, "churn", logged_model(gated))
    gated.set_registered_model_tag("churn", "mlflow.prompt.is_prompt", "true")
    assert '"mode": "enforce"' in registry(gated).store.get_registered_model("churn")._tags["mlflow_opt.gate"]


# --- a name that does not exist yet -----------------------------------------------------------------------------------


def test_policy_of_a_name_is_told_when_it_does_not_exist_yet(gated: MlflowClient, serve_policy: Callable[[str], None]) -> None:
    serve_policy("churn: {validation_criteria: [{metric: speedup, min: 1.5}]}\n")
    gate = active_gate(gated, "churn")
    assert gate
    assert [each.bound for each in gate.policy("binary").criteria] == [1.5]
    assert gate.references == {}
    assert not gated.search_registered_models()


def test_policy_of_a_name_is_told_by_a_live_server_when_it_does_not_exist_yet(policy_server: LiveServer) -> None:
    gate = active_gate(policy_server.client(), "auto-not-there-yet")
    assert gate
    assert gate.promote == "auto"
    assert "auto-not-there-yet" not in [model.name for model in policy_server.client().search_registered_models()]


def test_policy_of_a_name_is_none_when_the_registry_has_no_gate(tracking_uri: str) -> None:
    assert active_gate(MlflowClient(tracking_uri, tracking_uri), "churn") is None


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(gated: MlflowClient, serve_policy: Callable[[str], None], tmp_path: Path) -> tuple[MlflowClient, str, Path]:
    """Register a version with evidence for its files, under a policy that has them hashed; gives the folder where they are kept."""
    serve_policy("churn: {verify_files: true}\n")
    files = tmp_path / "files"
    files.mkdir()
    (files / "MLmodel").write_text("flavors: {}\n")
    with (files / "weights.bin").open("wb") as weights:
        weights.truncate(300_000_000)
    model = mlflow.initialize_logged_model(name="big", experiment_id=experiment(gated), tags={"mlflow_opt.source_model_id": "m-source"})
    gated.log_model_artifacts(model.model_id, str(files))
    gated.finalize_logged_model(model.model_id, "READY")
    write_evidence(gated, model.model_id, replace(Evidence("m-source"), tags={"mlflow_opt.model_digest": folder_digest(files)}))
    version = register(gated, "churn", model.model_id)
    return gated, version, Path(gated.get_logged_model(model.model_id).artifact_location.removeprefix("file://"))


def test_files_are_hashed_while_nothing_is_locked_when_the_policy_asks(
    checked: tuple[MlflowClient, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, version, _ = checked
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asking = threading.Thread(target=client.set_registered_model_alias, args=("churn", "champion", version))
    asking.start()
    until = time.monotonic() + 20
    while not list(tmp_path.glob("mlflow-opt-verify-*")) and time.monotonic() < until:
        time.sleep(0.001)
    # It needs the lock that the decision takes, and gets it while the files are still being read.
    client.set_registered_model_alias("churn", "dev", version)
    assert list(tmp_path.glob("mlflow-opt-verify-*"))
    assert asking.is_alive()
    asking.join()
    assert champion(client) == version


def test_alias_is_refused_when_the_files_changed_or_are_gone(checked: tuple[MlflowClient, str, Path]) -> None:
    client, version, folder = checked
    (folder / "weights.bin").write_bytes(b"other")
    assert "must be those that were measured" in refused(lambda: client.set_registered_model_alias("churn", "champion", version))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert "could not be hashed" in refused(lambda: client.set_registered_model_alias("churn", "champion", version))
    assert champion(client) == ""


def test_challenger_is_promoted_with_its_files_hashed_when_promotion_is_automatic(
    checked: tuple[MlflowClient, str, Path], serve_policy: Callable[[str], None]
) -> None:
    client, version, _ = checked
    serve_policy("churn: {verify_files: true, promote: auto}\n")
    client.set_registered_model_alias("churn", "challenger", version)
    assert champion(client) == version
    assert [entry["action"] for entry in history_of(client, "churn")] == ["accepted"]
