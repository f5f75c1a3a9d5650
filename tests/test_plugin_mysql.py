"""The hook on MariaDB, whose names are equal in any letter case: the whole table of attacks, races, and look-alikes of its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import sqlalchemy as sa

from mlflow_opt.plugin.history import read_history
from mlflow_opt.plugin.lookalikes import folded
from tests.attack_scene import Scene, stage
from tests.evidence_factory import good, logged_model
from tests.servers import LiveServer
from tests.test_plugin_attacks import ATTACKS
from tests.test_plugin_server import promote_and_refuse

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(mysql_server: LiveServer, request: pytest.FixtureRequest) -> Scene:
    return stage(mysql_server, f"mysql-a{abs(hash(request.node.name))}")


def test_server_promotes_refuses_and_rolls_back_when_on_mariadb_with_two_workers(mysql_server: LiveServer) -> None:
    promote_and_refuse(mysql_server, "churn")


def test_fifty_clients_get_one_champion_when_they_race_on_mariadb(mysql_server: LiveServer) -> None:
    client = mysql_server.client()
    source = logged_model(client)
    versions = [good(client, "race", source) for _ in range(5)]

    def ask(index: int) -> int:
        body = {"name": "race", "alias": "champion", "version": versions[index % 5]}
        return mysql_server.post("registered-models/alias", body).status_code

    with ThreadPoolExecutor(50) as pool:
        assert sorted(pool.map(ask, range(50))) == [200] * 10 + [403] * 40
    engine = sa.create_engine(mysql_server.database, poolclass=sa.NullPool)
    assert [entry.action for entry in read_history(engine, "race")].count("accepted") == 1


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_refused_and_moves_nothing_when_tried_on_mariadb(scene: Scene, attack: Callable[[Scene], requests.Response]) -> None:
    answer = attack(scene)
    assert answer.status_code == 403, answer.text
    assert scene.unmoved()


def test_model_is_the_same_when_named_in_another_letter_case(scene: Scene) -> None:
    for name in (scene.name.upper(), scene.name.title()):
        assert scene.set_alias("2", name=name).status_code in (403, 404)
        renamed = scene.rest("registered-models/rename", name=name, new_name=f"{scene.name}-new")
        assert renamed.status_code in (403, 404)
    assert scene.unmoved()


def equal_aliases(database: str) -> list[str]:
    """Spell `champion` with the characters that the database takes for its letters and our folding does not."""
    engine = sa.create_engine(database, poolclass=sa.NullPool)
    column = (
        "SELECT collation_name FROM information_schema.columns WHERE table_schema = 'mlflow' "
        "AND table_name = 'registered_model_aliases' AND column_name = 'alias'"
    )
    characters = [chr(code) for code in range(0x80, 0x3000) if unicodedata.category(chr(code)) not in ("Cn", "Cc", "Cs")]
    with engine.connect() as connection:
        collation = connection.execute(sa.text(column)).scalar_one()
        connection.execute(sa.text(f"CREATE TEMPORARY TABLE one (letter VARCHAR(4) CHARACTER SET utf8mb4 COLLATE {collation})"))
        connection.execute(sa.text("INSERT INTO one VALUES (:letter)"), [{"letter": character} for character in characters])
        same = sa.text("SELECT letter FROM one WHERE letter = :letter")
        found = {letter: connection.execute(same, {"letter": letter}).scalars().all() for letter in "champion"}
    assert sum(map(len, found.values())) > 100, "accents at least are equal"
    return ["champion".replace(letter, char) for letter, chars in found.items() for char in chars if folded(char) != letter]


def test_alias_that_the_database_takes_for_champion_is_refused_when_our_folding_does_not(scene: Scene) -> None:
    aliases, told = equal_aliases(scene.server.database), list[str]()
    assert aliases
    for alias in aliases[:: max(1, len(aliases) // 20)]:
        answer = scene.set_alias("2", alias)
        assert answer.status_code in (400, 403), f"{alias!a}: {answer.text}"
        told.append(answer.json()["message"])
        assert scene.aliases()["champion"] == "1"
    assert any("takes the alias for 'champion'" in text for text in told)


def test_models_own_policy_stays_when_the_database_takes_another_tag_for_it(scene: Scene) -> None:
    strict, loose = (f"validation_criteria: [{{metric: speedup, min: {bound}}}]" for bound in (3, 1))
    scene.client.set_registered_model_tag(scene.name, "mlflow_opt.policy", strict)
    key = "mlfl\u00f8w_opt.policy"
    assert not folded(key).startswith("mlflow_opt.")
    answers = [
        scene.rest("registered-models/set-tag", name=scene.name, key=key, value=loose),
        scene.rest("registered-models/delete-tag", "DELETE", name=scene.name, key=key),
    ]
    assert not any(answer.ok for answer in answers), [answer.text for answer in answers]
    assert scene.client.get_registered_model(scene.name).tags["mlflow_opt.policy"] == strict
    assert scene.rest("registered-models/set-tag", name=scene.name, key="team", value="a").ok
