from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.ensembles import voting
from mlflow_opt.export import averaging, dropin_code, exporting
from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.export.graph_sharing import shared
from mlflow_opt.records import Task
from mlflow_opt.tables import learner_files
from mlflow_opt.tables.learners import Fitted
from tests.tiny import TELCO

BINARY = Task("binary", (0, 1))


@pytest.fixture(scope="module")
def churn() -> tuple[pd.DataFrame, np.ndarray]:
    table = pd.read_parquet(TELCO).drop(columns="split").head(500)
    return table.drop(columns="target")[["tenure", "contract", "monthly_charges", "payment_method"]], table["target"].to_numpy()


@pytest.fixture(scope="module")
def parts(churn: tuple[pd.DataFrame, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[OnnxGraph, np.ndarray]]:
    """Export a linear model, a forest and a booster, each with its answers."""
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows, labels = churn
    folder = tmp_path_factory.mktemp("parts")
    made = [
        make_pipeline(voting.scaled(rows), LogisticRegression()),
        make_pipeline(voting.coded(rows), RandomForestClassifier(5, random_state=0)),
        make_pipeline(voting.coded(rows), LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)),
    ]
    return [_exported(one.fit(rows, labels), rows, BINARY, folder / str(at)) for at, one in enumerate(made)]


def _exported(estimator: Any, rows: pd.DataFrame, task: Task, folder: Path) -> tuple[OnnxGraph, np.ndarray]:
    native = learner_files.save(Fitted(estimator, tuple(rows.columns), {}, 0.0), rows, folder)
    return exporting.to_onnx(native, rows.head(50), task), native.predict(rows)


def _answers(graph: OnnxGraph, rows: pd.DataFrame) -> np.ndarray:
    session = dropin_code.open_session(graph.proto.SerializeToString(), dropin_code.SessionOptions())
    raw = session.run([graph.binding.output.name], dropin_code.feed(rows, graph.binding.inputs))[0]
    return dropin_code.scores(np.asarray(raw), graph.binding.output)


def test_averaged_answers_the_weighted_mean_when_members_differ_in_kind(
    parts: list[tuple[OnnxGraph, np.ndarray]], churn: tuple[pd.DataFrame, np.ndarray]
) -> None:
    made = averaging.averaged([graph for graph, _ in parts], [3, 1, 2], 0.4)
    wanted = np.tensordot(np.array([3, 1, 2]) / 6, np.stack([scores for _, scores in parts]), axes=1)
    np.testing.assert_allclose(_answers(made, churn[0]), wanted, atol=1e-12)
    assert made.binding.output.threshold == 0.4
    assert len(made.binding.inputs) == 2, "one matrix of numbers and one of texts feed every member"


def test_averaged_prepares_columns_once_when_members_begin_alike(parts: list[tuple[OnnxGraph, np.ndarray]]) -> None:
    forest, booster = parts[1][0], parts[2][0]
    alone = sum(node.op_type == "LabelEncoder" for node in shared(forest).proto.graph.node)
    together = averaging.averaged([forest, booster], [1, 1]).proto.graph.node
    assert sum(node.op_type == "LabelEncoder" for node in together) == alone
    assert sum(node.op_type == "TreeEnsemble" for node in together) == 2


def test_averaged_reorders_columns_when_members_take_them_in_another_order(churn: tuple[pd.DataFrame, np.ndarray], tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    rows, target = churn[0][["tenure", "monthly_charges"]], churn[0]["tenure"].to_numpy() * 2.0
    turned = rows[["monthly_charges", "tenure"]]
    one = _exported(make_pipeline(voting.scaled(rows), Ridge()).fit(rows, target), rows, Task("regression"), tmp_path / "one")
    two = _exported(Ridge().fit(turned, target**2), turned, Task("regression"), tmp_path / "two")
    made = averaging.averaged([one[0], two[0]], [1, 3])
    np.testing.assert_allclose(_answers(made, rows), (one[1] + 3 * two[1]) / 4)
    assert made.binding.output.kind == "values"


@pytest.mark.parametrize(
    ("kind", "raw", "wanted"),
    [
        ("positive", [[0.2]], [[0.8, 0.2]]),
        ("margin", [[0.0]], [[0.5, 0.5]]),
        ("logits", [[0.0, np.log(3.0)]], [[0.25, 0.75]]),
        ("probabilities", [[0.1, 0.9]], [[0.1, 0.9]]),
    ],
)
def test_averaged_turns_scores_into_probabilities_when_a_member_gives_something_else(kind: Any, raw: Any, wanted: Any) -> None:
    graph = _identity(Output("scores", kind), len(raw[0]))
    rows = pd.DataFrame(np.array(raw), columns=[f"x{i}" for i in range(len(raw[0]))])
    np.testing.assert_allclose(_answers(averaging.averaged([graph, graph], [1, 1]), rows), wanted)


def test_averaged_refuses_members_when_an_input_has_no_columns() -> None:
    nameless = _identity(Output("scores", "probabilities"), 2)
    nameless = OnnxGraph(nameless.proto, Binding((Feed("x", "float64"),), nameless.binding.output))
    with pytest.raises(ValueError, match="by name"):
        averaging.averaged([nameless, nameless], [1, 1])


def test_averaged_refuses_a_text_when_one_member_refuses_it() -> None:
    graph = _identity(Output("scores", "probabilities"), 1)
    feeds = [Feed("x", "str", ("kind",), known={"kind": known}) for known in (["a", "b"], ["b", "c"])]
    bindings = [Binding((feed,), graph.binding.output) for feed in feeds]
    assert averaging._joined_feeds(bindings)[0].known == {"kind": ["b"]}


def test_shared_gives_the_same_graph_when_nothing_is_equal() -> None:
    graph = _identity(Output("scores", "probabilities"), 2)
    assert [node.op_type for node in shared(graph).proto.graph.node] == [node.op_type for node in graph.proto.graph.node]


def test_shared_keeps_random_operators_apart_when_they_look_equal() -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("RandomNormal", [], [name], shape=[1, 2]) for name in ("first", "second")]
    nodes.append(helper.make_node("Sub", ["first", "second"], ["scores"]))
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])
    proto = helper.make_model(helper.make_graph(nodes, "random", [], [output]), opset_imports=[helper.make_opsetid("", 18)])
    assert len(shared(OnnxGraph(proto, Binding((), Output("scores", "logits")))).proto.graph.node) == 3


def _identity(output: Output, width: int) -> OnnxGraph:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, width]) for name in ("x", output.name)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], [output.name])], "identity", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return OnnxGraph(proto, Binding((Feed("x", "float64", tuple(f"x{i}" for i in range(width))),), output))
