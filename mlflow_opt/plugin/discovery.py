"""How a client learns what guards a registered model: virtual tags that the gated registry adds when a model is read.

No server code is imported here. The tags are not stored, and nobody can set them: their prefix is reserved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from mlflow_opt.evidence import PREFIX
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Policy

if TYPE_CHECKING:
    from mlflow import MlflowClient

GATE = PREFIX + "gate"
EFFECTIVE_POLICY = PREFIX + "effective_policy"
HISTORY = PREFIX + "history"


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

    The model must exist: create it before asking (an empty registered model holds no alias and does no harm).

    Raises:
        mlflow.exceptions.MlflowException: there is no registered model of that name, or the server cannot be reached.

    """
    told = client.get_registered_model(name).tags.get(GATE)
    if told is None:
        return None
    gate = json.loads(told)
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
