"""How a client learns what guards a registered model: virtual tags that the gated registry adds when a model is read.

No server code is imported here. The tags are not stored, and nobody can set them: their prefix is reserved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Policy
from mlflow_opt.verdicts.evidence import PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

GATE = PREFIX + "gate"
EFFECTIVE_POLICY = PREFIX + "effective_policy"
HISTORY = PREFIX + "history"
WAIVERS = PREFIX + "waivers"
# MLflow allows no slash in a registered model's name, so a name that starts like this is a question to the hook, and
# a registry without the hook has no such model.
NAMELESS = PREFIX + "gate/"


@dataclass(frozen=True)
class GateInfo:
    """What the server says of its gate for one registered model.

    Args:
        mode: `enforce`, `dry_run`, `off`, or `deny` where the server cannot read its policy and refuses everything.
        guards: guarded aliases.
        promote: `manual` or `auto`.
        origin: where the policy comes from.
        texts: task -> text of the policy in force for it; the same text for every task unless the default criteria apply.
        references: guarded alias -> identity of the model that evidence must compare with: the one it points to, or last
            pointed to; empty where there never was one, and then it is the source of the model that is judged.
        problem: why the server denies, empty if it does not.

    """

    mode: str
    guards: tuple[str, ...]
    promote: str
    origin: str
    texts: Mapping[str, str]
    references: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    def policy(self, task: str) -> Policy:
        """Return the policy that the server judges by, for `binary`, `multiclass` or `regression`.

        Raises:
            ValueError: the server denies everything, or there is no such task.

        """
        if self.problem:
            raise ValueError(f"the server's gate denies every promotion: {self.problem}")
        if task not in self.texts:
            raise ValueError(f"task must be one of {', '.join(self.texts)}, got '{task}'.")
        return parse_policy(self.texts[task], f"the server's policy ({self.origin})")


def active_gate(client: MlflowClient, name: str) -> GateInfo | None:
    """Ask the registry what guards a model; None means that the registry has no gate and nothing stops others.

    A name that does not exist yet is answered as well, with the policy that will guard it.

    Raises:
        mlflow.exceptions.MlflowException: the server cannot be reached.

    """
    found = _read(client, name) or _read(client, NAMELESS + name)
    if found is None or GATE not in found.tags:
        return None
    gate = json.loads(found.tags[GATE])
    return GateInfo(
        mode=gate["mode"],
        guards=tuple(gate.get("guards", ())),
        promote=gate.get("promote", "manual"),
        origin=gate.get("origin", ""),
        texts=gate.get("policies", {}),
        references=gate.get("references", {}),
        problem=gate.get("problem", ""),
    )


def history_of(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """Return the newest entries of a model's history, oldest first; empty where the registry has no gate."""
    told = client.get_registered_model(name).tags.get(HISTORY, "[]")
    return cast("list[dict[str, Any]]", json.loads(told))


def _read(client: MlflowClient, name: str) -> RegisteredModel | None:
    # MLflow is there wherever a client is; this module must not need it, as the nouns do not.
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        # A registry without the hook may object to the slash, and one with permissions to a name that nobody was given.
        unknown = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED") if name.startswith(NAMELESS) else ()
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", *unknown):
            return None
        raise
