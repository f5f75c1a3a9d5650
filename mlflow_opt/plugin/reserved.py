"""The tags under `mlflow_opt.` that only the gate writes, and the one exception: the policy kept with a model.

That policy can only be made stricter. To loosen or drop it the server's owner sets the model to `mode: dry_run` in the
server's file, in which everything is let through and recorded, and back again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow.entities.model_registry import ModelVersionTag
from sqlalchemy.orm import Session

from mlflow_opt.plugin.history import HELD, entries
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.registrations import OWN_POLICY, STAGE, aliases, in_production, is_copy
from mlflow_opt.plugin.server_policy import Cover, parse_own
from mlflow_opt.policy import tighten
from mlflow_opt.verdicts.evidence import PREFIX

PREVIOUS = "previous"
PREVIOUS_TEXT = (
    "'previous' is moved by the gate alone, to the champion before the present one; to go back to it set the guarded alias to that "
    "version, or use `mlflow-opt rollback`."
)


def is_reserved(key: str) -> bool:
    """Tell whether a tag belongs to the gate, look-alikes of its prefix included."""
    return folded(key).startswith(PREFIX)


def without_echoes(tags: Iterable[ModelVersionTag], source: str) -> list[ModelVersionTag]:
    """Leave out the reserved tags that MLflow's copy carries along: they describe the version that was copied."""
    copied = is_copy(source)
    return [tag for tag in tags if not (copied and is_reserved(tag.key))]


def objection(key: str, value: str, kept: str, cover: Cover) -> str:
    """Say why a reserved tag may not be set on a registered model; empty if it may.

    Args:
        key: the tag.
        value: what it is to be set to.
        kept: text of the policy that is kept with the model today.
        cover: what guards the model without that policy.

    """
    if key != OWN_POLICY:
        return f"tag '{key}' is reserved: the prefix {PREFIX} is the gate's own; use another name. Only {OWN_POLICY} may be set."
    try:
        policy = parse_own(value, OWN_POLICY)
        for served in cover.by_task.values():
            tighten(served, policy)
        before = parse_own(kept, OWN_POLICY) if kept else None
    except ValueError as error:
        return str(error)
    if before is None:
        return ""
    try:
        same = tighten(policy, before) == policy
    except ValueError as error:
        return str(error)
    return (
        ""
        if same
        else f"{OWN_POLICY} may only become stricter, and the new text drops or loosens what it asks for today; keep all of that."
    )


def carried(session: Session, name: str, covers: Sequence[Cover]) -> str:
    """Say which guarded things a model would take along when it is renamed; empty if it carries none."""
    guarded = frozenset().union(*(cover.guards for cover in covers)) | {PREVIOUS}
    held = sorted(alias for alias in aliases(session, name) if folded(alias) in guarded)
    if held:
        return f"the guarded alias '{held[0]}'"
    if in_production(session, name):
        return "a version in stage Production"
    past = [entry for entry in entries(session.connection(), name, actions=HELD) if entry.alias in guarded | {STAGE}]
    return f"the past of '{past[-1].alias}', which version {past[-1].version} held" if past else ""
