"""LitServe around a LightGBM booster: dynamic batching on, no schema enforced. Started with a Python that has litserve."""

# No `from __future__ import annotations`: LitServe looks at the annotation of `decode_request` when it runs.
import sys
from typing import Any

import lightgbm

# Installed beside this project, in an environment of its own.
import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Request


class Trees(litserve.LitAPI):  # type: ignore[misc]
    """The trees, asked with MLflow's dataframe_split."""

    def setup(self, _: str) -> None:
        """Load the booster."""
        self.booster = lightgbm.Booster(model_file=sys.argv[1])

    def decode_request(self, request: Request) -> Any:
        """Take the rows; by now the request is its JSON."""
        said: Any = request
        return np.asarray(said["dataframe_split"]["data"], dtype=np.float64)

    def batch(self, inputs: list[Any]) -> Any:
        """Join them."""
        self.sizes = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, x: Any) -> Any:
        """Ask the trees once."""
        return self.booster.predict(x, num_threads=1)

    def unbatch(self, output: Any) -> Any:
        """Give each its rows."""
        return np.split(output, np.cumsum(self.sizes)[:-1])

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Answer as MLflow does."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Trees(max_batch_size=64, batch_timeout=0.001, api_path="/invocations")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="warning"
    )
