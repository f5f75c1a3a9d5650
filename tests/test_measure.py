from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflow_opt import measure
from mlflow_opt.data import Part
from mlflow_opt.gate import judge
from mlflow_opt.measurement.scoring import BadScores
from mlflow_opt.models import Model, load
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Outcome, Task

TASK = Task("binary", (0, 1))
QUICK = measure.Conditions(budget_s=1.0, batch_size=1)
GOOD = np.array([[0, 2], [0, 2], [0, 0], [0, 0]])
POLICY = """
validation_criteria:
  - {metric: speedup, min: 0.2}
  - {metric: roc_auc, max_drop: 0.02}
  - {metric: accuracy, max_drop: 0.02, min: 0.5}
"""


def _onnx(path: Path, weights: np.ndarray, *, ending: str = "Softmax", length: int = 0) -> Model:
    """Write a linear classifier of four numbers, behind `length` layers that do nothing, with an ending that may spoil it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", [f"h{k}" if k else "x", "identity"], [f"h{k + 1}"]) for k in range(length)]
    nodes.append(helper.make_node("MatMul", [f"h{length}" if length else "x", "weights"], ["z"]))
    constants = {"weights": weights.astype(np.float32), "identity": np.eye(4, dtype=np.float32)}
    if ending == "Softmax":
        nodes.append(helper.make_node("Softmax", ["z"], ["p"], axis=1))
    elif ending == "Log":
        # Half of the values have no logarithm.
        nodes.append(helper.make_node("Log", ["z"], ["p"]))
    else:
        constants |= {"starts": np.array([0]), "ends": np.array([-1])}
        nodes.append(helper.make_node("Slice", ["z", "starts", "ends"], ["p"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["m", 2])]
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in {i for n in nodes for i in n.input}]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, kept), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(proto, path)
    return load(str(path))


@pytest.fixture
def part() -> Part:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1500, 4)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] + 0.7 * rng.standard_normal(1500) > 0).astype(int)
    return Part("gate", {"x": features}, labels, "digest-of-rows")


@pytest.fixture
def reference(tmp_path: Path) -> Model:
    return _onnx(tmp_path / "reference.onnx", GOOD, length=40)


def test_evidence_passes_when_the_candidate_is_faster_and_as_good(reference: Model, part: Part, tmp_path: Path) -> None:
    policy = parse_policy(POLICY.replace("0.2}", "1.05}"))
    found = measure.evidence(_onnx(tmp_path / "candidate.onnx", GOOD), reference, part, TASK, policy, QUICK)
    verdict = judge(found.candidate, policy)
    assert verdict.outcome is Outcome.PASS, [reason.text for reason in verdict.reasons]
    names = set(found.candidate.quantities)
    assert {"speedup", "latency_p50_ms", "throughput_rows_per_s", "cost_per_million", "size_mb", "parameters"} <= names
    assert {"roc_auc", "drop_f1", "rel_drop_log_loss", "label_flips", "max_abs_diff"} <= names
    assert found.candidate.quantities["label_flips"].value == 0
    assert found.candidate.data_digest == "digest-of-rows"
    assert found.candidate.reference == reference.digest
    assert "threads=1; " in found.candidate.fingerprint
    assert {"latency_p50_ms", "accuracy", "size_mb"} <= set(found.reference.quantities)
    assert found.reference.quantities["latency_p50_ms"].value > found.candidate.quantities["latency_p50_ms"].value


def test_evidence_fails_when_the_candidate_is_wrong(reference: Model, part: Part, tmp_path: Path) -> None:
    broken = _onnx(tmp_path / "broken.onnx", GOOD[:, ::-1])
    policy = parse_policy(POLICY)
    found = measure.evidence(broken, reference, part, TASK, policy, QUICK)
    assert judge(found.candidate, policy).outcome is Outcome.FAIL
    assert found.candidate.quantities["drop_roc_auc"].lo > 0.5


@pytest.mark.parametrize(("ending", "told"), [("Log", "NaN or infinity"), ("Slice", "one row a row asked")], ids=["nan", "a-row-missing"])
def test_evidence_is_no_pass_when_the_answers_cannot_be_scored(
    ending: str, told: str, reference: Model, part: Part, tmp_path: Path
) -> None:
    policy = parse_policy(POLICY)
    spoilt = _onnx(tmp_path / "spoilt.onnx", GOOD, ending=ending)
    found = measure.evidence(spoilt, reference, part, TASK, policy, QUICK)
    assert told in found.candidate.doubt
    assert not {"roc_auc", "drop_roc_auc", "drop_accuracy", "label_flips"} & set(found.candidate.quantities)
    assert judge(found.candidate, policy).outcome is Outcome.INCONCLUSIVE
    with pytest.raises(BadScores):
        measure.evidence(reference, spoilt, part, TASK, policy, QUICK)


def test_evidence_judges_slices_when_rows_are_a_table(reference: Model, part: Part, tmp_path: Path) -> None:
    assert isinstance(part.rows, dict)
    table = pd.DataFrame(part.rows["x"], columns=["first", "second", "third", "fourth"])
    policy = parse_policy(
        """
        validation_criteria:
          - {id: high, slice: 'first > 0.5', metric: accuracy, max_drop: 0.03}
          - {id: nobody, slice: 'first > 99', metric: accuracy, max_drop: 0.03}
        """
    )
    found = measure.evidence(reference, reference, Part("gate", table, part.labels, "d"), TASK, policy, QUICK)
    high = found.candidate.quantities["slice/high/drop_accuracy"]
    assert high.n == int((table["first"] > 0.5).sum())
    assert high.hi < 0.03
    assert not [name for name in found.candidate.quantities if name.startswith("slice/nobody/")]
    assert judge(found.candidate, policy).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    "query",
    ["contract = ", "no_such_column > 1", "contract == @pd", "contract ==", "tenure", "contract.str.nothing()", "tenure > 'a'"],
)
def test_slice_is_refused_when_it_is_no_query(query: str) -> None:
    table = pd.DataFrame({"contract": ["One year", "Two year"], "tenure": [1, 2]})
    with pytest.raises(ValueError, match="slice must be a query on contract, tenure"):
        measure.slice_mask(table, query)


def test_slice_is_refused_when_rows_are_arrays() -> None:
    with pytest.raises(ValueError, match="these rows are arrays"):
        measure.slice_mask({"x": np.zeros((3, 2))}, "x > 0")


def test_slice_picks_by_position_when_the_index_is_not_plain() -> None:
    table = pd.DataFrame({"contract": ["One year", "Two year", None]}, index=[7, 7, 3])
    assert measure.slice_mask(table, 'contract == "Two year"').tolist() == [False, True, False]
    assert measure.slice_mask(table, "contract.isna()").tolist() == [False, False, True]


def test_selection_gives_points_when_choosing(reference: Model, part: Part, tmp_path: Path) -> None:
    worse = measure.quality(_onnx(tmp_path / "worse.onnx", GOOD * [[1], [0], [1], [1]]), part, TASK)
    base = measure.quality(reference, part, TASK)
    found = measure.selection(worse, base, part)
    assert found.quantities["drop_accuracy"].value == pytest.approx(base.values["accuracy"] - worse.values["accuracy"])
    assert found.quantities["drop_log_loss"].value > 0
    assert found.quantities["label_flips"].value > 0
    assert measure.drop(worse, base, "log_loss") == found.quantities["drop_log_loss"].value
    assert not [name for name in measure.selection(base, None, part).quantities if "drop" in name]
    with pytest.raises(ValueError, match="must be defined"):
        measure.drop(worse, base, "rmse")


def test_own_metric_is_measured_when_given(reference: Model, part: Part, tmp_path: Path) -> None:
    (tmp_path / "profit.py").write_text("def profit(labels, scores):\n    return float((labels * scores[:, 1]).mean())\n")
    own = measure.own_metric(f"{tmp_path / 'profit.py'}:profit")
    policy = parse_policy("validation_criteria: [{metric: own_profit, max_drop: 0.01}]")
    conditions = measure.Conditions(budget_s=1.0, batch_size=1, own=own)
    found = measure.evidence(reference, reference, part, TASK, policy, conditions)
    assert judge(found.candidate, policy).outcome is Outcome.PASS
    assert measure.own_metric("") is None


@pytest.mark.slow
def test_evidence_times_pyfunc_and_memory_when_the_policy_asks(part: Part, tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    assert isinstance(part.rows, dict)
    table = pd.DataFrame(part.rows["x"].astype(float), columns=list("abcd"))
    fitted = LogisticRegression().fit(table, part.labels)
    signature = infer_signature(table.head(), fitted.predict(table.head()))
    mlflow.sklearn.save_model(fitted, str(tmp_path / "model"), signature=signature, pip_requirements=["scikit-learn"])
    model = load(str(tmp_path / "model"))
    policy = parse_policy("validation_criteria: [{metric: pyfunc_p50_ms, max: 1000}, {metric: memory_mb, max: 5000}]")
    found = measure.evidence(model, model, Part("gate", table, part.labels, "d"), TASK, policy, QUICK)
    assert judge(found.candidate, policy).outcome is Outcome.PASS
    # MLflow's schema check costs more than a logistic regression does.
    assert found.candidate.quantities["pyfunc_p50_ms"].value > found.candidate.quantities["latency_p50_ms"].value
    assert found.candidate.quantities["memory_mb"].value > 20
