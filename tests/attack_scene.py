"""Where an attack takes place: a live server, a model of its own with a proven champion, and what an attacker may try there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests
from mlflow import MlflowClient

from tests.evidence_factory import good, logged_model, model_id_of, register
from tests.servers import LiveServer


@dataclass(frozen=True)
class Scene:
    """A live server, a model of its own with a proven champion (version 1), and a version without evidence (2)."""

    server: LiveServer
    client: MlflowClient
    name: str
    champion_id: str
    source_id: str

    def unmoved(self) -> bool:
        return self.aliases() == {"champion": "1"}

    def set_alias(self, version: str, alias: str = "champion", name: str = "") -> requests.Response:
        return self.server.post("registered-models/alias", {"name": name or self.name, "alias": alias, "version": version})

    def aliases(self, name: str = "") -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model(name or self.name).aliases.items()}

    def against_champion(self, **changed: Any) -> str:
        return good(self.client, self.name, self.champion_id, **changed)

    def bare(self, name: str = "") -> str:
        return register(self.client, name or self.name, logged_model(self.client))

    def rest(self, route: str, method: str = "POST", **body: Any) -> requests.Response:
        return self.server.post(route, body, method=method)


def stage(server: LiveServer, name: str, **changed: Any) -> Scene:
    """Make a model of its own with a proven champion, and a second version without evidence."""
    client = server.client()
    source = logged_model(client)
    version = good(client, name, source, **changed)
    client.set_registered_model_alias(name, "champion", version)
    made = Scene(server, client, name, model_id_of(client, name, version), source)
    made.bare()
    return made
