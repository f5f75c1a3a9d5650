"""Who measured: a live server that trusts one key or one experiment, and clients that make evidence up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_opt.plugin.discovery import active_gate
from mlflow_opt.records import Quantity
from mlflow_opt.verdicts import signing
from mlflow_opt.verdicts.evidence import EVIDENCE_RUN
from tests.attack_scene import Scene, stage
from tests.evidence_factory import GOOD, SLOW, Evidence, champion, good, logged_model, model_id_of, refused, register, write_evidence
from tests.servers import LiveServer

MADE_UP = GOOD | {"speedup": Quantity(9.0, 8.9, 9.1, 900)}


def use_key(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv(signing.VARIABLE, str(path))


@pytest.fixture
def scene(policy_server: LiveServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Let the measuring job promote one signed version, and take its key away."""
    use_key(monkeypatch, policy_server.policy_file.parent / "ci.key")
    made = stage(policy_server, f"signed-{abs(hash(request.node.name))}")
    monkeypatch.delenv(signing.VARIABLE)
    return made


def made_up_and_unsigned(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    return scene.set_alias(scene.against_champion(quantities=MADE_UP)), "it is not signed"


def signed_by_a_key_of_ones_own(scene: Scene, folder: Path) -> tuple[requests.Response, str]:
    private, _ = signing.make_key()
    (folder / "own.key").write_bytes(private)
    with pytest.MonkeyPatch.context() as patch:
        use_key(patch, folder / "own.key")
        version = scene.against_champion(quantities=MADE_UP)
    return scene.set_alias(version), "it is signed by 'ed25519:"


def key_named_like_the_trusted_one(scene: Scene, folder: Path) -> tuple[requests.Response, str]:
    trusted = signing.key_id((scene.server.policy_file.parent / "ci.pub").read_text())
    private, public = signing.make_key()
    (folder / "own.key").write_bytes(private)
    with pytest.MonkeyPatch.context() as patch:
        use_key(patch, folder / "own.key")
        version = scene.against_champion(quantities=MADE_UP)
    run_id = evidence_run(scene, version)
    told = scene.client.get_run(run_id).data.tags[signing.SIGNATURE].replace(signing.key_id(public), trusted)
    scene.client.set_tag(run_id, signing.SIGNATURE, told)
    return scene.set_alias(version), "does not fit run"


def signature_of_an_honest_run(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    """Replay: the signature of the champion's own evidence on made-up evidence."""
    honest = scene.client.get_run(evidence_run(scene, "1")).data.tags[signing.SIGNATURE]
    return scene.set_alias(scene.against_champion(quantities=MADE_UP, tags={signing.SIGNATURE: honest})), "made for another run"


def honest_run_copied_whole(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    """Replay: every metric and tag of an honest run, but for the model that they name, on a run of one's own."""
    honest = scene.client.get_run(evidence_run(scene, "1")).data
    version = scene.bare()
    model_id = model_id_of(scene.client, scene.name, version)
    run = scene.client.create_run("0").info.run_id
    now = int(time.time() * 1000)
    scene.client.log_batch(run, [Metric(key, value, now, 0) for key, value in honest.metrics.items()])
    for key, value in honest.tags.items():
        if key.startswith("mlflow_opt."):
            scene.client.set_tag(run, key, model_id if key == "mlflow_opt.model_id" else value)
    scene.client.set_terminated(run, "FINISHED")
    scene.client.set_logged_model_tags(model_id, {EVIDENCE_RUN: run})
    return scene.set_alias(version), "were changed, or it was made for another run"


def honest_run_of_another_model(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    version = scene.bare()
    scene.client.set_logged_model_tags(model_id_of(scene.client, scene.name, version), {EVIDENCE_RUN: evidence_run(scene, "1")})
    return scene.set_alias(version), "evidence holds for one model"


def signed_run_changed_later(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    with pytest.MonkeyPatch.context() as patch:
        use_key(patch, scene.server.policy_file.parent / "ci.key")
        version = scene.against_champion(quantities=SLOW)
    later = int(time.time() * 1000) + 1000
    values = {"gate_speedup": 9.0, "gate_speedup_lo": 8.9, "gate_speedup_hi": 9.1}
    scene.client.log_batch(evidence_run(scene, version), [Metric(key, value, later, 1) for key, value in values.items()])
    return scene.set_alias(version), "does not fit run"


def signed_run_dated_anew(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    with pytest.MonkeyPatch.context() as patch:
        use_key(patch, scene.server.policy_file.parent / "ci.key")
        version = scene.against_champion(age_days=31)
    scene.client.set_tag(evidence_run(scene, version), "mlflow_opt.measured_at", str(int(time.time() * 1000)))
    return scene.set_alias(version), "does not fit run"


def signed_doubt_removed(scene: Scene, _: Path) -> tuple[requests.Response, str]:
    with pytest.MonkeyPatch.context() as patch:
        use_key(patch, scene.server.policy_file.parent / "ci.key")
        version = scene.against_champion(doubt="load was 7 on 2 cores")
    scene.client.delete_tag(evidence_run(scene, version), "mlflow_opt.doubt")
    return scene.set_alias(version), "does not fit run"


FORGERIES = [
    made_up_and_unsigned,
    signed_by_a_key_of_ones_own,
    key_named_like_the_trusted_one,
    signature_of_an_honest_run,
    honest_run_copied_whole,
    honest_run_of_another_model,
    signed_run_changed_later,
    signed_run_dated_anew,
    signed_doubt_removed,
]


def evidence_run(scene: Scene, version: str) -> str:
    return str(scene.client.get_logged_model(model_id_of(scene.client, scene.name, version)).tags[EVIDENCE_RUN])


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
def test_forgery_gains_nothing_when_the_live_server_trusts_one_key(
    scene: Scene, tmp_path: Path, forgery: Callable[[Scene, Path], tuple[requests.Response, str]]
) -> None:
    answer, said = forgery(scene, tmp_path)
    assert answer.status_code == 403, answer.text
    assert said in answer.json()["message"]
    assert scene.unmoved()


def test_measuring_job_promotes_and_anyone_rolls_back_when_the_server_trusts_its_key(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, scene.server.policy_file.parent / "ci.key")
    version = scene.against_champion()
    monkeypatch.delenv(signing.VARIABLE)
    assert scene.set_alias(version).ok
    assert scene.aliases() == {"champion": version, "previous": "1"}
    assert scene.set_alias("1").ok


def test_client_is_told_the_keys_when_it_asks_what_guards_a_model(scene: Scene) -> None:
    gate = active_gate(scene.client, scene.name)
    assert gate
    assert gate.policy("binary").trusted_keys == ((scene.server.policy_file.parent / "ci.pub").read_text(),)


def test_evidence_elsewhere_gains_nothing_when_the_live_server_trusts_one_experiment(policy_server: LiveServer) -> None:
    made = stage(policy_server, "placed-churn", experiment_id="0")
    answer = made.set_alias(made.against_champion(quantities=MADE_UP))
    assert answer.status_code == 403
    assert "experiment that the policy trusts (0)" in answer.json()["message"]
    assert made.unmoved()
    assert made.set_alias(made.against_champion(experiment_id="0")).ok


def test_evidence_on_other_rows_is_refused_when_the_live_server_names_them(policy_server: LiveServer) -> None:
    client = policy_server.client()
    version = good(client, "rows-churn")
    text = refused(lambda: client.set_registered_model_alias("rows-churn", "champion", version))
    assert "gate rows other-rows, got rows" in text
    client.set_registered_model_alias("rows-churn", "champion", good(client, "rows-churn", tags={"mlflow_opt.data_digest": "other-rows"}))


# --- in one process: how the policy names what it trusts --------------------------------------------------------------


def test_both_must_hold_when_the_policy_names_a_key_and_an_experiment(
    gated: MlflowClient, serve_policy: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = signing.make_key()
    (tmp_path / "ci.key").write_bytes(private)
    serve_policy(f'churn: {{trusted_keys: ["{public}"], trusted_experiments: [0]}}\n')
    unsigned = good(gated, "churn", experiment_id="0")
    assert "not signed" in refused(lambda: gated.set_registered_model_alias("churn", "champion", unsigned))
    use_key(monkeypatch, tmp_path / "ci.key")
    elsewhere = good(gated, "churn")
    assert "experiment that the policy trusts" in refused(lambda: gated.set_registered_model_alias("churn", "champion", elsewhere))
    version = good(gated, "churn", experiment_id="0")
    gated.set_registered_model_alias("churn", "champion", version)
    assert champion(gated) == version


@pytest.mark.parametrize("content", [None, "", "nonsense", "YWJj"], ids=["missing", "empty", "nonsense", "short"])
def test_everything_is_denied_when_a_trusted_key_cannot_be_read(
    gated: MlflowClient, serve_policy: Callable[[str], None], tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "ci.pub").write_text(content)
    serve_policy("churn: {trusted_keys: [ci.pub]}\n")
    version = good(gated, "churn")
    assert "trusted key must be" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    gate = active_gate(gated, "churn")
    assert gate
    assert gate.mode == "deny"


def test_key_is_changed_without_a_restart_when_its_file_is(
    gated: MlflowClient, serve_policy: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = signing.make_key(), signing.make_key()
    serve_policy("churn: {trusted_keys: [ci.pub]}\n")
    (tmp_path / "ci.pub").write_text(first[1])
    (tmp_path / "ci.key").write_bytes(second[0])
    use_key(monkeypatch, tmp_path / "ci.key")
    version = good(gated, "churn")
    refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
    (tmp_path / "ci.pub").write_text(second[1])
    gated.set_registered_model_alias("churn", "champion", version)


def test_models_own_policy_may_trust_fewer_and_never_more_when_kept_with_it(gated: MlflowClient, tmp_path: Path) -> None:
    keys = [signing.make_key()[1] for _ in range(2)]
    (tmp_path / "secret").write_text(keys[0])
    gated.create_registered_model("churn")

    def ask(text: str) -> None:
        gated.set_registered_model_tag("churn", "mlflow_opt.policy", f"validation_criteria: [{{metric: speedup, min: 1.2}}]\n{text}")

    assert "32 bytes" in refused(lambda: ask(f"trusted_keys: [{tmp_path}/secret]")), "the server must not open a client's file"
    ask(f"trusted_keys: ['{keys[0]}']\nverify_files: true")
    for text in ("", f"trusted_keys: ['{keys[1]}']\nverify_files: true", f"trusted_keys: ['{keys[0]}', '{keys[1]}']\nverify_files: true"):
        assert refused(lambda text=text: ask(text))  # type: ignore[misc]
    assert "stricter" in refused(lambda: ask(f"trusted_keys: ['{keys[0]}']"))


def test_signed_evidence_is_refused_when_it_compares_with_another_reference(
    gated: MlflowClient, serve_policy: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = signing.make_key()
    (tmp_path / "ci.key").write_bytes(private)
    serve_policy(f'churn: {{trusted_keys: ["{public}"]}}\n')
    use_key(monkeypatch, tmp_path / "ci.key")
    model_id = logged_model(gated, source="m-source")
    write_evidence(gated, model_id, Evidence("m-other"))
    version = register(gated, "churn", model_id)
    assert "compares with 'm-other'" in refused(lambda: gated.set_registered_model_alias("churn", "champion", version))
