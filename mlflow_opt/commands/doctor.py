"""Say what this machine, this environment and this server can do, and what to change."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import mlflow

from mlflow_opt.commands._document import document
from mlflow_opt.measurement.fingerprint import cpu_features, fingerprint
from mlflow_opt.plugin.discovery import GateInfo, active_gate
from mlflow_opt.runs import tracking
from mlflow_opt.signature import run
from mlflow_opt.verdicts import signing

# It is about the machine in front of the user.
CLI_ONLY = True


def doctor(*, name: str = "", json: bool = False) -> None:
    """Report CPU features, versions, load, the tracking store, and whether the registry hook guards a model.

    Use it when a figure surprises or a promotion was not stopped. It changes nothing.

    Example:
        mlflow-opt doctor --name churn

    Args:
        name: registered model to ask the hook about, which need not exist yet; empty takes any that exists.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ConnectionError: the tracking server does not answer.

    References:
        README, section "The gate".
    """
    with document("doctor", wanted=json) as answer:
        tracking.require_store()
        asked = name or next((model.name for model in tracking.client().search_registered_models(max_results=1)), "")
        gate = active_gate(tracking.client(), asked) if asked else None
        machine, advice = fingerprint(os.cpu_count() or 1), [*_cpu_advice(), *_gate_advice(asked, gate), *_key_advice(gate)]
        told = asdict(gate) if gate else {}
        answer.update({"machine": machine, "tracking": mlflow.get_tracking_uri(), "name": asked, "gate": told, "advice": advice})
    if not json:
        sys.stdout.write("\n".join(["Machine: " + machine, f"Tracking: {mlflow.get_tracking_uri()}", *advice]) + "\n")


def _cpu_advice() -> list[str]:
    vnni = any("vnni" in feature for feature in cpu_features())
    int8 = "has VNNI: int8 (U8S8) pays fully" if vnni else "has no VNNI: int8 gains less, and U8S8 needs reduce_range"
    load = os.getloadavg()[0]
    advice = [f"int8: this CPU {int8}."]
    if load > 0.5 * (os.cpu_count() or 1):
        advice.append(f"Load is {load:.1f}: timings will be noisy, verdicts may be INCONCLUSIVE. Stop what else runs.")
    return advice


def _gate_advice(name: str, gate: GateInfo | None) -> list[str]:
    if not name:
        return ["Gate: no registered model to ask about yet; give a name, which need not exist."]
    if gate is None:
        advice = "start the server with --registry-store-uri gated+sqlite:///... or gated+postgresql://..."
        return [f"Gate: NOT ACTIVE. Anyone may move any alias of {name}; {advice}"]
    guards = ", ".join(gate.guards)
    told = f"Gate: active for {name}, mode {gate.mode}, guards {guards}, promote {gate.promote}, policy from {gate.origin}."
    return [told] + ([f"Gate: denies everything, because {gate.problem}"] if gate.problem else [])


def _key_advice(gate: GateInfo | None) -> list[str]:
    """Say whether evidence that is measured here would be trusted there."""
    own = signing.own_public_key()
    trusted = gate.policy("binary").trusted_keys if gate and not gate.problem else ()
    if not trusted:
        return [f"Signing: evidence is signed with key {signing.key_id(own)}."] if own else []
    if own in trusted:
        return [f"Signing: evidence is signed with key {signing.key_id(own)}, which the server trusts."]
    listed = ", ".join(signing.key_id(key) for key in trusted)
    return [f"Signing: the server trusts key {listed} only, and evidence measured here is not signed by it; set {signing.VARIABLE} there."]


if __name__ == "__main__":
    run(doctor)
