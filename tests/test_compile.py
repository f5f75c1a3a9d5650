from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_opt.runs.outcome import Row
from recipes.compile import advise, compile, settings_for
from tests.tiny import TELCO, Tiny, tiny_table


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_table(tmp_path_factory.mktemp("churn"))


def test_settings_for_offers_every_level_and_all_cores_when_there_are_more() -> None:
    assert [options.threads for options in settings_for(1, 4).values()] == [1, 1, 1, 1, 4]
    assert all(options.threads == 4 for options in settings_for(4, 4).values())


def test_advise_says_that_compiling_does_not_pay_when_it_is_no_faster() -> None:
    rows = [
        Row("baseline", {"latency_p50_ms": 1.0}),
        Row("ort_all", {"latency_p50_ms": 1.0, "speedup": 1.0, "throughput_ratio": 0.9, "label_flips": 2.0}),
    ]
    text = " ".join(advise(rows))
    assert "does not pay" in text
    assert "2 labels differ" in text


def test_compile_makes_a_dropin_for_a_pipeline_when_the_table_has_text(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria:\n  - {metric: label_flips, max: 0}\n  - {metric: speedup, min: 1.05}\n")
    verdict = compile(
        model=str(churn.model), data=str(churn.data), target=churn.target, policy=str(policy), register_as="churn", budget_s=5.0
    )
    assert verdict is not None
    client = MlflowClient(tracking_uri)
    runs = client.search_runs(
        [str(one.experiment_id) for one in client.search_experiments()], filter_string="tags.mlflow_opt.variant != ''"
    )
    flips = {run.data.tags["mlflow_opt.variant"]: run.data.metrics.get("label_flips", 0) for run in runs}
    assert {"ort_all", "ort_extended", "ort_basic", "ort_disable"} <= set(flips)
    assert set(flips.values()) == {0}
    rows = pd.read_parquet(TELCO).drop(columns=["target", "split"], errors="ignore").head(40)
    variant, baseline = mlflow.pyfunc.load_model("models:/churn@challenger"), mlflow.pyfunc.load_model("models:/churn/1")
    complete = rows.fillna(0)
    np.testing.assert_array_equal(variant.predict(complete), baseline.predict(complete))
