"""Sizes are found on rows that no training saw, and a cheaper setting is taken only if it loses no more than is allowed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.export import exporting
from mlflow_opt.tables.learners import Learner, learner_of
from mlflow_opt.trees.leaf_refits import refined, subsampled
from mlflow_opt.trees.tree_pruning import Judged, LeafPruner, Point, Ruler, facts_of, rounds_curve, smallest
from mlflow_opt.trees.tree_refits import (
    Setting,
    Trained,
    cheapest,
    hold_out,
    knobs_of,
    params_of,
    refined_smaller,
    trained_smaller,
    worth_refining,
)
from tests import tree_zoo as zoo
from tests.model_zoo import BINARY, one_thread

__all__ = ["one_thread"]


def _ruler(rows: pd.DataFrame, headline: str = "roc_auc") -> Ruler:
    return Ruler(rows, zoo.labels(rows, BINARY), BINARY, headline)


def test_smallest_stops_at_the_first_loss_when_a_smaller_size_is_lucky() -> None:
    curve = [Point(100, 0.0), Point(50, 0.001), Point(25, 0.02), Point(12, 0.0)]
    assert smallest(curve, 0.01) == 50
    assert smallest(curve, 0.05) == 12
    assert smallest(curve, -1.0) == 100


def test_judged_sees_probabilities_close_to_the_mean_when_the_ranking_is_kept() -> None:
    rows = zoo.table(400, holes=False)
    ruler = _ruler(rows)
    sure = np.clip(1 / (1 + np.exp(-zoo.signal(rows))), 0.01, 0.99)
    flat = 0.3 + 0.01 * sure
    good, ranked = ruler.judge(sure), ruler.judge(np.stack([1 - flat, flat], axis=1))
    assert ranked.headline == pytest.approx(good.headline)
    assert ranked.lost(good) > 0.1
    assert good.lost(good) == 0


def test_judged_adds_the_standard_error_when_answers_differ_row_by_row() -> None:
    def lost(count: int) -> float:
        rows = zoo.table(count, holes=False)
        ruler, rng = _ruler(rows), np.random.default_rng(0)
        sure = 1 / (1 + np.exp(-zoo.signal(rows)))
        good, other = (ruler.judge(np.clip(sure + 0.1 * rng.normal(size=count), 0.01, 0.99)) for _ in range(2))
        assert good.lost(good) == 0
        # Whichever is the better one: what the two lose against each other would else add up to nothing.
        return good.lost(other) + other.lost(good)

    few, many = lost(200), lost(3200)
    assert 0 < many < few / 2


def test_judged_turns_a_metric_that_should_be_small() -> None:
    rows = zoo.table(100)
    ruler = Ruler(rows, zoo.signal(rows), zoo.REGRESSION, "rmse")
    good, bad = (ruler.judge(zoo.signal(rows) + off) for off in (0.1, 1.0))
    assert bad.lost(good) == pytest.approx(0.9)
    assert isinstance(good, Judged)


def test_hold_out_judges_on_rows_that_are_not_trained_on() -> None:
    rows = zoo.table(500, holes=False)
    wanted = zoo.labels(rows, BINARY)
    valid = zoo.table(80, holes=False, seed=5)
    kept, kept_labels, ruler = hold_out(rows, wanted, _ruler(valid))
    assert len(kept) + len(ruler.rows) == 580
    assert len(kept) == len(kept_labels)
    assert not set(map(tuple, kept.to_numpy())) & set(map(tuple, ruler.rows.to_numpy()))
    assert len(ruler.labels) == len(ruler.rows) > 150


def test_cheapest_takes_the_cheapest_that_holds_and_none_when_nothing_is_cheaper() -> None:
    whole = Judged(0.9, 0.3, np.zeros(2))
    own = Trained(Setting({}, 100, 100.0), [Point(100, 0.0), Point(50, 0.03)], whole)
    small = Trained(Setting({"num_leaves": 4}, 100, 40.0), [Point(100, 0.004), Point(50, 0.008), Point(25, 0.5)], whole)
    worse = Trained(Setting({"num_leaves": 2}, 100, 10.0), [Point(100, 0.2), Point(50, 0.0)], whole)
    chosen = cheapest([own, small, worse], 0.01)
    assert chosen is not None
    assert (dict(chosen.params), chosen.rounds, chosen.cost) == ({"num_leaves": 4}, 50, 20.0)
    assert cheapest([own, worse], 0.01) is None
    assert cheapest([], 0.01) is None


def test_worth_refining_lists_what_costs_more_only_if_it_loses_less() -> None:
    whole = Judged(0.9, 0.3, np.zeros(2))
    own = Trained(Setting({}, 100, 100.0), [Point(100, 0.0), Point(50, 0.03)], whole)
    small = Trained(Setting({"num_leaves": 4}, 100, 40.0), [Point(100, 0.004), Point(50, 0.008), Point(25, 0.5)], whole)
    worse = Trained(Setting({"num_leaves": 2}, 100, 30.0), [Point(100, 0.009), Point(50, 0.012)], whole)
    found = worth_refining([own, small, worse], 0.001)
    assert [(dict(one.params), one.rounds) for one in found] == [({"num_leaves": 2}, 50), ({"num_leaves": 4}, 50), ({"num_leaves": 4}, 100)]
    assert worth_refining([own], 0.001) == []


@pytest.mark.parametrize("name", ["lightgbm", "boosting", "histogram", "forest", "tree", "pipeline"])
def test_trained_smaller_begins_with_the_models_own_setting_when_any_library(name: str, tmp_path: Path) -> None:
    model, rows, wanted, task = zoo.saved(name, tmp_path / "m")
    learner = learner_of(model)
    held = zoo.table(200, holes=zoo.NATIVES[name][2], seed=4)
    headline = "roc_auc" if task.kind == "binary" else "accuracy"
    tried = list(trained_smaller(learner, rows, wanted, Ruler(held, zoo.labels(held, task), task, headline), 8))
    first, curve, _ = tried[0]
    assert (dict(first.params), curve[0].lost) == ({}, 0.0)
    assert len(tried) >= 2
    knobs = knobs_of(learner)
    assert knobs is not None
    assert all(set(setting.params) <= {knobs.rounds, knobs.rate, knobs.leaves} for setting, _, _ in tried)
    assert min(setting.cost for setting, _, _ in tried[1:]) <= first.cost
    assert learner.params() == learner_of(model).params()


def test_refined_smaller_keeps_to_each_loss_and_leaves_other_libraries_out(tmp_path: Path) -> None:
    model, rows, wanted, _ = zoo.saved("lightgbm", tmp_path / "m")
    learner, ruler = learner_of(model), _ruler(zoo.table(400, seed=4))
    tried = list(islice(trained_smaller(learner, rows, wanted, ruler, 8), 4))
    found = refined_smaller(learner, rows, wanted, ruler, tried, [0.3, 0.2])
    assert 1 <= len(found) <= 2
    assert all(setting.cost < tried[0].setting.cost for setting, _ in found)
    for setting, price in found:
        fitted = learner.fit(rows, wanted, params=params_of(learner, setting) | subsampled(learner.params()))
        answers = refined(fitted, rows, wanted, BINARY, price).scores(ruler.rows)
        assert ruler.judge(answers).lost(tried[0].whole) <= 0.3
    assert refined_smaller(learner, rows, wanted, ruler, tried, [-1.0]) == []
    forest, rows, wanted, _ = zoo.saved("forest", tmp_path / "f")
    assert refined_smaller(learner_of(forest), rows, wanted, ruler, tried, [0.3]) == []


def test_knobs_of_knows_no_linear_model_and_no_step_size_of_a_random_forest() -> None:
    import lightgbm
    from sklearn.linear_model import LogisticRegression

    assert knobs_of(Learner(LogisticRegression(), ("a",))) is None
    forest = knobs_of(Learner(lightgbm.LGBMClassifier(boosting_type="rf"), ("a",)))
    assert forest is not None
    assert forest.rate == ""


def test_rounds_curve_gets_worse_with_fewer_rounds(tmp_path: Path) -> None:
    model, rows, wanted, _ = zoo.saved("lightgbm", tmp_path / "m")
    fitted = learner_of(model).fit(rows, wanted)
    ruler = _ruler(zoo.table(400, seed=4))
    reference = ruler.judge(fitted.scores(ruler.rows))
    curve = rounds_curve(fitted, ruler, reference)
    assert [point.size for point in curve] == [20, 14, 10, 7, 5]
    assert curve[0].lost == 0
    assert curve[-1].lost > 0.01


def test_leaf_pruner_cuts_what_the_facts_then_count(tmp_path: Path) -> None:
    model, rows, _, task = zoo.saved("forest", tmp_path / "m")
    pruner = LeafPruner(exporting.to_onnx(model, rows, task), rows)
    before, (cut, bound) = facts_of(pruner.graph, rows), pruner.cut(0.2)
    after = facts_of(cut, rows)
    assert before["trees"] == pruner.trees == 12
    assert before["leaves"] == pruner.leaves
    assert after["leaves"] <= 0.2 * before["leaves"]
    assert after["decisions_per_row"] < before["decisions_per_row"]
    assert bound > 0
    shares = pruner.share_curve(_ruler(rows), _ruler(rows).judge(model.predict(rows)))
    assert shares[-1].lost > shares[0].lost
