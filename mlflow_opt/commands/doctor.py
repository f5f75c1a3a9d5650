"""Say what this machine, this environment and this server can do, and what to change."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from importlib import metadata

import mlflow
import requests

from mlflow_opt.commands._document import document
from mlflow_opt.measurement.fingerprint import cpu_features, fingerprint
from mlflow_opt.plugin.discovery import GateInfo, active_gate
from mlflow_opt.runs import tracking
from mlflow_opt.signature import run
from mlflow_opt.verdicts import signing

# It is about the machine in front of the user.
CLI_ONLY = True

# What needs which extra of this package.
_EXTRAS = {"recipes": "the recipes", "serve": "`start_server` and `serve`"}
_THREADS = "OMP_NUM_THREADS"


def doctor(*, name: str = "", json: bool = False) -> None:
    """Report CPU features, threads, versions, load, the tracking store, and whether the registry hook guards a model, with advice.

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
        machine = fingerprint(os.cpu_count() or 1)
        advice = [*_cpu_advice(), *_thread_advice(), *_package_advice(), *_store_advice(mlflow.get_tracking_uri())]
        advice += [*_gate_advice(asked, gate), *_key_advice(gate)]
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


def _thread_advice() -> list[str]:
    cores, given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, os.environ.get(_THREADS, "")
    if given.isdigit() and int(given) > cores:
        return [f"Threads: {_THREADS}={given} is more than the {cores} cores that this process may use, so that training waits for itself."]
    trains = given if given.isdigit() else str(cores)
    return [f"Threads: training takes {trains} of {cores} cores; a prediction is timed with one thread unless threads= says otherwise."]


def _package_advice() -> list[str]:
    """Name what the extras ask for and this environment lacks."""
    told = []
    for extra, needs in _EXTRAS.items():
        asked = [text for text in metadata.requires("mlflow-opt") or [] if re.search(rf"extra == ['\"]{extra}['\"]", text)]
        missing = [name for text in asked if not _installed(name := re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0])]
        if missing:
            told.append(f"Packages: {needs} may need {', '.join(missing)}, which is not installed; pip install 'mlflow-opt[{extra}]'.")
    return told or ["Packages: all that recipes and server need is installed."]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _store_advice(uri: str) -> list[str]:
    if not uri.startswith(("http://", "https://")):
        return ["Store: a database that is opened directly; others see these runs, and a gate can hold, only through `mlflow server`."]
    # Any server of MLflow answers this; a gateway before it may not.
    answer = requests.get(f"{uri.rstrip('/')}/version", timeout=5)
    theirs, ours = answer.text.strip() if answer.ok else "unknown", metadata.version("mlflow")
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return [f"Store: the server runs MLflow {theirs}, as this client does."]
    return [f"Store: the server runs MLflow {theirs}, this client {ours}; logged models need MLflow 3 on both, so keep them alike."]


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
