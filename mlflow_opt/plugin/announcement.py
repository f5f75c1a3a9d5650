"""The other side of `discovery`: the virtual tags that the gated registry adds to what clients read."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence

from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.webhooks.types import ModelVersionAliasCreatedPayload

from mlflow_opt.plugin.discovery import EFFECTIVE_POLICY, GATE, HISTORY, WAIVERS
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.server_policy import TASKS, Cover
from mlflow_opt.policy import policy_text
from mlflow_opt.records import Policy
from mlflow_opt.verdicts.waivers import Waiver


def gate_tags(cover: Cover, references: Mapping[str, str]) -> dict[str, str]:
    """Say what guards a model, by which policy, and what its guarded aliases are compared with."""
    texts = {task: _text(cover.policy(task)) for task in TASKS}
    told = {
        "active": True,
        "mode": cover.mode,
        "guards": sorted(cover.guards),
        "promote": cover.any.promote,
        "default": cover.default,
        "origin": cover.origin,
        "policy_digest": "" if cover.default else cover.any.digest,
        "policies": texts,
        "references": dict(references),
    }
    tags = {GATE: json.dumps(told)}
    return tags if cover.default else tags | {EFFECTIVE_POLICY: texts[TASKS[0]]}


@functools.lru_cache(maxsize=64)
def _text(policy: Policy) -> str:
    # Clients read models often, and policies hardly ever change.
    return policy_text(policy)


def denied_tags(problem: str) -> dict[str, str]:
    """Say that the gate is there and refuses everything, because its policy cannot be used."""
    return {GATE: json.dumps({"active": True, "mode": "deny", "problem": problem})}


def history_tag(past: list[Entry]) -> dict[str, str]:
    """List the newest entries for clients."""
    return {HISTORY: json.dumps([entry.public() for entry in past])}


def version_tags(past: list[Entry]) -> dict[str, str]:
    """Say on a version's page what was last decided about it."""
    if not past:
        return {}
    last = past[-1]
    outcome = f" ({last.outcome})" if last.outcome else ""
    return {GATE: f"{last.action}{outcome} for {last.alias or 'the version'}, asked by {last.user}. {'; '.join(last.reasons)}".strip()}


def waiver_tags(waived: Sequence[Waiver]) -> dict[str, str]:
    """Say on a version's page what is waived for it."""
    return {WAIVERS: "; ".join(f"{waiver.text} (for {waiver.alias})" for waiver in waived)} if waived else {}


def tell_webhooks(store: AbstractStore, name: str, alias: str, number: int) -> None:
    """Announce an alias that the hook moved by itself, as MLflow announces one that a client asked for."""
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

    if not os.environ.get(BACKEND_STORE_URI_ENV_VAR):
        # Only a server has subscribers.
        return
    from mlflow.webhooks.delivery import deliver_webhook

    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    deliver_webhook(event=event, payload=ModelVersionAliasCreatedPayload(name=name, alias=alias, version=str(number)), store=store)
