from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt import models
from mlflow_opt.ensembles.ensemble_bench import Bench, figures
from mlflow_opt.ensembles.ensemble_plots import Point, front, save_members
from mlflow_opt.ensembles.ensemble_selection import holds_of, inside
from mlflow_opt.records import Task
from mlflow_opt.runs.outcome import Row
from mlflow_opt.tables import learners
from mlflow_opt.workbench.ensemble_workbench import named, trainer
from recipes.prune_ensemble import advise, prune_ensemble, selections
from tests.model_zoo import one_thread
from tests.test_ensemble_selection import pool
from tests.tiny import Tiny, tiny_ensemble, tiny_table

__all__ = ["one_thread"]


def bench(members: int = 6) -> Bench:
    scores, labels = pool(members)
    costs = np.linspace(0.06, 0.01, members)
    return Bench(Task("binary", (0, 1)), holds_of(scores, labels), scores, labels, costs, 0.005, 0.005 + costs.sum(), (1.0,) * members)


def test_selections_keep_to_members_and_latency_when_chosen() -> None:
    about = bench()
    found = selections(about, keep=3, latency_share=0.3, lost=0.01, seed=0)
    assert {"cheapest", "within_budget"} <= set(found)
    assert all(1 <= len(inside(weights)) <= 3 for weights in found.values())
    assert about.latency(found["within_budget"]) <= 0.3 * about.whole
    assert about.lost(found["cheapest"]) <= 0.01
    assert len(set(found.values())) == len(found), "the same selection is made once"


def test_selections_name_no_one_within_budget_when_nothing_is_that_cheap() -> None:
    assert "within_budget" not in selections(bench(), keep=3, latency_share=0.01, lost=0.01, seed=0)


def test_selections_take_the_best_when_everything_loses_too_much() -> None:
    about = bench()
    found = selections(about, keep=1, latency_share=1.0, lost=0.0, seed=0)
    assert about.holds.loss(found["cheapest"]) == about.holds.losses(np.eye(6)).min()


def test_selections_are_bagged_when_members_are_many() -> None:
    assert "bagged" in selections(bench(16), keep=3, latency_share=1.0, lost=1.0, seed=0) or "greedy" not in selections(
        bench(16), keep=3, latency_share=1.0, lost=1.0, seed=0
    )


def test_figures_say_what_a_selection_looks_like_when_it_is_not_built() -> None:
    said = figures(bench(), (1, 0, 1, 0, 0, 0))
    assert said["members"] == 2
    assert said["latency_estimate_ms"] == pytest.approx(0.005 + 0.06 + 0.04)
    assert {"held_out_roc_auc", "held_out_log_loss"} <= set(said)


def test_front_keeps_what_nothing_beats_when_quality_is_an_error() -> None:
    points = [Point(1, 0.5, 1.0), Point(2, 0.6, 2.0), Point(3, 0.3, 3.0)]
    assert [point.members for point in front(points, "rmse")] == [1, 3]


def test_save_members_draws_a_picture_when_points_are_named(tmp_path: Path) -> None:
    save_members([Point(1, 0.8, 0.1, "cheapest"), Point(2, 0.9, 0.2)], [Point(1, 0.8, 0.1)], "roc_auc", tmp_path / "members.png")
    assert (tmp_path / "members.png").stat().st_size > 10_000


def test_advise_tells_the_runtime_from_the_choice_when_both_are_timed() -> None:
    rows = [
        Row("baseline", {"latency_p50_ms": 10.0}),
        Row("runtime_only", {"latency_p50_ms": 1.0, "speedup": 10.0}),
        Row("cheapest", {"latency_p50_ms": 0.25, "drop_roc_auc": 0.001}, {"members": "a:2 b:1"}, standing="chosen"),
    ]
    text = " ".join(advise(rows, "roc_auc"))
    assert "10.00x as fast as the baseline" in text
    assert "cheapest (a:2 b:1): 4.00x by choosing, +0.0010 roc_auc lost" in text
    assert "No selection of members pays" in " ".join(advise(rows[:2], "roc_auc"))


def test_trainer_refuses_when_a_model_and_members_are_given() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        trainer("models:/a/1", "models:/b/1,models:/b/2", 1)
    assert named(" models:/b/1 , models:/b/2,") == ["models:/b/1", "models:/b/2"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": 0}, "keep must be at least 1"),
        ({"latency_share": 0.0}, "latency_share must lie in"),
        ({"lost": -0.1}, "lost must not be negative"),
        ({"folds": 1}, "folds must be 0"),
    ],
    ids=lambda given: next(iter(given), "") if isinstance(given, dict) else "",
)
def test_prune_ensemble_refuses_a_parameter_before_it_works_when_out_of_range(
    given: dict[str, float], says: str, tracking_uri: str
) -> None:
    # The types are the point of `given`: each is a parameter's own.
    with pytest.raises(ValueError, match=says):
        prune_ensemble(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_ensemble(tmp_path_factory.mktemp("ensemble"), rows=600)


@pytest.mark.slow
def test_prune_ensemble_makes_a_smaller_dropin_that_can_go_on_when_given_a_voting_model(
    ensemble: Tiny, tracking_uri: str, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("validation_criteria:\n  - {metric: speedup, min: 1.05}\n")
    verdict = prune_ensemble(
        model=str(ensemble.model), data=str(ensemble.data), policy=str(policy), register_as="churn", keep=2, folds=2, budget_s=5.0
    )
    assert verdict is not None
    client = MlflowClient(tracking_uri)
    runs = _runs(client)
    assert {"baseline", "runtime_only", "cheapest"} <= set(runs)
    assert runs["runtime_only"].data.metrics["max_abs_diff"] < 1e-9
    assert all(int(run.data.params["size"]) <= 2 for name, run in runs.items() if name not in ("baseline", "runtime_only"))
    parent = next(run for run in _all(client) if "mlflow.parentRunId" not in run.data.tags)
    assert "members.png" in {one.path for one in client.list_artifacts(parent.info.run_id)}
    variant = models.load("models:/churn@challenger")
    learner = learners.learner_of(variant)
    assert learner.kind == "VotingClassifier"
    rows = pd.read_parquet(ensemble.data).drop(columns=["target", "split"]).head(20)
    assert set(mlflow.pyfunc.load_model("models:/churn@challenger").predict(rows)) <= {0, 1}
    np.testing.assert_allclose(models.load(str(variant.path / "trainable")).predict(rows), variant.predict(rows), atol=1e-9)


@pytest.mark.slow
def test_prune_ensemble_chooses_among_versions_when_members_are_named(ensemble: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    linear = tiny_table(tmp_path, rows=600)
    named = f"{linear.model},{ensemble.model}"
    prune_ensemble(members=named, data=str(ensemble.data), keep=1, folds=0, budget_s=5.0)
    runs = _runs(MlflowClient(tracking_uri))
    assert "runtime_only" not in runs, "the average of versions is in the runtime already"
    assert runs["baseline"].data.params["flavour"] == "onnx"
    assert runs["cheapest"].data.params["members"].endswith(":1")


@pytest.mark.slow
def test_prune_ensemble_says_what_to_give_when_the_model_is_no_ensemble(tracking_uri: str, tmp_path: Path) -> None:
    linear = tiny_table(tmp_path, rows=600)
    with pytest.raises(ValueError, match="got LogisticRegression; give such a model, or members="):
        prune_ensemble(model=str(linear.model), data=str(linear.data))


def _all(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def _runs(client: MlflowClient) -> dict[str, Run]:
    return {run.data.tags["mlflow_opt.variant"]: run for run in _all(client) if "mlflow_opt.variant" in run.data.tags}
