from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.features import feature_trials
from mlflow_opt.features.feature_ranking import Ranking
from mlflow_opt.features.feature_trials import Table, Trial, bounds_of, folds_of, ranked, sizes_for, smallest, stability, tried
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Quantity, Task
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.table_models import default_pipeline

BINARY = Task("binary", (0, 1))


def table(rows: int = 600, kind: str = "binary") -> Table:
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.normal(size=(rows, 6)), columns=[f"x{at}" for at in range(6)])
    score = values["x0"] + values["x1"] + 0.5 * rng.normal(size=rows)
    task = BINARY if kind == "binary" else Task("regression")
    labels = (score > 0).to_numpy().astype(int) if kind == "binary" else score.to_numpy()
    template = default_pipeline(values, task, 0).set_params(trees__n_estimators=30, trees__learning_rate=0.1)
    return Table(Learner(template, tuple(values.columns)), values, labels, task, tuple(values.columns))


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_tried_finds_no_loss_when_only_noise_is_left_out(kind: str) -> None:
    given = table(kind=kind)
    folds = folds_of(given.labels, given.task, 3, 0)
    found = tried(given, folds, [ranked(given, fold, "gain") for fold in folds], 2, 0.95)
    headline = "drop_roc_auc" if kind == "binary" else "drop_r2"
    drop = found.drops[headline]
    assert drop.n == 600
    assert drop.lo < drop.value < drop.hi < 0.03
    assert found.drops[f"rel_{headline}"].usable


def test_tried_finds_a_loss_when_what_matters_is_left_out() -> None:
    given = table()
    folds = folds_of(given.labels, given.task, 3, 0)
    wrong = Ranking("wrong", ("x3", "x4", "x5", "x2", "x1", "x0"))
    found = tried(given, folds, [wrong] * 3, 3, 0.95)
    assert found.drops["drop_roc_auc"].lo > 0.2
    assert found.drops["drop_accuracy"].lo > 0.2
    assert not found.within({"drop_roc_auc": 0.01})


@pytest.mark.parametrize(("value", "hi", "fits"), [(0.004, 0.009, True), (0.008, 0.009, False), (0.004, 0.011, False), (-0.02, 0.01, True)])
def test_trial_is_within_when_its_interval_and_twice_its_loss_are(value: float, hi: float, fits: bool) -> None:
    drop = Quantity(value, value - 0.01, hi, 100)
    trial = Trial("gain", 3, {"drop_roc_auc": drop}, {}, 1.0, 2.0)
    assert trial.within({"drop_roc_auc": 0.01, "drop_other": 0.0}) is fits


def test_tried_loses_exactly_nothing_when_all_columns_are_kept() -> None:
    given = table()
    folds = folds_of(given.labels, given.task, 2, 0)
    found = tried(given, folds, [ranked(given, fold, "mutual_information") for fold in folds], 6, 0.95)
    assert found.drops["drop_roc_auc"] == Quantity(0.0, 0.0, 0.0, 600)


def test_tried_covers_the_true_difference_when_repeated() -> None:
    """The interval must hold what the same two models lose on very many rows, most of the time."""
    rng = np.random.default_rng(1)
    many = table(40_000)
    held = 0
    for _ in range(20):
        index = rng.choice(20_000, 900, replace=False)
        given = Table(many.learner, many.rows.iloc[index].reset_index(drop=True), many.labels[index], BINARY, many.columns)
        fold = folds_of(given.labels, BINARY, 3, 0)[0]
        drop = tried(given, [fold], [Ranking("one", many.columns)], 1, 0.9).drops["drop_roc_auc"]
        full, one = (many.learner.fit(given.rows.iloc[fold.train], given.labels[fold.train], columns=names) for names in ((), ("x0",)))
        rest, labels = many.rows.iloc[20_000:], many.labels[20_000:]
        true = _area(labels, full.scores(rest)[:, 1]) - _area(labels, one.scores(rest)[:, 1])
        held += drop.lo <= true <= drop.hi
    assert held >= 14


def test_first_keeps_named_columns_and_the_tables_order_when_asked() -> None:
    given = Table(table().learner, table().rows, table().labels, BINARY, table().columns, always=("x5",))
    ranking = Ranking("any", ("x3", "x1", "x0", "x2", "x4", "x5"))
    assert given.first(ranking, 3) == ("x1", "x3", "x5")
    assert given.first(ranking, 0) == ("x5",)


def test_folds_of_gives_one_fold_when_it_has_rows_enough() -> None:
    labels = np.arange(120_000) % 2
    folds = folds_of(labels, BINARY, 3, 0)
    assert len(folds) == 1
    assert len(folds[0].train) == feature_trials.TRAIN_ROWS
    assert len(folds[0].judge) == feature_trials.JUDGE_ROWS
    assert not set(folds[0].train) & set(folds[0].judge)


def test_ranked_never_sees_the_rows_that_judge_when_it_ranks() -> None:
    given = table()
    for fold in folds_of(given.labels, BINARY, 3, 0):
        ranked(given, fold, "gain")
        assert fold.sample is not None
        assert not set(fold.sample.rows.index) & set(fold.judge)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[{metric: roc_auc, max_drop: 0.02}, {metric: speedup, min: 1}]", {"drop_roc_auc": 0.02}),
        ("[{metric: rmse, max_relative_drop: 0.05}, {metric: rmse, max_drop: 1}]", {"rel_drop_rmse": 0.05, "drop_rmse": 1.0}),
        ("[{metric: speedup, min: 1}]", {"drop_roc_auc": 0.01}),
        ("[{metric: f1, min: 0.5}]", {"drop_roc_auc": 0.01}),
    ],
    ids=["drop", "relative", "none", "absolute"],
)
def test_bounds_of_reads_losses_when_the_policy_names_some(text: str, wanted: dict[str, float]) -> None:
    assert bounds_of(parse_policy(f"validation_criteria: {text}"), "roc_auc") == wanted


@pytest.mark.parametrize("columns", [2, 3, 7, 19, 60, 61, 300, 301, 1500])
def test_sizes_for_leaves_something_out_when_there_is_something(columns: int) -> None:
    sizes = sizes_for(columns)
    assert sizes == sorted(set(sizes), reverse=True)
    assert min(sizes) >= 1
    assert max(sizes) < columns


def test_smallest_takes_the_fewest_columns_when_their_whole_interval_is_within() -> None:
    def trial(size: int, value: float, hi: float) -> Trial:
        return Trial("gain", size, {"drop_roc_auc": Quantity(value, value - 0.01, hi, 100)}, {}, 1.0, 2.0)

    trials = [trial(9, 0.0, 0.005), trial(5, 0.001, 0.009), trial(3, 0.002, 0.02)]
    assert smallest(trials, {"drop_roc_auc": 0.01}, "roc_auc") == trials[1]
    assert smallest(trials, {"drop_roc_auc": 0.001}, "roc_auc") is None


@pytest.mark.parametrize(("drawn", "low", "high"), [("same", 1.0, 1.0), ("random", -0.1, 0.1)])
def test_stability_is_one_for_equal_sets_and_zero_by_chance_when_measured(drawn: str, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"x{at}" for at in range(40)])
    sets = [names[:8] if drawn == "same" else rng.choice(names, 8, replace=False) for _ in range(60)]
    assert low <= stability([tuple(one) for one in sets], 40) <= high


def _area(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))
