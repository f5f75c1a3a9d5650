"""The model that a chain begins with, where none was given: made by the recipe `baseline`, or the default network, and made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mlflow_opt import baselines
from mlflow_opt.data import Split
from mlflow_opt.flavours import model_files
from mlflow_opt.records import Param
from mlflow_opt.runs import chaining, step_runs
from mlflow_opt.runs.chaining import Step


@dataclass
class Beginning:
    """Where the first model comes from: the steps that made it, and what training it took, 0 if it was not trained in epochs."""

    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0


def begin(first: Beginning, names: Sequence[str], given: Mapping[str, Param], key: str) -> Callable[[Split, Path, int], Path]:
    """Make the trainer of the model that everything is compared with: by the recipe `baseline`, or the default network.

    Args:
        first: takes what is known of it.
        names: of the steps that are wanted.
        given: the pipeline's parameters.
        key: of this pipeline; what an earlier one with it trained is not trained again.
    """

    def train(split: Split, folder: Path, seed: int) -> Path:
        if "baseline" in names and isinstance(split.train.rows, pd.DataFrame):
            own = {name: given[name] for name in ("target", "seed", "threads", "metric")}
            asked = {**own, "data": f"{given['data']}#steps", "whole_time": given["time_budget_s"]}
            made = chaining.run_step("baseline", asked, {}, float(str(given["time_budget_s"])), "")
            if made.standing != "kept":
                raise ValueError(f"a chain needs a first model, the recipe baseline made none: {made.reason}; give one as model=.")
            first.steps.append(made)
            return model_files.locate(f"models:/{made.model_id}").path
        known, first.seconds = step_runs.first_model(key)
        if known:
            return model_files.locate(f"models:/{known}").path
        started = time.monotonic()
        path = baselines.train_baseline(split, folder, seed)
        first.seconds = time.monotonic() - started
        return path

    return train
