"""`gate`, `promote`, `rollback` and `history` on real versions, with and without the registry hook."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_opt.commands.gate import gate
from mlflow_opt.commands.history import history
from mlflow_opt.commands.promote import promote
from mlflow_opt.commands.rollback import rollback
from mlflow_opt.records import Outcome
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
