from __future__ import annotations

from pathlib import Path

import lightgbm
import mlflow.lightgbm
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature

from recipes.prune import prune
from tests.tiny import TELCO, tiny_network, tiny_table


def boosted(folder: Path, rows: int = 1500) -> Path:
    """Save LightGBM trees on the churn table's numbers, and the table beside them; returns the model's folder."""
    table = pd.read_parquet(TELCO).head(rows)
    numbers = [name for name in table if pd.api.types.is_numeric_dtype(table[name]) and name != "target"]
    table = table.assign(**{str(name): table[name].astype(float) for name in numbers})[[*numbers, "target"]]
    table.to_parquet(folder / "numbers.parquet")
    features = table.drop(columns="target")
    fitted = lightgbm.LGBMClassifier(n_estimators=150, verbose=-1, n_jobs=1).fit(features, table["target"])
    signature = infer_signature(features, fitted.predict(features))
    mlflow.lightgbm.save_model(fitted, str(folder / "trees"), signature=signature, pip_requirements=["lightgbm"])
    return folder / "trees"


def test_prune_refuses_when_the_model_is_linear(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_table(tmp_path)
    with pytest.raises(ValueError, match="trees"):
        prune(model=str(tiny.model), data=str(tiny.data))
    assert MlflowClient(tracking_uri).search_registered_models() == []


@pytest.mark.slow
def test_prune_gives_smaller_trees_with_the_same_signature_when_they_are_boosted(tmp_path: Path, tracking_uri: str) -> None:
    model = boosted(tmp_path)
    prune(model=str(model), data=str(tmp_path / "numbers.parquet"), allowed_drop=0.02, budget_s=5.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    sizes = {run.data.tags["mlflow_opt.variant"]: run.data.metrics["size_mb"] for run in runs if "mlflow_opt.variant" in run.data.tags}
    assert {"baseline", "runtime_only"} < set(sizes)
    assert min(size for name, size in sizes.items() if name not in ("baseline", "runtime_only")) < sizes["runtime_only"]


@pytest.mark.slow
def test_prune_removes_channels_when_it_is_a_network(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_network(tmp_path)
    prune(model=str(tiny.model), data=str(tiny.data), method="structured", rates="0.5", epochs=1, steps=1, budget_s=5.0)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    counts = {run.data.tags["mlflow_opt.variant"]: run.data.metrics["parameters"] for run in runs if "mlflow_opt.variant" in run.data.tags}
    assert min(counts.values()) < 0.7 * counts["baseline"]
