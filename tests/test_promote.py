"""`gate`, `promote`, `rollback` and `history` on real versions, with and without the registry hook."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_opt.commands.gate import gate
from mlflow_opt.commands.history import history
from mlflow_opt.commands.keygen import keygen
from mlflow_opt.commands.promote import promote
from mlflow_opt.commands.rollback import rollback
from mlflow_opt.records import Outcome
from mlflow_opt.signature import execute
from tests import versions
from tests.versions import NAME, Files

# The slow copy is many times slower, so that the plain one beats it whatever else the machine does.
POLICY = "validation_criteria:\n  - {metric: accuracy, max_drop: 0.05}\n  - {metric: speedup, min: 1.05}\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return versions.make_files(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def ungated(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri)


@pytest.fixture
def gated(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    policy = tmp_path / "server.yaml"
    policy.write_text('"*":\n' + "".join(f"  {line}\n" for line in POLICY.splitlines()))
    monkeypatch.setenv("MLFLOW_OPT_POLICY", str(policy))
    mlflow.set_registry_uri(f"gated+{tracking_uri}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"gated+{tracking_uri}")
    return MlflowClient()


@pytest.fixture(autouse=True)
def _registry_as_before() -> object:
    yield
    mlflow.set_registry_uri("")


def own_policy(folder: Path) -> str:
    path = folder / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def test_gate_passes_when_the_candidate_is_faster_and_equal(files: Files, ungated: MlflowClient, tmp_path: Path) -> None:
    _, slow = versions.register(files, "slow")
    version, model_id = versions.register(files, "plain", slow)
    verdict = gate(model=f"models:/{NAME}/{version}", data=str(files.pictures), policy=own_policy(tmp_path), budget_s=5.0)
    assert verdict.passed, verdict
    run = ungated.get_run(ungated.get_logged_model(model_id).tags["mlflow_opt.evidence_run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow_opt.reference_model_id"] == slow
    assert run.data.metrics["gate_speedup_lo"] >= run.data.metrics["gate_speedup_min"] == 1.05


def test_gate_fails_when_the_predictions_are_broken(files: Files, ungated: MlflowClient, tmp_path: Path) -> None:
    _, slow = versions.register(files, "slow")
    version, _ = versions.register(files, "broken", slow)
    verdict = gate(model=f"models:/{NAME}/{version}", data=str(files.pictures), policy=own_policy(tmp_path), budget_s=5.0)
    assert verdict.outcome is Outcome.FAIL
    failed = [reason for reason in verdict.reasons if reason.outcome is Outcome.FAIL]
    assert [reason.criterion.quantity for reason in failed if reason.criterion] == ["drop_accuracy"]
    assert ungated.search_registered_models()


def test_gate_explains_what_to_name_when_there_is_no_reference(files: Files, ungated: MlflowClient) -> None:
    version, _ = versions.register(files, "plain")
    with pytest.raises(ValueError, match="reference=models:/"):
        gate(model=f"models:/{NAME}/{version}", data=str(files.pictures))


def test_promote_measures_and_moves_the_alias_when_the_server_has_no_hook(
    files: Files, ungated: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, slow = versions.register(files, "slow")
    version, _ = versions.register(files, "plain", slow)
    verdict = promote(model=f"models:/{NAME}/{version}", data=str(files.pictures), policy=own_policy(tmp_path), budget_s=5.0)
    assert verdict.passed, verdict
    assert str(ungated.get_registered_model(NAME).aliases["champion"]) == version
    assert "nothing stops anyone" in caplog.text


def test_promote_leaves_the_alias_when_the_candidate_is_slower(files: Files, ungated: MlflowClient, tmp_path: Path) -> None:
    _, plain = versions.register(files, "plain")
    version, _ = versions.register(files, "slow", plain)
    verdict = promote(model=f"models:/{NAME}/{version}", data=str(files.pictures), policy=own_policy(tmp_path), budget_s=5.0)
    assert verdict.outcome is Outcome.FAIL
    assert "champion" not in ungated.get_registered_model(NAME).aliases


def test_promote_moves_refuses_and_rolls_back_when_the_registry_is_gated(
    files: Files, gated: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    _, slow = versions.register(files, "slow")
    first, plain = versions.register(files, "plain", slow)
    with pytest.raises(MlflowException, match="no evidence") as refused:
        gated.set_registered_model_alias(NAME, "champion", first)
    assert refused.value.error_code == "PERMISSION_DENIED"
    assert promote(model=f"models:/{NAME}/{first}", data=str(files.pictures), budget_s=5.0).passed
    assert str(gated.get_registered_model(NAME).aliases["champion"]) == first

    broken, _ = versions.register(files, "broken", plain)
    assert promote(model=f"models:/{NAME}/{broken}", data=str(files.pictures), budget_s=5.0).outcome is Outcome.FAIL
    with pytest.raises(MlflowException, match="drop_accuracy"):
        gated.set_registered_model_alias(NAME, "champion", broken)
    assert str(gated.get_registered_model(NAME).aliases["champion"]) == first

    history(name=NAME)
    told = capsys.readouterr().out
    assert "accepted" in told
    assert "refused" in told
    with pytest.raises(ValueError, match="no former version"):
        rollback(name=NAME)


def test_gate_and_hook_mean_the_same_reference_when_the_champion_is_no_logged_model(
    files: Files, gated: MlflowClient, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = MlflowClient(tracking_uri, tracking_uri)
    plain.create_registered_model(NAME)
    old = versions.register_place(files, "slow")
    plain.set_registered_model_alias(NAME, "champion", old)
    version, model_id = versions.register(files, "plain")
    assert gate(model=f"models:/{NAME}/{version}", data=str(files.pictures), budget_s=5.0, json=True).passed
    told = json.loads(capsys.readouterr().out)
    assert told["reference_model_id"] == told["reference"] == f"models:/{NAME}/{old}"
    assert told["evidence_run"] == gated.get_logged_model(model_id).tags["mlflow_opt.evidence_run"]
    gated.set_registered_model_alias(NAME, "champion", version)
    assert str(gated.get_registered_model(NAME).aliases["champion"]) == version


@pytest.mark.slow
def test_promote_compares_with_the_last_champion_when_the_alias_was_deleted(
    files: Files, gated: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = versions.register(files, "slow")
    first, plain = versions.register(files, "plain", source)
    assert promote(model=f"models:/{NAME}/{first}", data=str(files.pictures), budget_s=5.0).passed
    gated.delete_registered_model_alias(NAME, "champion")
    broken, _ = versions.register(files, "broken", source)
    assert promote(model=f"models:/{NAME}/{broken}", data=str(files.pictures), budget_s=5.0, json=True).outcome is Outcome.FAIL
    told = json.loads(capsys.readouterr().out)
    assert (told["outcome"], told["exit_code"], told["moved"], told["measured"]) == ("FAIL", 1, False, True)
    assert gated.get_run(told["evidence_run"]).data.tags["mlflow_opt.reference_model_id"] == plain
    missed = [reason for reason in told["reasons"] if reason["outcome"] == "FAIL"]
    assert missed[0]["quantity"] == "drop_accuracy"
    assert missed[0]["lo"] > missed[0]["bound"] == 0.05


@pytest.mark.slow
def test_promote_signs_what_the_server_trusts_when_it_holds_the_key(
    files: Files, gated: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keygen(path=str(tmp_path / "ci.key"))
    public = capsys.readouterr().out.strip()
    (tmp_path / "server.yaml").write_text(f'"*":\n  trusted_keys: ["{public}"]\n' + "".join(f"  {line}\n" for line in POLICY.splitlines()))
    _, slow = versions.register(files, "slow")
    version, _ = versions.register(files, "plain", slow)
    refused = promote(model=f"models:/{NAME}/{version}", data=str(files.pictures), budget_s=5.0)
    assert refused.outcome is Outcome.INCONCLUSIVE
    assert "nothing is measured here" in refused.reasons[0].text
    monkeypatch.setenv("MLFLOW_OPT_SIGNING_KEY", str(tmp_path / "ci.key"))
    assert promote(model=f"models:/{NAME}/{version}", data=str(files.pictures), budget_s=5.0).passed
    assert str(gated.get_registered_model(NAME).aliases["champion"]) == version


@pytest.mark.slow
def test_promote_waives_by_name_and_says_so_when_the_policy_allows(
    files: Files, gated: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "waive": "accuracy",
        "owner": "ann",
        "reason": "campaign",
        "until": time.strftime("%Y-%m-%d", time.gmtime(time.time() + 9e5)),
    }
    _, slow = versions.register(files, "slow")
    version, _ = versions.register(files, "broken", slow)
    asked: dict[str, Any] = {"model": f"models:/{NAME}/{version}", "data": str(files.pictures), "budget_s": 5.0}
    with pytest.raises(ValueError, match="forbids waivers"):
        promote(**asked, **given)
    policy = tmp_path / "server.yaml"
    policy.write_text(policy.read_text() + "  waivers: true\n")
    with pytest.raises(ValueError, match="owner"):
        promote(**asked, **(given | {"owner": ""}))
    with pytest.raises(ValueError, match="until"):
        promote(**asked, **(given | {"until": "2020-01-01"}))
    capsys.readouterr()
    assert promote(**asked, **given, json=True).passed
    told = json.loads(capsys.readouterr().out)
    assert (told["moved"], told["exit_code"], told["waived"][0]["metric"]) == (True, 0, "drop_accuracy")
    described = str(gated.get_model_version(NAME, version).description)
    assert "on a waiver" in described
    assert "WAIVED until" in described
    history(name=NAME)
    assert "waived" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["short", "nan"])
def test_promote_is_no_pass_and_leaves_the_alias_when_the_candidate_answers_nonsense(
    files: Files, gated: MlflowClient, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, slow = versions.register(files, "slow")
    version, model_id = versions.register(files, kind, slow)
    code = execute(promote, ["--model", f"models:/{NAME}/{version}", "--data", str(files.pictures), "--budget_s", "5", "--json", "true"])
    told = json.loads(capsys.readouterr().out)
    assert code == told["exit_code"] != 0
    assert told.get("error") or told["outcome"] != "PASS"
    assert "champion" not in gated.get_registered_model(NAME).aliases
    with pytest.raises(MlflowException):
        gated.set_registered_model_alias(NAME, "champion", version)
    assert model_id


def test_gate_says_that_the_baseline_is_gone_when_its_files_are(files: Files, ungated: MlflowClient, tmp_path: Path) -> None:
    _, slow = versions.register(files, "slow")
    version, model_id = versions.register(files, "plain", slow)
    shutil.rmtree(ungated.get_logged_model(slow).artifact_location.removeprefix("file://"))
    with pytest.raises(ValueError, match="MLmodel"):
        gate(model=f"models:/{NAME}/{version}", data=str(files.pictures), policy=own_policy(tmp_path), budget_s=5.0)
    assert "mlflow_opt.evidence_run" not in ungated.get_logged_model(model_id).tags


@pytest.mark.parametrize("change", ["other column", "no rows"])
def test_gate_measures_nothing_when_the_data_does_not_fit(files: Files, ungated: MlflowClient, tmp_path: Path, change: str) -> None:
    _, slow = versions.register(files, "slow")
    version, model_id = versions.register(files, "plain", slow)
    arrays = dict(np.load(files.pictures))
    name = next(key for key in arrays if key != "target")
    arrays = {key: value[:0] for key, value in arrays.items()} if change == "no rows" else {"other": arrays.pop(name)[:, :4], **arrays}
    np.savez(tmp_path / "other.npz", **arrays)
    words = ["--model", f"models:/{NAME}/{version}", "--data", str(tmp_path / "other.npz"), "--policy", own_policy(tmp_path)]
    assert execute(gate, [*words, "--budget_s", "5"]) == 3
    assert "mlflow_opt.evidence_run" not in ungated.get_logged_model(model_id).tags


@pytest.mark.parametrize("uri", ["", "churn", "models:/nobody/1", "models:/m-1", "models:/nobody@champion"])
def test_promote_says_what_a_version_is_when_the_model_names_none(uri: str, ungated: MlflowClient) -> None:
    del ungated
    with pytest.raises((ValueError, MlflowException), match=r"model must name|not found"):
        promote(model=uri)


def test_history_says_how_to_get_one_when_the_server_has_no_hook(files: Files, ungated: MlflowClient) -> None:
    del ungated
    versions.register(files, "plain")
    with pytest.raises(ValueError, match="gated"):
        history(name=NAME)
