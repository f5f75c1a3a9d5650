"""BentoML around a LightGBM booster: adaptive batching on, no schema enforced. Started by `bentoml serve` of a Python that has it."""

from __future__ import annotations

import os

# Installed beside this project, in an environment of its own.
import bentoml  # type: ignore[import-not-found]
import lightgbm
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 30})
class Trees:
    """The trees, asked with an array of rows."""

    def __init__(self) -> None:
        self.booster = lightgbm.Booster(model_file=os.environ["BENCHMARK_BOOSTER"])

    # BentoML is not installed where types are checked, so its decorator has none.
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000, route="/invocations")  # type: ignore[untyped-decorator]
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Ask the trees once."""
        return np.asarray(self.booster.predict(rows, num_threads=1))
