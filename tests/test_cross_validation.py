from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from mlflow_opt.records import Task
from mlflow_opt.search import file_locks, searching
from mlflow_opt.search.searching import Budget, Ticket
from mlflow_opt.tables import cross_validation
from mlflow_opt.tables.cross_validation import Folds, fold_of, score_fold
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.table_search import Scoring
from mlflow_opt.tables.table_space import Space, families_of
from tests.search_jobs import plan, search

BINARY = Task("binary", (0, 1))


def rows_of(count: int = 500) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(1)
    made = pd.DataFrame(rng.normal(size=(count, 4)), columns=list("abcd"))
    return made, (made["a"] + made["b"] * made["c"] + rng.normal(size=count) > 0).to_numpy().astype(int)


def folds(count: int = 3) -> Folds:
    rows, labels = rows_of()
    train, held = slice(0, 400), slice(400, 500)
    stopping = (rows.iloc[held].reset_index(drop=True), labels[held])
    return Folds(rows.iloc[train], labels[train], fold_of(rows.iloc[train], labels[train], BINARY, count), stopping, BINARY)


def boosted() -> Learner:
    from lightgbm import LGBMClassifier

    return Learner(LGBMClassifier(verbose=-1, n_jobs=1, n_estimators=40, deterministic=True, random_state=0), tuple("abcd"))


def scoring(timer: None = None) -> Scoring:
    rows = folds()
    return Scoring(Space(families_of(boosted(), rows.rows, BINARY, timed=False, seed=0), None, 1), rows, "roc_auc", timer)


def test_fold_of_keeps_equal_rows_together_and_classes_even_when_rows_repeat() -> None:
    rows, labels = rows_of(300)
    doubled, twice = pd.concat([rows, rows], ignore_index=True), np.concatenate([labels, labels])
    found = fold_of(doubled, twice, BINARY, 5)
    np.testing.assert_array_equal(found[:300], found[300:])
    shares = [twice[found == number].mean() for number in range(5)]
    assert np.ptp(shares) < 0.03
    order = np.random.default_rng(0).permutation(600)
    np.testing.assert_array_equal(fold_of(doubled.iloc[order], twice[order], BINARY, 5), found[order])


def test_fold_of_makes_fewer_folds_when_a_class_is_rare() -> None:
    rows, _ = rows_of(100)
    labels = (np.arange(100) < 7).astype(int)
    found = fold_of(rows, labels, BINARY, 5)
    assert set(found) == {0, 1, 2}
    assert min(labels[found == number].sum() for number in range(3)) >= 2


def test_fold_of_is_refused_when_a_class_has_three_rows() -> None:
    rows, _ = rows_of(100)
    with pytest.raises(ValueError, match="at least 4 train rows of each class, got 3"):
        fold_of(rows, (np.arange(100) < 3).astype(int), BINARY, 5)


def test_score_fold_stops_boosting_early_when_rounds_are_many() -> None:
    found = score_fold(boosted(), {"n_estimators": 2000, "learning_rate": 0.2}, folds(), 0)
    assert 0 < found.rounds < 500
    assert 0.6 < found.values["roc_auc"] < 1
    assert found.seconds > 0


def test_score_fold_never_trains_on_the_fold_that_scores_when_labels_are_noise() -> None:
    rows = folds()
    noise = Folds(rows.rows, np.random.default_rng(5).permutation(rows.labels), rows.fold, rows.valid, BINARY)
    scores = [score_fold(boosted(), {"n_estimators": 300, "min_child_samples": 2}, noise, number) for number in range(3)]
    assert abs(cross_validation.means(scores, "roc_auc")["roc_auc"] - 0.5) < 0.1


def test_score_fold_scores_when_columns_are_constant_empty_infinite_or_have_a_category_a_row() -> None:
    from sklearn.base import clone

    from mlflow_opt.baselines import train_pipeline

    rows, labels = rows_of()
    rows = rows.assign(constant=1.0, empty=np.nan, endless=np.where(np.arange(500) % 9 == 0, np.inf, 0.5))
    rows["words"] = [f"word {place}" for place in range(500)]
    learner = Learner(clone(train_pipeline(rows, labels, BINARY, 0)), tuple(map(str, rows)))
    ugly = Folds(rows, labels, fold_of(rows, labels, BINARY, 3), (rows.head(100), labels[:100]), BINARY)
    assert 0.6 < score_fold(learner, {"n_estimators": 100}, ugly, 0).values["roc_auc"] < 1


def test_patience_is_longer_when_steps_are_small() -> None:
    waits = [cross_validation.patience(boosted(), {"learning_rate": rate}) for rate in (0.3, 0.05, 0.01)]
    assert waits == [30, 60, 200]


def test_means_hold_the_spread_and_the_rounds_when_folds_agree_on_metrics() -> None:
    scores = [score_fold(boosted(), {"n_estimators": 500}, folds(), number) for number in range(3)]
    found = cross_validation.means(scores, "roc_auc")
    assert found["roc_auc"] == pytest.approx(np.mean([one.values["roc_auc"] for one in scores]))
    assert found["folds"] == 3
    assert found["rounds"] == round(np.mean([one.rounds for one in scores]))
    assert found["roc_auc_spread"] > 0


def test_scoring_prunes_bad_trials_and_keeps_what_it_measured_when_searched(tmp_path: Path) -> None:
    what = plan(tmp_path, pruner="median", steps=3)
    found = list(search(what, scoring(), Budget(20)))
    assert {one.state for one in found} == {"complete", "pruned"}
    pruned = next(one for one in found if one.state == "pruned")
    assert pruned.metrics["folds"] < 3
    assert "roc_auc" in pruned.metrics
    best = searching.best(found, ("maximize",), 1)[0]
    assert best.values[0] == best.metrics["roc_auc"]
    assert best.metrics["rounds"] > 0


def test_scoring_stops_between_folds_when_time_is_over() -> None:
    study = optuna.create_study()
    with pytest.raises(searching.OutOfTime):
        scoring()(study.ask(), Ticket(0, deadline=0.0))


@pytest.mark.slow
def test_scoring_gives_the_same_on_a_cluster_when_parameters_are_the_same(tmp_path: Path) -> None:
    what = plan(tmp_path, workers=2, steps=3)
    there = {tuple(one.params.values()): one.values for one in search(what, scoring(), Budget(6), "dask") if one.state == "complete"}
    assert len(there) == 6
    for params, values in there.items():
        names = list(scoring().space.distributions())
        here = _alone(dict(zip(names, params, strict=True)), tmp_path)
        assert here == values


def _alone(params: dict[str, float], folder: Path) -> tuple[float, ...]:
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(params)
    return scoring()(study.ask(), Ticket(0))


def test_machine_folder_is_one_and_private_when_asked_twice() -> None:
    assert file_locks.machine_folder() == file_locks.machine_folder()
    assert file_locks.machine_folder().stat().st_mode & 0o077 == 0
