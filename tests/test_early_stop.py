from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_opt import data, models, session
from mlflow_opt.networks.checkpoints import Epoch
from mlflow_opt.networks.network_learners import fresh
from mlflow_opt.networks.training import Fitted, TrainSettings, fit
from mlflow_opt.runs.outcome import Row
from mlflow_opt.tables import learners
from mlflow_opt.workbench import retraining
from recipes.early_stop import advise, early_stop, rounds_of, savings, wanted_schedules
from tests import training_cases
from tests.tiny import tiny_table

SETTINGS = TrainSettings(epochs=12, batch_size=32, learning_rate=0.02, schedule="constant")


def runs_of(uri: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    return {run.data.tags.get("mlflow_opt.variant", "parent"): run for run in runs}


def test_wanted_schedules_are_six_when_all_are_asked_for() -> None:
    assert len(set(wanted_schedules("all"))) == 6
    assert wanted_schedules("step") == ("step",)


def test_savings_are_shares_of_the_full_training_when_it_stopped() -> None:
    history = tuple(Epoch(number, 1.0, 1.0, 0.5, 0.1, 2.0) for number in range(1, 11))
    full = Fitted(fresh(training_cases.Memory(), 0), history, 9)
    stopped = replace(full, history=history[:6], best=2)
    assert savings(stopped, full, 10) == pytest.approx({"epochs_saved": 0.4, "seconds_saved": 0.4, "best_share": 0.2})


def test_full_training_goes_on_from_the_stopped_one_when_both_share_a_checkpoint(tmp_path: Path) -> None:
    case = training_cases.perceptron(tmp_path)
    split = data.split(data.read(str(case.data)))
    from mlflow_opt.networks.network_learners import learner_for

    learner = learner_for(models.load(str(case.model)), split)
    parts = learner.arrays(split.train), learner.arrays(split.calibration)
    kept = replace(SETTINGS, checkpoint=str(tmp_path / "one.ckpt"))
    module = fresh(learner.module, 0)
    stopped = fit(learner.judged(module), *parts, replace(kept, patience=1))
    full = fit(learner.judged(module), *parts, kept)
    alone = fit(learner.judged(module), *parts, SETTINGS)
    assert len(stopped.history) < len(full.history) == 12
    assert full.history[: len(stopped.history)] == stopped.history, "no epoch was trained twice"
    assert [epoch.loss for epoch in full.history] == [epoch.loss for epoch in alone.history]


def test_advise_says_what_was_saved_and_lost_when_pairs_are_there() -> None:
    def row(name: str, drop: float, saved: float) -> Row:
        return Row(name, {"drop_accuracy": drop, "epochs_saved": saved, "seconds_saved": saved, "best_share": 0.3})

    text = "\n".join(advise([row("step_full", 0.0, 0.0), row("step_stopped", 0.002, 0.5)], "accuracy", 20))
    assert "step_stopped: 50% of the epochs and 50% of the seconds saved, +0.0020 accuracy lost" in text
    none = "\n".join(advise([row("step_full", 0.0, 0.0), row("step_stopped", 0.0, 0.0)], "accuracy", 20))
    assert "Nothing stopped before the limit of 20" in none


@pytest.mark.parametrize("name", ["epochs", "patience", "rounds", "patience_rounds"])
def test_early_stop_refuses_when_a_length_is_zero(name: str) -> None:
    # The recipe has no such parameter of another type.
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        early_stop(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.slow
def test_early_stop_compares_each_schedule_with_and_without_when_run(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    early_stop(model=str(case.model), data=str(case.data), epochs=8, patience=2, schedule="constant", learning_rate=0.02, budget_s=3.0)
    runs = runs_of(tracking_uri)
    stopped, full = runs["constant_stopped"].data.metrics, runs["constant_full"].data.metrics
    assert stopped["epochs_saved"] > 0 == full["epochs_saved"]
    assert full["epochs_run"] == 8
    client = MlflowClient(tracking_uri)
    steps = client.get_metric_history(runs["constant_full"].info.run_id, "epoch_loss")
    assert [one.step for one in steps] == list(range(1, 9))
    assert "curves.png" in {item.path for item in client.list_artifacts(runs["parent"].info.run_id)}


@pytest.mark.slow
def test_early_stop_keeps_the_best_weights_when_interrupted(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = training_cases.perceptron(tmp_path)
    params = {"model": str(case.model), "data": str(case.data), "target": "target", "seed": 0}
    said = logging.getLogger("mlflow_opt.workbench.retraining")
    caplog.set_level(logging.INFO, logger=said.name)
    seen: list[str] = []

    def train(stop_after: int) -> Fitted:
        with session.start("early_stop", params, aim="quality") as work, retraining.start(work) as course:

            def interrupt(record: logging.LogRecord) -> bool:
                seen.append(record.getMessage())
                if stop_after and f"epoch {stop_after}:" in record.getMessage():
                    raise KeyboardInterrupt
                return True

            progress = logging.getLogger("mlflow_opt.runs.progress")
            progress.setLevel(logging.INFO)
            progress.addFilter(interrupt)
            try:
                return course.fit("one", course.learner.module, SETTINGS)
            finally:
                progress.removeFilter(interrupt)

    with pytest.raises(KeyboardInterrupt):
        train(4)
    runs = runs_of(tracking_uri)
    assert runs["one_interrupted"].data.metrics["epochs_run"] == 4
    assert runs["parent"].info.status == "KILLED"
    seen.clear()
    assert len(train(0).history) == 12
    assert any("epoch 5:" in line for line in seen)
    assert not any("epoch 3:" in line for line in seen), "what was trained is not trained again"


@pytest.mark.slow
def test_early_stop_stops_trees_when_run_on_a_table(tmp_path: Path, tracking_uri: str) -> None:
    early_stop(data="telco_churn", rounds=150, patience_rounds=10, budget_s=3.0)
    runs = runs_of(tracking_uri)
    assert runs["own_rate_stopped"].data.metrics["epochs_run"] < 150 == runs["own_rate_full"].data.metrics["epochs_run"]
    assert runs["third_rate_stopped"].data.metrics["best_epoch"] > runs["own_rate_stopped"].data.metrics["best_epoch"]


def test_rounds_of_tells_the_best_round_when_trees_stopped() -> None:
    from lightgbm import LGBMClassifier
    from pandas import DataFrame

    rng = np.random.default_rng(0)
    rows = DataFrame(rng.normal(size=(300, 3)), columns=["a", "b", "c"])
    labels = (rows["a"] + rng.normal(size=300) > 0).to_numpy().astype(int)
    learner = learners.Learner(LGBMClassifier(n_estimators=80, verbose=-1, n_jobs=1), ("a", "b", "c"))
    fitted = learner.fit(rows[:200], labels[:200], valid=(rows[200:], labels[200:]), patience=5)
    assert rounds_of(fitted)[1] == fitted.last.best_iteration_ < 80


@pytest.mark.slow
def test_early_stop_refuses_when_the_model_is_fitted_in_one_go(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_table(tmp_path, rows=900)
    with pytest.raises(ValueError, match="LogisticRegression is fitted in one go; give a LightGBM"):
        early_stop(model=str(tiny.model), data=str(tiny.data))
