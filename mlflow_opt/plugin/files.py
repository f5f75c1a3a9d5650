"""Hash a logged model's files from inside the server, for policies with `verify_files: true`.

It takes as long as reading the files, so it is done before the transaction that decides, which only compares. A change
after that is detected by `promote`, `serve` and `doctor`, not prevented here.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from mlflow_opt.flavours.model_files import folder_digest
from mlflow_opt.plugin.trials import tracking_store

logger = logging.getLogger(__name__)
_PROXIED = "mlflow-artifacts:"


@dataclass(frozen=True)
class Hashed:
    """What was found when a model's files were hashed: their digest, or the problem that there was."""

    model_id: str
    digest: str = ""
    problem: str = ""


class FilesUnknown(MlflowException):
    """A decision depends on a model's files: hash them outside the transaction, then decide anew."""

    def __init__(self, model_id: str) -> None:
        super().__init__(f"the files of {model_id} must be hashed before it is decided about")
        self.model_id = model_id


def hashed(model_id: str) -> Hashed:
    """Hash a logged model's files as they are stored today; what goes wrong is an answer as well, and never a PASS."""
    try:
        return Hashed(model_id, _digest_of(model_id))
    # Nothing is carried on with: whatever went wrong becomes a refusal, and the log has the traceback.
    except Exception as error:
        logger.exception("The files of %s could not be hashed.", model_id)
        return Hashed(model_id, problem=f"the files of {model_id} could not be hashed ({type(error).__name__}: {error})")


def _digest_of(model_id: str) -> str:
    location = str(tracking_store().get_logged_model(model_id).artifact_location)
    with tempfile.TemporaryDirectory(prefix="mlflow-opt-verify-") as folder:
        return folder_digest(Path(download_artifacts(artifact_uri=_reachable(location), dst_path=folder)))


def _reachable(location: str) -> str:
    """Name the place behind a location that the server offers to its clients through itself."""
    from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR

    destination = os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "")
    if not destination or not location.startswith(_PROXIED):
        return location
    return f"{destination.rstrip('/')}/{location.removeprefix(_PROXIED).lstrip('/')}"
