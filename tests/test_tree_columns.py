"""The order of a decision's ways and the rounding of thresholds change no answer by a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_opt.export import dropin_code, tree_columns
from mlflow_opt.export.lightgbm_trees import booster_graph
from mlflow_opt.export.tree_columns import LEQ, LESS, TreeColumns, rounded
from tests import tree_zoo as zoo
from tests.model_zoo import BINARY, one_thread

__all__ = ["one_thread"]

KINDS: dict[str, Any] = {
    "binary": (BINARY, {}),
    "multiclass": (zoo.MULTICLASS, {}),
    "zero_as_missing": (BINARY, {"zero_as_missing": True}),
    "no_missing": (zoo.REGRESSION, {"use_missing": False}),
}
ANY = st.one_of(st.floats(allow_nan=False, width=64), st.floats(-1e3, 1e3), st.sampled_from([0.0, -0.0, np.inf, -np.inf, 5e-324, 1e300]))


def _opened(name: str, dtype: Any, turned: bool) -> Any:
    task, params = KINDS[name]
    key = name, np.dtype(dtype).name, turned
    if key not in _SESSIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_columns, "_WORTH_TURNING", 0 if turned else 10**9)
            proto = booster_graph(zoo.booster(task, **params), "x", dtype)
        assert any(node.op_type == "Neg" for node in proto.graph.node) == turned
        _SESSIONS[key] = dropin_code.open_session(proto.SerializeToString(), dropin_code.SessionOptions())
    return _SESSIONS[key]


_SESSIONS: dict[tuple[str, str, bool], Any] = {}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["double", "single"])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None)
@given(rows=zoo.strange_rows())
def test_likely_last_answers_bit_for_bit_when_any_row(name: str, dtype: Any, rows: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        given_rows = rows.astype(dtype)
    plain, turned = (_opened(name, dtype, turn).run(None, {"x": given_rows})[0] for turn in (False, True))
    np.testing.assert_array_equal(turned, plain)


def test_likely_last_leaves_no_likely_way_first_when_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_columns, "_WORTH_TURNING", 0)
    columns = TreeColumns()
    for split, likely in ((0.5, True), (1.5, False), (np.inf, True), (0.0, True)):
        at = columns.decision(2, LEQ, split, missing_true=True, likely=likely)
        columns.join(at, (columns.leaf(1.0, 0), True), (columns.leaf(2.0, 0), True))
        columns.root.append(at)
    assert columns.likely_last(10, np.float64)
    assert columns.feature == [12, 2, 2, 2]
    assert columns.split[0] == np.nextafter(-0.5, -np.inf)
    assert columns.missing_true == [0, 1, 1, 1]
    # Nothing is less than minus infinity, and a subnormal number may be taken for zero: these two stay as they are.
    assert columns.likely == [False, False, True, True]
    assert (columns.true_id[0], columns.false_id[0]) == (1, 0)


def test_likely_last_leaves_few_decisions_alone() -> None:
    columns = TreeColumns()
    columns.root.append(columns.decision(0, LEQ, 1.0, missing_true=False, likely=True))
    columns.join(0, (columns.leaf(1.0, 0), True), (columns.leaf(2.0, 0), True))
    assert not columns.likely_last(1, np.float64)
    assert columns.feature == [0]


@settings(max_examples=300, deadline=None)
@given(threshold=ANY, value=st.floats(allow_nan=False, width=32))
def test_rounded_keeps_the_side_of_every_single_when_any_threshold(threshold: float, value: float) -> None:
    at_most, below = rounded([threshold, threshold], [LEQ, LESS], np.float32)
    single = np.float32(value)
    assert (single <= at_most) == (value <= threshold)
    assert (single < below) == (value < threshold)


def test_booster_graph_decides_alike_in_single_precision_when_rows_lie_on_thresholds() -> None:
    model = zoo.booster()
    stack = [tree["tree_structure"] for tree in model.dump_model()["tree_info"]]
    rows = []
    base = zoo.table(1, holes=False).to_numpy()[0]
    while stack:
        node = stack.pop()
        if "split_index" not in node:
            continue
        stack += [node["left_child"], node["right_child"]]
        if node["decision_type"] == "<=" and abs(node["threshold"]) < 1e30:
            near = np.float32(node["threshold"])
            for value in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
                row = base.astype(np.float32).copy()
                row[node["split_feature"]] = value
                rows.append(row)
    matrix = np.array(rows, np.float32)
    assert len(matrix) > 200
    session = dropin_code.open_session(booster_graph(model, "x", np.float32).SerializeToString(), dropin_code.SessionOptions())
    wanted = np.asarray(model.predict(matrix.astype(np.float64)))
    np.testing.assert_allclose(session.run(None, {"x": matrix})[0][:, 0], wanted, atol=2e-6)
