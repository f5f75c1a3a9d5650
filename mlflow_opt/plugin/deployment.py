"""MLflow's deployment target `mlflow-opt`: `mlflow deployments run-local -t mlflow-opt --name churn -m models:/churn@champion`.

MLflow imports this module when the target is named. The server itself is another process, started by its command's module:
this package is loaded into tracking servers and must not bring a web server with it.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import requests
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, NOT_IMPLEMENTED
from typing_extensions import override

logger = logging.getLogger(__name__)

_COMMAND = "mlflow_opt.commands.start_server"
_HELP = f"""\
mlflow-opt serves a registered model on this machine over MLflow's REST protocol.

  mlflow deployments run-local -t mlflow-opt --name churn -m models:/churn@champion -C port=5001 -C require_verdict=true

Each -C is a parameter of the server; `python -m {_COMMAND} --help` lists them. To ask a running server, with
a file of rows such as [{{"age": 40, "plan": "basic"}}, ...]:

  mlflow deployments predict -t mlflow-opt:http://127.0.0.1:5001 --name churn -I rows.json
"""
_TIMEOUT_S = 60


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve a model on this machine until it is told to stop.

    MLflow's documentation shows a first argument `target`; its code passes none.

    Args:
        name: of the deployment; only said in the log.
        model_uri: the model.
        flavor: not needed; the fastest way that the model has is taken.
        config: parameters of the server, by name.

    Raises:
        MlflowException: the server could not start, or a flavour was asked for.

    """
    if flavor:
        raise MlflowException(f"mlflow-opt chooses the runtime itself, got --flavor {flavor}; leave it out.", INVALID_PARAMETER_VALUE)
    logger.info("Deploying %s as %s on this machine.", model_uri, name)
    words = [word for key, value in (config or {}).items() for word in (f"--{key}", str(value))]
    # The words are one argument each and go through no shell.
    process = subprocess.Popen([sys.executable, "-m", _COMMAND, "--model", model_uri, *words])  # noqa: S603

    def forward(received: int, _: FrameType | None) -> None:
        process.send_signal(received)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        ended = process.wait()
    except KeyboardInterrupt:
        # The terminal has told the server as well.
        ended = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if ended not in (0, -signal.SIGTERM, -signal.SIGINT, 130):
        raise MlflowException(f"the server of {model_uri} must start, it ended with {ended}; its message is above.", BAD_REQUEST)


def target_help() -> str:
    """Say how the target is used."""
    return _HELP


class LocalServers(BaseDeploymentClient):
    """What MLflow asks of a target: predictions from a running server. Deployments of other machines are theirs to manage."""

    @override
    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Ask the server at the address in the target's name.

        Args:
            deployment_name: only said in messages.
            inputs: a table, or anything that MLflow writes as a request.
            endpoint: not known here.

        Returns:
            MLflow's `PredictionsResponse`.

        """
        from mlflow.utils.proto_json_utils import dump_input_data

        write: Any = dump_input_data
        address = str(self.target_uri).partition(":")[2].lstrip("/")
        if not address.startswith(("http://", "https://")):
            raise MlflowException("the target must name a running server, as mlflow-opt:http://127.0.0.1:5001.", INVALID_PARAMETER_VALUE)
        headers = {"content-type": "application/json"}
        answered = requests.post(f"{address.rstrip('/')}/invocations", data=write(inputs), headers=headers, timeout=_TIMEOUT_S)
        if answered.status_code != 200:
            raise MlflowException(f"{deployment_name or endpoint} answered {answered.status_code}: {answered.text[:1000]}", BAD_REQUEST)
        # MLflow's command line asks what it gets for its JSON.
        read: Any = PredictionsResponse.from_json
        return read(answered.text)

    @override
    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> NoReturn:
        """Refuse: use run-local."""
        _refuse()

    @override
    def update_deployment(
        self, name: str, model_uri: str | None = None, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> NoReturn:
        """Refuse: a server follows its alias by itself."""
        _refuse()

    @override
    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> NoReturn:
        """Refuse: stop the process."""
        _refuse()

    @override
    def list_deployments(self, endpoint: str | None = None) -> list[Any]:
        """List none: nothing is kept of what runs where."""
        return []

    @override
    def get_deployment(self, name: str, endpoint: str | None = None) -> NoReturn:
        """Refuse: ask the server's /version."""
        _refuse()


def _refuse() -> NoReturn:
    raise MlflowException(
        "mlflow-opt runs models with `mlflow deployments run-local`, and they follow their alias by themselves; "
        "for other machines build the container of `mlflow-opt start_server --print_dockerfile true`.",
        NOT_IMPLEMENTED,
    )
