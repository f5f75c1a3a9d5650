"""Say what this machine, this environment and this server can do, and what to change."""

from __future__ import annotations

import os
import sys

import mlflow

from mlflow_opt import tracking
from mlflow_opt.fingerprint import cpu_features, fingerprint
from mlflow_opt.plugin.discovery import active_gate
from mlflow_opt.signature import run

# It is about the machine in front of the user.
CLI_ONLY = True


def doctor(*, name: str = "") -> None:
    """Report CPU features, versions, load, the tracking store, and whether the registry hook guards a model.

    Use it when a figure surprises or a promotion was not stopped. It changes nothing.

    Example:
        mlflow-opt doctor --name churn

    Args:
        name: registered model to ask the hook about; empty takes any that exists.

    Raises:
        ConnectionError: the tracking server does not answer.

    References:
        README, section "The gate".
    """
    tracking.require_store()
    lines = ["Machine: " + fingerprint(os.cpu_count() or 1), *_cpu_advice(), f"Tracking: {mlflow.get_tracking_uri()}"]
    sys.stdout.write("\n".join([*lines, *_gate_advice(name)]) + "\n")


def _cpu_advice() -> list[str]:
    vnni = any("vnni" in feature for feature in cpu_features())
    int8 = "has VNNI: int8 (U8S8) pays fully" if vnni else "has no VNNI: int8 gains less, and U8S8 needs reduce_range"
    load = os.getloadavg()[0]
    advice = [f"int8: this CPU {int8}."]
    if load > 0.5 * (os.cpu_count() or 1):
        advice.append(f"Load is {load:.1f}: timings will be noisy, verdicts may be INCONCLUSIVE. Stop what else runs.")
    return advice


def _gate_advice(name: str) -> list[str]:
    names = [name] if name else [model.name for model in tracking.client().search_registered_models(max_results=1)]
    if not names:
        return ["Gate: no registered model to ask about yet."]
    gate = active_gate(tracking.client(), names[0])
    if gate is None:
        advice = "start the server with --registry-store-uri gated+sqlite:///... or gated+postgresql://..."
        return [f"Gate: NOT ACTIVE. Anyone may move any alias of {names[0]}; {advice}"]
    guards = ", ".join(gate.guards)
    told = f"Gate: active for {names[0]}, mode {gate.mode}, guards {guards}, promote {gate.promote}, policy from {gate.origin}."
    return [told] + ([f"Gate: denies everything, because {gate.problem}"] if gate.problem else [])


if __name__ == "__main__":
    run(doctor)
