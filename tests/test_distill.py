from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_opt import models
from mlflow_opt.runs.outcome import Row
from mlflow_opt.tables import learners
from recipes.distill import advise, distill, kinds_of
from tests.model_zoo import one_thread
from tests.tiny import Tiny, tiny_ensemble

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_ensemble(tmp_path_factory.mktemp("teacher"), rows=600)


def test_advise_tells_runtime_size_and_teaching_apart_when_all_are_measured() -> None:
    rows = [
        Row("baseline", {"latency_p50_ms": 10.0, "roc_auc": 0.9}),
        Row("runtime_only", {"latency_p50_ms": 1.0, "speedup": 10.0, "roc_auc": 0.9}),
        Row("lightgbm", {"latency_p50_ms": 0.1, "roc_auc": 0.89, "drop_roc_auc": 0.01}),
        Row("lightgbm_hard", {"latency_p50_ms": 0.1, "roc_auc": 0.87}),
    ]
    text = " ".join(advise(rows, "roc_auc"))
    assert "10.00x as fast as the baseline" in text
    assert "10.0x as fast as the teacher in the same runtime, +0.0100 roc_auc lost" in text
    assert "brought +0.0200 over the same student" in text


def test_advise_says_that_distillation_brought_nothing_when_labels_do_as_well() -> None:
    rows = [Row("baseline", {"rmse": 1.0}), Row("mlp", {"rmse": 1.2}), Row("mlp_hard", {"rmse": 1.1})]
    assert "brought nothing" in " ".join(advise(rows, "rmse"))


@pytest.mark.slow
def test_distill_teaches_a_dropin_and_compares_it_when_given_an_ensemble(ensemble: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria:\n  - {metric: speedup, min: 1.05}\n")
    verdict = distill(
        model=str(ensemble.model),
        data=str(ensemble.data),
        policy=str(policy),
        register_as="churn",
        student="lightgbm",
        trees=20,
        augment=1,
        budget_s=5.0,
    )
    assert verdict is not None
    client = MlflowClient(tracking_uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    runs = {run.data.tags["mlflow_opt.variant"]: run for run in found if "mlflow_opt.variant" in run.data.tags}
    assert set(runs) == {"baseline", "runtime_only", "lightgbm", "lightgbm_hard"}
    refused = [name for name, run in runs.items() if run.data.tags["mlflow_opt.standing"].startswith("for comparison")]
    assert len(refused) == 1
    better = max(("lightgbm", "lightgbm_hard"), key=lambda name: runs[name].data.metrics["roc_auc"])
    assert refused != [better]
    rows = pd.read_parquet(ensemble.data).drop(columns=["target", "split"]).head(20)
    assert set(mlflow.pyfunc.load_model("models:/churn@challenger").predict(rows)) <= {0, 1}
    variant = models.load("models:/churn@challenger")
    assert learners.learner_of(variant).kind == "LGBMClassifier"
    np.testing.assert_allclose(variant.predict(rows).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"augment": -1}, "augment must not be negative"),
        ({"mix": 1.5}, "mix must lie in"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"trees": 0}, "trees and hidden must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
    ids=["augment", "mix", "temperature", "trees", "epochs"],
)
def test_distill_refuses_a_parameter_when_out_of_range(given: dict[str, float], says: str, tracking_uri: str) -> None:
    # The types are the point of `given`: each is a parameter's own.
    with pytest.raises(ValueError, match=says):
        distill(**given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_distill_teaches_a_network_when_the_data_are_arrays(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import training_cases

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    distill(model=str(case.model), data=str(case.data), student="0.5", epochs=1, augment=1, budget_s=2.0)
    client = MlflowClient(tracking_uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    variants = {run.data.tags.get("mlflow_opt.variant") for run in found}
    assert {"runtime_only", "student", "student_features", "student_hard"} <= variants
    parent = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
    assert "distillation itself brought" in parent.data.tags["mlflow.note.content"]


def test_distill_names_the_kinds_when_a_tables_student_is_none_of_them() -> None:
    with pytest.raises(ValueError, match="must be auto, lightgbm, mlp, linear, got 'forest'"):
        kinds_of("forest")
