"""The table of attacks: each is tried on a live server over REST, must be answered as the table says, and must not move `champion`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from mlflow.entities import Metric

from mlflow_opt.plugin.discovery import history_of
from mlflow_opt.records import Quantity
from mlflow_opt.verdicts.evidence import EVIDENCE_RUN
from tests.attack_scene import Scene
from tests.evidence_factory import GOOD, WRONG, Evidence, candidate, good, logged_model, model_id_of, write_evidence
from tests.servers import LiveServer


@pytest.fixture
def scene(gated_server: LiveServer, request: pytest.FixtureRequest) -> Scene:
    client, name = gated_server.client(), f"attack-{abs(hash(request.node.name))}"
    source = logged_model(client)
    version = good(client, name, source)
    client.set_registered_model_alias(name, "champion", version)
    made = Scene(gated_server, client, name, model_id_of(client, name, version), source)
    made.bare()
    return made


def alias_set(scene: Scene) -> requests.Response:
    return scene.set_alias("2")


def alias_in_another_letter_case(scene: Scene) -> requests.Response:
    return scene.set_alias("2", "CHAMPION")


def alias_that_looks_alike(scene: Scene) -> requests.Response:
    return scene.set_alias("2", "\u0441hampion")


def alias_with_a_line_end(scene: Scene) -> requests.Response:
    return scene.set_alias("2", "champion\n")


def previous_set_by_hand(scene: Scene) -> requests.Response:
    return scene.set_alias("2", "previous")


def alias_deleted_then_set(scene: Scene) -> requests.Response:
    scene.client.delete_registered_model_alias(scene.name, "champion")
    answer = scene.set_alias("2")
    assert scene.set_alias("1").ok, "the former champion may come back"
    return answer


def alias_deleted_to_reset_the_reference(scene: Scene) -> requests.Response:
    version = good(scene.client, scene.name, scene.source_id)
    scene.client.delete_registered_model_alias(scene.name, "champion")
    answer = scene.set_alias(version)
    assert scene.champion_id in answer.json()["message"]
    assert scene.set_alias("1").ok
    return answer


def stage_production(scene: Scene) -> requests.Response:
    return scene.rest("model-versions/transition-stage", name=scene.name, version="2", stage="Production", archive_existing_versions=True)


def copy_then_alias(scene: Scene) -> requests.Response:
    copied = scene.client.copy_model_version(f"models:/{scene.name}/2", scene.name)
    return scene.set_alias(str(copied.version))


def rename_onto(scene: Scene) -> requests.Response:
    other = f"{scene.name}-other"
    scene.client.set_registered_model_alias(other, "champion", good(scene.client, other))
    return scene.rest("registered-models/rename", name=other, new_name=f"{scene.name}-new")


def rename_away(scene: Scene) -> requests.Response:
    return scene.rest("registered-models/rename", name=scene.name, new_name=f"{scene.name}-new")


def delete_and_recreate_version(scene: Scene) -> requests.Response:
    scene.client.delete_model_version(scene.name, "2")
    return scene.set_alias(scene.bare())


def reserved_tag_on_model(scene: Scene) -> requests.Response:
    return scene.rest("registered-models/set-tag", name=scene.name, key="mlflow_opt.gate", value="{}")


def reserved_tag_deleted(scene: Scene) -> requests.Response:
    return scene.rest("registered-models/delete-tag", "DELETE", name=scene.name, key="mlflow_opt.policy")


def reserved_tag_on_version(scene: Scene) -> requests.Response:
    return scene.rest("model-versions/set-tag", name=scene.name, version="2", key="mlflow_opt.verdict", value="PASS")


def reserved_tag_at_creation_of_model(scene: Scene) -> requests.Response:
    return scene.rest("registered-models/create", name=f"{scene.name}-new", tags=[{"key": "mlflow_opt.verdict", "value": "PASS"}])


def reserved_tag_at_creation_of_version(scene: Scene) -> requests.Response:
    tags = [{"key": "mlflow_opt.verdict", "value": "PASS"}]
    return scene.rest(
        "model-versions/create", name=scene.name, source=f"models:/{scene.champion_id}", model_id=scene.champion_id, tags=tags
    )


def version_without_a_model_id(scene: Scene) -> requests.Response:
    run = scene.client.get_logged_model(scene.champion_id)
    evidence_run = run.tags[EVIDENCE_RUN]
    made = scene.rest("model-versions/create", name=scene.name, source=f"runs:/{evidence_run}/model", run_id=evidence_run)
    return scene.set_alias(made.json()["model_version"]["version"])


def source_elsewhere(scene: Scene) -> requests.Response:
    made = scene.rest("model-versions/create", name=scene.name, source="s3://bucket/model")
    return scene.set_alias(made.json()["model_version"]["version"])


def evidence_run_of_another_model(scene: Scene) -> requests.Response:
    other = logged_model(scene.client, source=scene.champion_id)
    run = write_evidence(scene.client, other, Evidence(scene.champion_id))
    ours = model_id_of(scene.client, scene.name, "2")
    scene.client.set_logged_model_tags(ours, {EVIDENCE_RUN: run})
    return scene.set_alias("2")


def evidence_run_unfinished(scene: Scene) -> requests.Response:
    return scene.set_alias(scene.against_champion(status="RUNNING"))


def evidence_of_another_reference(scene: Scene) -> requests.Response:
    return scene.set_alias(good(scene.client, scene.name, scene.source_id))


def evidence_for_another_policy(scene: Scene) -> requests.Response:
    return scene.set_alias(scene.against_champion(tags={"mlflow_opt.policy_digest": "f" * 16}))


def evidence_that_is_stale(scene: Scene) -> requests.Response:
    return scene.set_alias(scene.against_champion(age_days=31))


def evidence_that_fails(scene: Scene) -> requests.Response:
    return scene.set_alias(candidate(scene.client, scene.name, Evidence(scene.champion_id, quantities=WRONG)))


def metric_logged_twice(scene: Scene) -> requests.Response:
    version = scene.against_champion(quantities=WRONG)
    run = scene.client.get_logged_model(model_id_of(scene.client, scene.name, version)).tags[EVIDENCE_RUN]
    later = int(time.time() * 1000) + 1000
    values = {"gate_drop_roc_auc": 0.0, "gate_drop_roc_auc_lo": 0.0, "gate_drop_roc_auc_hi": 0.0}
    scene.client.log_batch(run, [Metric(key, value, later, 1) for key, value in values.items()])
    return scene.set_alias(version)


def nan_logged(scene: Scene) -> requests.Response:
    return scene.set_alias(scene.against_champion(quantities=GOOD | {"drop_roc_auc": Quantity(math.nan, math.nan, math.nan, 4000)}))


def infinity_logged(scene: Scene) -> requests.Response:
    return scene.set_alias(scene.against_champion(quantities=GOOD | {"speedup": Quantity(math.inf, math.inf, math.inf, 900)}))


def nan_logged_with_a_model_id(scene: Scene) -> requests.Response:
    """MLflow keeps a NaN that is logged with a model id as 0 on the model, which would be a perfect drop."""
    version = scene.against_champion(quantities={"speedup": GOOD["speedup"]})
    model_id = model_id_of(scene.client, scene.name, version)
    run = scene.client.get_logged_model(model_id).tags[EVIDENCE_RUN]
    for part in ("", "_lo", "_hi"):
        scene.client.log_metric(run, f"gate_drop_roc_auc{part}", math.nan, model_id=model_id)
    scene.client.log_metric(run, "gate_drop_roc_auc_n", 4000, model_id=model_id)
    return scene.set_alias(version)


def infinity_logged_with_a_model_id(scene: Scene) -> requests.Response:
    version = scene.against_champion(quantities={"drop_roc_auc": GOOD["drop_roc_auc"]})
    model_id = model_id_of(scene.client, scene.name, version)
    run = scene.client.get_logged_model(model_id).tags[EVIDENCE_RUN]
    for part, value in (("", math.inf), ("_lo", math.inf), ("_hi", math.inf), ("_n", 900)):
        scene.client.log_metric(run, f"gate_speedup{part}", value, model_id=model_id)
    return scene.set_alias(version)


def metrics_on_the_logged_model_alone(scene: Scene) -> requests.Response:
    version = scene.against_champion(quantities={})
    model_id = model_id_of(scene.client, scene.name, version)
    other = scene.client.create_run("0").info.run_id
    for name, quantity in GOOD.items():
        for part, value in (("", quantity.value), ("_lo", quantity.lo), ("_hi", quantity.hi), ("_n", quantity.n)):
            scene.client.log_metric(other, f"gate_{name}{part}", value, model_id=model_id)
    return scene.set_alias(version)


def prompt_tag_on_a_model(scene: Scene) -> requests.Response:
    scene.rest("registered-models/set-tag", name=scene.name, key="mlflow.prompt.is_prompt", value="true")
    answer = scene.set_alias("2")
    scene.rest("registered-models/delete-tag", "DELETE", name=scene.name, key="mlflow.prompt.is_prompt")
    return answer


def prompt_placeholder_among_models(scene: Scene) -> requests.Response:
    tags = [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    made = scene.rest("model-versions/create", name=scene.name, source="dummy-source", tags=tags)
    return scene.set_alias(made.json()["model_version"]["version"])


def lookalike_of_the_model_name(scene: Scene) -> requests.Response:
    """Try a name that prints like ours: it is another model, and the default policy guards it as well."""
    name = scene.name.replace("a", "\u0430")
    return scene.set_alias(scene.bare(name), name=name)


def user_named_by_a_client(scene: Scene) -> requests.Response:
    answer = scene.rest("registered-models/alias", name=scene.name, alias="champion", version="2", user="admin", user_id="admin")
    assert history_of(scene.client, scene.name)[-1]["user"] == "unauthenticated"
    return answer


ATTACKS: list[Callable[[Scene], requests.Response]] = [
    alias_set,
    alias_in_another_letter_case,
    alias_that_looks_alike,
    alias_with_a_line_end,
    previous_set_by_hand,
    alias_deleted_then_set,
    alias_deleted_to_reset_the_reference,
    stage_production,
    copy_then_alias,
    rename_onto,
    rename_away,
    delete_and_recreate_version,
    reserved_tag_on_model,
    reserved_tag_deleted,
    reserved_tag_on_version,
    reserved_tag_at_creation_of_model,
    reserved_tag_at_creation_of_version,
    version_without_a_model_id,
    source_elsewhere,
    evidence_run_of_another_model,
    evidence_run_unfinished,
    evidence_of_another_reference,
    evidence_for_another_policy,
    evidence_that_is_stale,
    evidence_that_fails,
    metric_logged_twice,
    nan_logged,
    infinity_logged,
    nan_logged_with_a_model_id,
    infinity_logged_with_a_model_id,
    metrics_on_the_logged_model_alone,
    prompt_tag_on_a_model,
    prompt_placeholder_among_models,
    lookalike_of_the_model_name,
    user_named_by_a_client,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_refused_and_moves_nothing_when_tried_on_a_live_server(
    scene: Scene, attack: Callable[[Scene], requests.Response]
) -> None:
    answer = attack(scene)
    assert answer.status_code == 403, answer.text
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert scene.aliases() == {"champion": "1"}


def test_model_deleted_and_recreated_is_still_compared_with_its_last_champion_when_promoted(scene: Scene) -> None:
    scene.client.delete_registered_model(scene.name)
    version = good(scene.client, scene.name, scene.source_id)
    answer = scene.set_alias(version)
    assert answer.status_code == 403
    assert scene.champion_id in answer.json()["message"]
    assert [entry["action"] for entry in history_of(scene.client, scene.name)][-2:] == ["deleted", "refused"]


def test_fifty_clients_get_one_champion_when_they_race(scene: Scene) -> None:
    versions = [scene.against_champion() for _ in range(5)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda index: scene.set_alias(versions[index % 5]).status_code, range(50)))
    assert sorted(answers) == [200] * 10 + [403] * 40
    won = scene.aliases()["champion"]
    assert won in versions
    assert scene.aliases() == {"champion": won, "previous": "1"}
    actions = [entry["action"] for entry in history_of(scene.client, scene.name)]
    assert actions.count("accepted") == 2
    assert set(actions[2:]) <= {"refused", "unchanged"}
