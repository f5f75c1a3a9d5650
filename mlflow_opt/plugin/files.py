"""Hash a logged model's files from inside the server, for policies with `verify_files: true`.

It takes as long as reading the files, while the model's row is locked: leave it off where models are large, and let
`promote`, `serve` and `doctor` look instead. A change after the promotion is detected there, not prevented here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mlflow.artifacts import download_artifacts

from mlflow_opt.model_files import folder_digest
from mlflow_opt.plugin.trials import tracking_store

_PROXIED = "mlflow-artifacts:"


def digest_of(model_id: str) -> str:
    """Return the digest of a logged model's files as they are stored today."""
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
