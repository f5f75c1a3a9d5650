"""The examples work: the workflow's commands exist and its steps run, and the webhook receiver hears a live server's promotions."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from mlflow import MlflowClient

from mlflow_opt.declaration.entries import entries
from mlflow_opt.signature import parse
from tests.evidence_factory import good, logged_model, model_id_of, register
from tests.servers import LiveServer, free_port, serve

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "examples" / "github_actions.yml"
SECRET = secrets.token_hex()
COMMAND = re.compile(r"mlflow-opt (\w+)((?: --\w+ (?:\"[^\"]*\"|\S+))*)")


def steps() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(WORKFLOW.read_text())
    return list(loaded["jobs"]["promote"]["steps"])


def script(name: str) -> str:
    return next(str(step["run"]) for step in steps() if step.get("name") == name)


def test_workflow_calls_commands_that_exist_with_flags_that_they_take() -> None:
    known = {entry.name: entry.signature() for entry in entries()}
    found = [match for step in steps() for match in COMMAND.finditer(str(step.get("run", "")))]
    assert {match.group(1) for match in found} == {"doctor", "gate", "promote"}
    for match in found:
        words = [word.strip('"') for word in match.group(2).split()]
        assert parse(known[match.group(1)], words)["json"] is True


def test_workflow_keeps_inputs_out_of_its_scripts() -> None:
    assert not [step for step in steps() if "${{" in str(step.get("run", ""))]


@pytest.fixture
def shell(tmp_path: Path, policy_server: LiveServer) -> dict[str, str]:
    if not shutil.which("jq"):
        pytest.skip("needs jq, which GitHub's runners have")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mlflow-opt"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; from mlflow_opt.cli import main; sys.exit(main())' \"$@\"\n")
    program.chmod(0o755)
    files = {name: str(tmp_path / name.lower()) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV")}
    return {
        **os.environ,
        **files,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(tmp_path),
        "MLFLOW_TRACKING_URI": policy_server.uri,
        "NAME": "workflow",
        "VERSION": "1",
        "DATA": "telco_churn",
        "SIGNING_KEY": "a key",
    }


def run_step(name: str, env: dict[str, str], folder: Path) -> int:
    # As GitHub runs a step.
    return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script(name)], env=env, cwd=folder, check=False).returncode


@pytest.mark.slow
def test_workflow_steps_pass_on_what_happened_when_run_against_a_live_server(shell: dict[str, str], tmp_path: Path) -> None:
    assert run_step("The key that the server trusts", shell, tmp_path) == 0
    assert (tmp_path / "signing.key").stat().st_mode & 0o077 == 0
    assert run_step("Is the gate there?", shell, tmp_path) == 0
    assert run_step("Measure", shell, tmp_path) == 0
    assert Path(shell["GITHUB_OUTPUT"]).read_text() == "code=3\n"
    told = json.loads((tmp_path / "gate.json").read_text())
    assert told["exit_code"] == 3
    assert "workflow" in told["error"]
    assert run_step("Show why", shell, tmp_path) == 0
    assert "### gate: no such registered model" in Path(shell["GITHUB_STEP_SUMMARY"]).read_text()
    assert not (tmp_path / "signing.key").exists()
    assert run_step("Pass on the verdict", shell | {"CODE": "3"}, tmp_path) == 3


# --- the webhook ------------------------------------------------------------------------------------------------------


class Listening:
    """The example's receiver as a process, and what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.port, self.path = free_port(), folder / "calls"
        with self.path.open("w") as out, (folder / "refused").open("w") as err:
            command = [sys.executable, str(ROOT / "examples" / "webhook_receiver.py"), "--port", str(self.port)]
            env = {**os.environ, "MLFLOW_WEBHOOK_SECRET": SECRET}
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=err)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                self.post({}, b"")
                return
            except requests.ConnectionError:
                time.sleep(0.05)

    def post(self, headers: dict[str, str], body: bytes) -> int:
        return requests.post(f"http://127.0.0.1:{self.port}/", data=body, headers=headers, timeout=10).status_code

    def calls(self, count: int) -> list[str]:
        until = time.monotonic() + 20
        while len(self.path.read_text().splitlines()) < count and time.monotonic() < until:
            time.sleep(0.05)
        return self.path.read_text().splitlines()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Listening]:
    started = Listening(tmp_path)
    yield started
    started.process.send_signal(signal.SIGTERM)
    started.process.wait()


def test_receiver_refuses_a_call_when_it_is_not_signed(receiver: Listening) -> None:
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "a", "alias": "champion", "version": "1"}})
    now = str(int(time.time()))
    for headers in ({}, {"X-MLflow-Signature": "v1,AAAA", "X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": now}):
        assert receiver.post(headers, body.encode()) == 401
    assert receiver.calls(0) == []


def test_receiver_hears_promotions_and_no_refusals_when_a_live_server_moves_champion(
    receiver: Listening, tmp_path: Path, empty_store: Path
) -> None:
    from cryptography.fernet import Fernet

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    env = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    with serve(tmp_path, policy='"auto-*": {promote: auto}\n', env=env) as server:
        client: MlflowClient = server.client()
        url = f"http://127.0.0.1:{receiver.port}/"
        client.create_webhook("deploy", url, ["model_version_alias.created"], secret=SECRET)
        bare, version = register(client, "churn", logged_model(client)), good(client, "churn")
        assert server.post("registered-models/alias", {"name": "churn", "alias": "champion", "version": bare}).status_code == 403
        client.set_registered_model_alias("churn", "dev", bare)
        client.set_registered_model_alias("churn", "champion", version)
        call = "mlflow-opt start_server --model models:/{} --require_verdict true"
        assert receiver.calls(1) == [call.format("churn/2")]
        # The hook moves champion by itself, and MLflow's own handler would tell of the challenger alone.
        automatic = good(client, "auto-churn", model_id_of(client, "churn", version))
        client.set_registered_model_alias("auto-churn", "challenger", automatic)
        assert receiver.calls(2) == [call.format("churn/2"), call.format("auto-churn/1")]
