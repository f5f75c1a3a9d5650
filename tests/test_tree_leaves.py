"""Trees with fewer leaves answer within the stated bound, and walking down them here is what ONNX Runtime does."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_opt.export import dropin_code, exporting, tree_columns
from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.lightgbm_trees import booster_graph
from mlflow_opt.trees.tree_graphs import Site, scores_of, sites_of, with_trees
from mlflow_opt.trees.tree_leaves import Grown, grown
from mlflow_opt.trees.tree_paths import decisions_passed, leaves_reached
from tests import tree_zoo as zoo
from tests.model_zoo import BINARY, one_thread, save

__all__ = ["one_thread"]

TASKS = {"binary": BINARY, "multiclass": zoo.MULTICLASS, "regression": zoo.REGRESSION}


def _graph(kind: str, dtype: Any = np.float64, **params: Any) -> OnnxGraph:
    proto = booster_graph(zoo.booster(TASKS[kind], **params), "x", dtype)
    output = {"binary": "positive", "multiclass": "probabilities", "regression": "values"}[kind]
    feed = Feed("x", np.dtype(dtype).name, tuple(zoo.COLUMNS))
    # The closed set of kinds is narrower than a dictionary's values.
    return OnnxGraph(proto, Binding((feed,), Output("scores", output)))  # type: ignore[arg-type]


@functools.cache
def _grown(kind: str) -> tuple[OnnxGraph, Site, Grown, int]:
    graph = _graph(kind)
    ((site, matrix),) = sites_of(graph, zoo.table())
    return graph, site, grown(site.columns, matrix), matrix.shape[1]


def _sums(columns: Any, rows: np.ndarray, targets: int) -> np.ndarray:
    reached = leaves_reached(columns, rows)
    values, target = np.array(columns.leaf_value)[reached], np.array(columns.leaf_target)[reached]
    return np.stack([np.where(target == one, values, 0).sum(axis=1) for one in range(targets)], axis=1)


def _run(graph: OnnxGraph, output: str, rows: np.ndarray) -> np.ndarray:
    from onnx import helper

    proto = type(graph.proto)()
    proto.CopyFrom(graph.proto)
    proto.graph.output.append(helper.make_empty_tensor_value_info(output))
    session = dropin_code.open_session(proto.SerializeToString(), dropin_code.SessionOptions())
    return np.asarray(session.run([output], {"x": rows})[0])


@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=30, deadline=None)
@given(rows=zoo.strange_rows())
def test_leaves_reached_are_the_runtimes_when_any_row(kind: str, rows: np.ndarray) -> None:
    graph, site, _, _ = _grown(kind)
    np.testing.assert_allclose(_sums(site.columns, rows, site.targets), _run(graph, site.output, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=40, deadline=None)
@given(rows=zoo.strange_rows(), share=st.floats(0.02, 1.0), depth=st.integers(0, 6))
def test_merged_stays_within_its_bound_when_any_row(kind: str, rows: np.ndarray, share: float, depth: int) -> None:
    _, site, trees, _ = _grown(kind)
    merged = trees.merged(trees.price_for(share), depth)
    change = np.abs(_sums(merged.columns, rows, site.targets) - _sums(site.columns, rows, site.targets))
    assert change.max() <= merged.bound + 1e-9


@pytest.mark.parametrize("kind", TASKS)
def test_merged_bound_is_reached_by_no_more_than_a_factor_when_cut_hard(kind: str) -> None:
    _, site, trees, _ = _grown(kind)
    merged = trees.merged(trees.price_for(0.3))
    rows = zoo.table(3000, seed=9).to_numpy()
    change = np.abs(_sums(merged.columns, rows, site.targets) - _sums(site.columns, rows, site.targets))
    # A bound that is far from anything that happens would say nothing.
    assert merged.bound / 10 < change.max() <= merged.bound


@pytest.mark.parametrize("kind", TASKS)
def test_merged_changes_nothing_when_leaves_are_free(kind: str) -> None:
    graph, site, trees, width = _grown(kind)
    merged = trees.merged(0.0)
    assert merged.bound == pytest.approx(0.0, abs=1e-12)
    same = with_trees(graph, [(replace(site, columns=merged.columns), width)])
    rows = zoo.table(500, seed=5)
    np.testing.assert_allclose(scores_of(same, rows), scores_of(graph, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.8, 0.4, 0.1])
def test_price_for_keeps_about_the_share_of_leaves(share: float) -> None:
    _, _, trees, _ = _grown("binary")
    left = len(trees.merged(trees.price_for(share)).columns.leaf_value) / trees.leaves
    assert 0.5 * share - 0.05 < left <= share


def test_price_for_refuses_when_no_share() -> None:
    _, _, trees, _ = _grown("binary")
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        trees.price_for(0.0)


def test_merged_respects_the_depth_and_costs_a_row_less() -> None:
    _, _, trees, width = _grown("binary")
    rows = zoo.table().to_numpy()
    cut = trees.merged(0.0, 2).columns
    again = grown(cut, rows)
    assert width == len(zoo.COLUMNS)
    assert again.depth <= 2 < trees.depth
    assert decisions_passed(cut, again.leaf_rows) < decisions_passed(trees.columns, trees.leaf_rows)
    # Counted by hand: two decisions a tree at most.
    assert decisions_passed(cut, again.leaf_rows) <= 2 * len(cut.root) * len(rows)


@pytest.mark.parametrize("kind", TASKS)
def test_merged_leaves_a_constant_when_leaves_cost_everything(kind: str) -> None:
    graph, site, trees, width = _grown(kind)
    merged = trees.merged(1e9)
    rows = zoo.table(50, seed=2)
    flat = scores_of(with_trees(graph, [(replace(site, columns=merged.columns), width)]), rows)
    assert np.ptp(flat, axis=0).max() == 0
    assert np.abs(flat.mean(axis=0) - scores_of(graph, rows).mean(axis=0)).max() < 0.6


@pytest.mark.parametrize("quantile", [0.3, 0.6, 0.9])
def test_merged_keeps_as_many_leaves_as_scikit_learns_own_pruning_when_one_regression_tree(quantile: float, tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeRegressor

    rows = zoo.table(400, holes=False)
    wanted = zoo.signal(rows)
    whole = DecisionTreeRegressor(random_state=0, min_samples_leaf=5).fit(rows, wanted)
    alphas = np.unique(whole.cost_complexity_pruning_path(rows, wanted).ccp_alphas)
    at = int(quantile * (len(alphas) - 2))
    price = float(np.sqrt(max(alphas[at], 1e-9) * alphas[at + 1]))
    theirs = DecisionTreeRegressor(random_state=0, min_samples_leaf=5, ccp_alpha=price).fit(rows, wanted)
    model = save(tmp_path / "m", whole, rows)
    ((site, matrix),) = sites_of(exporting.to_onnx(model, rows, zoo.REGRESSION), rows)
    ours = grown(site.columns, matrix).merged(price)
    # The part of a row that every leaf has on top may move a breakpoint.
    assert len(ours.columns.leaf_value) == pytest.approx(theirs.get_n_leaves(), abs=1)
    assert theirs.get_n_leaves() < whole.get_n_leaves()


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["double", "single"])
def test_sites_of_reads_what_was_turned_around(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _graph("binary", dtype)
    monkeypatch.setattr(tree_columns, "_WORTH_TURNING", 0)
    turned = _graph("binary", dtype)
    rows = zoo.table(200)
    ((one, _),) = sites_of(plain, rows)
    ((other, matrix),) = sites_of(turned, rows)
    for name in ("feature", "mode", "split", "true_id", "true_leaf", "false_id", "false_leaf", "missing_true", "members", "leaf_value"):
        np.testing.assert_array_equal(getattr(other.columns, name), getattr(one.columns, name), err_msg=name)
    again = with_trees(turned, [(replace(other, columns=grown(other.columns, matrix).merged(0.0).columns), matrix.shape[1])])
    assert [node.op_type for node in again.proto.graph.node].count("Neg") == 1
    np.testing.assert_allclose(scores_of(again, rows), scores_of(turned, rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", zoo.NATIVES)
def test_with_trees_answers_alike_when_trees_of_any_library_are_put_back(name: str, tmp_path: Path) -> None:
    model, rows, _, task = zoo.saved(name, tmp_path / "m")
    graph = exporting.to_onnx(model, rows, task)
    changed = []
    for site, matrix in sites_of(graph, rows):
        merged = grown(site.columns, matrix).merged(0.0)
        changed.append((replace(site, columns=merged.columns), matrix.shape[1]))
    assert changed
    held = zoo.table(200, holes=zoo.NATIVES[name][2], seed=7)
    np.testing.assert_allclose(scores_of(with_trees(graph, changed), held), model.predict(held), rtol=1e-9, atol=1e-9)


def test_sites_of_refuses_when_there_are_no_trees(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    rows = zoo.table(holes=False)
    native = LogisticRegression().fit(rows, zoo.labels(rows, BINARY))
    graph = exporting.to_onnx(save(tmp_path / "m", native, rows), rows, BINARY)
    with pytest.raises(ValueError, match="give a LightGBM"):
        sites_of(graph, rows)


def test_grown_counts_every_row_once_in_each_tree() -> None:
    _, site, trees, _ = _grown("multiclass")
    assert trees.leaf_rows.sum() == 600 * len(site.columns.root)
    assert isinstance(zoo.table(), pd.DataFrame)
