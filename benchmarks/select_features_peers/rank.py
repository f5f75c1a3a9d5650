"""Rank columns as other packages do: run by the interpreter of their own environment, never imported by ours.

Called as `python rank.py TABLE.parquet TASK SEED`; the table holds encoded columns and `__target__`. Writes one JSON
line: method -> columns from best to worst, and how many of them the method itself keeps.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd


def main(path: str, task: str, seed: int) -> None:
    """Rank and write."""
    warnings.filterwarnings("ignore")
    table = pd.read_parquet(path)
    labels = table.pop("__target__")
    order = np.random.default_rng(seed).permutation(len(table))
    held = order[: round(0.3 * len(table))]
    train = np.setdiff1d(order, held)
    found = {"shap-select": shap_select_order(table, labels, train, held, task, seed)}
    if task != "multiclass":
        found["powershap"] = powershap_order(table, labels, task, seed)
    sys.stdout.write(json.dumps(found) + "\n")


def estimator(task: str, seed: int) -> Any:
    """Make the trees that every rival ranks with."""
    import lightgbm

    kind = lightgbm.LGBMRegressor if task == "regression" else lightgbm.LGBMClassifier
    return kind(n_estimators=100, learning_rate=0.1, num_leaves=31, random_state=seed, n_jobs=1, verbose=-1)


def shap_select_order(table: pd.DataFrame, labels: pd.Series, train: Any, held: Any, task: str, seed: int) -> list[Any]:
    """Order by the significance of the SHAP values in a regression of the target, as the package reports it."""
    # Installed beside this project, in an environment of its own.
    from shap_select import shap_select  # type: ignore[import-not-found]

    model = estimator(task, seed).fit(table.iloc[train], labels.iloc[train])
    found = shap_select(model, table.iloc[held].reset_index(drop=True), labels.iloc[held].reset_index(drop=True), task=task)
    found = found.sort_values("t-value", ascending=False)
    return [found["feature name"].astype(str).tolist(), int((found["selected"] == 1).sum())]


def powershap_order(table: pd.DataFrame, labels: pd.Series, task: str, seed: int) -> list[Any]:
    """Order by p-value, then impact; kept is what the package selects."""
    # The same.
    from powershap import PowerShap  # type: ignore[import-not-found]

    selector = PowerShap(model=estimator(task, seed), automatic=False, power_iterations=10, show_progress=False, stratify=task == "binary")
    selector.fit(table, labels.to_numpy())
    found = selector._processed_shaps_df.drop(index="random_uniform_feature", errors="ignore")
    found = found.sort_values(["p_value", "impact"], ascending=[True, False])
    return [found.index.astype(str).tolist(), int((found["p_value"] < selector.power_alpha).sum())]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
