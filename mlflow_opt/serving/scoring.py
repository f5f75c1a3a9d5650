"""MLflow's own scoring code for one loaded model: the reference for every answer and every error, and the way without a fast path."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from mlflow_opt.serving.replies import Reply, refusal

logger = logging.getLogger(__name__)


class Scorer:
    """A model as `mlflow models serve` answers for it."""

    def __init__(self, folder: Path) -> None:
        """Load the model through pyfunc."""
        import mlflow.pyfunc
        from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT

        # As the scoring server does: models may look at it.
        os.environ[_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name] = "true"
        self.model = mlflow.pyfunc.load_model(str(folder))
        self.schema = self.model.metadata.get_input_schema()
        self.signature = self.model.metadata.signature

    def answer(self, body: bytes, content_type: str) -> Reply:
        """Answer a request, by the status and the words of MLflow's scoring server."""
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server

        # MLflow publishes no types of its scoring code.
        invocations: Any = scoring_server.invocations

        try:
            made = invocations(body, content_type, self.model, self.schema)
        except RecursionError:
            return refusal(400, "BAD_REQUEST", "a request's JSON must not be nested hundreds of levels deep; send a flat table.")
        except MlflowException as error:
            said: Any = error
            return Reply(said.get_http_status_code(), said.serialize_as_json().encode(), "pyfunc")
        return Reply(made.status, made.response.encode(), "pyfunc", made.mimetype.encode())


def example_request(folder: Path) -> bytes | None:
    """Read the request that the model's input example makes, None if it was saved without one."""
    from mlflow.models.utils import load_serving_example

    if not (folder / "serving_input_example.json").is_file():
        return None
    text: Any = load_serving_example(str(folder))
    return str(text).encode()
