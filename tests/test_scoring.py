from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from mlflow_opt import metrics
from mlflow_opt.measurement.influence import influence
from mlflow_opt.measurement.own_metrics import OwnMetric, read_own
from mlflow_opt.measurement.scoring import BadScores, score, weighted
from mlflow_opt.records import Task

BINARY = Task("binary", ("no", "yes"))
MULTI = Task("multiclass", (0, 1, 2, 3))
REGRESSION = Task("regression")
ROWS = 300


def _binary(ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=ROWS)
    chance = np.clip(0.3 * labels + 0.7 * rng.random(ROWS), 0.01, 0.99)
    chance = np.round(chance, 1) if ties else chance
    return labels, np.column_stack([1 - chance, chance])


def _multi() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=ROWS)
    outputs = rng.random((ROWS, 4)) + 0.5 * np.eye(4)[labels]
    return labels, outputs / outputs.sum(1, keepdims=True)


def _regression() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = 100 + rng.standard_normal(ROWS)
    return labels, labels + 0.3 * rng.standard_normal(ROWS)


EXPECTED = {
    ("binary", "roc_auc"): lambda y, p, w: sk.roc_auc_score(y, p[:, 1], sample_weight=w),
    ("binary", "accuracy"): lambda y, p, w: sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    ("binary", "f1"): lambda y, p, w: sk.f1_score(y, p.argmax(1), sample_weight=w),
    ("binary", "log_loss"): lambda y, p, w: sk.log_loss(y, p, sample_weight=w),
    ("binary", "average_precision"): lambda y, p, w: sk.average_precision_score(y, p[:, 1], sample_weight=w),
    ("multiclass", "accuracy"): lambda y, p, w: sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    ("multiclass", "f1"): lambda y, p, w: sk.f1_score(y, p.argmax(1), average="macro", sample_weight=w),
    ("multiclass", "log_loss"): lambda y, p, w: sk.log_loss(y, p, sample_weight=w),
    ("multiclass", "roc_auc"): lambda y, p, w: np.mean([sk.roc_auc_score(y == c, p[:, c], sample_weight=w) for c in range(4)]),
    ("regression", "r2"): lambda y, p, w: sk.r2_score(y, p, sample_weight=w),
    ("regression", "mae"): lambda y, p, w: sk.mean_absolute_error(y, p, sample_weight=w),
    ("regression", "rmse"): lambda y, p, w: sk.root_mean_squared_error(y, p, sample_weight=w),
    ("regression", "mape"): lambda y, p, w: sk.mean_absolute_percentage_error(y, p, sample_weight=w),
}


@pytest.mark.parametrize(("kind", "name"), list(EXPECTED), ids=["-".join(key) for key in EXPECTED])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
def test_weighted_equals_scikit_learn_when_rows_have_weights(kind: str, name: str, ties: bool) -> None:
    task = {"binary": BINARY, "multiclass": MULTI, "regression": REGRESSION}[kind]
    labels, outputs = {"binary": lambda: _binary(ties), "multiclass": _multi, "regression": _regression}[kind]()
    weights = np.random.default_rng(3).integers(1, 5, size=(3, ROWS)).astype(float)
    found = weighted(name, task, labels, outputs, weights)
    assert found == pytest.approx([EXPECTED[kind, name](labels, outputs, w) for w in weights], rel=1e-9)


def test_metrics_are_all_compared_with_scikit_learn_when_listed() -> None:
    ours = {(kind, name) for kind, names in metrics.QUALITY.items() for name in names}
    assert ours - set(EXPECTED) == {("binary", "precision_at_k")}


def test_precision_at_k_takes_tied_rows_in_part_when_the_cut_is_among_them() -> None:
    labels = np.array([1, 0, 1, 0] * 100)
    outputs = np.full((400, 2), 0.5)
    assert weighted("precision_at_k", BINARY, labels, outputs, np.ones((1, 400)))[0] == pytest.approx(0.5)
    # The top half per cent of 400 rows is two rows.
    outputs[[0, 1]] = [[0.1, 0.9], [0.05, 0.95]]
    assert weighted("precision_at_k", BINARY, labels, outputs, np.ones((1, 400)))[0] == pytest.approx(0.5)
    outputs[2] = [0.01, 0.99]
    assert weighted("precision_at_k", BINARY, labels, outputs, np.ones((1, 400)))[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("task", "name"),
    [(BINARY, name) for name in ("roc_auc", "f1", "log_loss", "average_precision")]
    + [(MULTI, name) for name in ("roc_auc", "f1", "log_loss")]
    + [(REGRESSION, name) for name in ("r2", "mae", "rmse", "mape")],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
@pytest.mark.parametrize("other", [False, True], ids=["as-is", "otherwise"])
def test_influence_is_the_slope_when_a_row_gains_weight(task: Task, name: str, other: bool) -> None:
    labels, outputs = {"binary": lambda: _binary(ties=True), "multiclass": _multi, "regression": _regression}[task.kind]()
    labels, outputs = labels[:80], outputs[:80]
    asked = outputs[np.random.default_rng(4).permutation(80)] if other else outputs
    found, nudge = influence(name, task, labels, outputs, asked), 1e-6
    before = weighted(name, task, labels, outputs, np.ones((1, 80)))[0]
    weights = np.append(np.ones(80), nudge)[None, :]
    slopes = [
        (weighted(name, task, np.append(labels, labels[row]), np.concatenate([outputs, asked[row : row + 1]]), weights)[0] - before) / nudge
        for row in range(80)
    ]
    assert found == pytest.approx(80 * np.array(slopes), abs=0.02 * np.abs(found).max())


def test_score_reads_logits_as_probabilities_when_rows_do_not_sum_to_one() -> None:
    labels, outputs = _multi()
    plain = score(MULTI, labels, outputs)
    logits = score(MULTI, labels, np.log(outputs) + 3)
    assert logits.values == pytest.approx(plain.values)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)], ids=["flat", "column"])
def test_score_reads_one_output_when_the_task_is_binary(shape: tuple[int, ...]) -> None:
    codes, outputs = _binary()
    labels = np.array(BINARY.classes)[codes]
    plain = score(BINARY, labels, outputs)
    logit = np.log(outputs[:, 1] / outputs[:, 0])
    assert score(BINARY, labels, logit.reshape(shape)).values == pytest.approx(plain.values)
    assert score(BINARY, labels, outputs[:, 1].reshape(shape)).values == pytest.approx(plain.values)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda outputs: outputs[:-1], "one row a row asked"),
        (lambda outputs: outputs[:, :3], "shape"),
        (lambda outputs: np.where(np.arange(4) == 2, np.nan, outputs), "NaN or infinity in 300 of 300 rows"),
        (lambda outputs: np.concatenate([outputs[:-1], np.full((1, 4), np.inf)]), "in 1 of 300 rows"),
    ],
    ids=["row-missing", "class-missing", "nan", "infinite"],
)
def test_score_refuses_when_the_answer_is_unfit(change: object, rule: str) -> None:
    labels, outputs = _multi()
    assert callable(change)
    with pytest.raises(BadScores, match=rule):
        score(MULTI, labels, change(outputs))


def test_score_refuses_when_a_label_is_unknown() -> None:
    labels, outputs = _multi()
    with pytest.raises(ValueError, match=r"among the task's classes .* got \['9'\]"):
        score(MULTI, np.append(labels[:-1], 9), outputs)


def test_score_leaves_out_what_is_not_defined_when_one_class_is_missing() -> None:
    outputs = _binary()[1]
    found = score(BINARY, np.full(ROWS, "no"), outputs).values
    assert {"accuracy", "log_loss"} <= set(found)
    assert not {"roc_auc", "average_precision"} & set(found)
    assert all(math.isfinite(value) for value in found.values())


def test_own_metric_sees_labels_and_probabilities_when_called(tmp_path: Path) -> None:
    file = tmp_path / "profit.py"
    file.write_text("def profit(labels, scores):\n    return ((labels == 'yes') * scores[:, 1]).sum()\n")
    own = read_own(f"{file}:profit")
    codes, outputs = _binary()
    found = score(BINARY, np.array(BINARY.classes)[codes], outputs, (own,))
    assert own.name == "own_profit"
    assert found.values["own_profit"] == pytest.approx(outputs[codes == 1, 1].sum())


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        ("profit", "must be path.py:function"),
        ("nowhere.py:profit", "does not exist"),
        ("{folder}/own.py:missing", "has no function 'missing'"),
        ("{folder}/own.py:three", r"takes \(labels, scores\)"),
        ("{folder}/own.txt:profit", "must end in .py"),
    ],
    ids=["no-colon", "no-file", "no-function", "arity", "no-python"],
)
def test_own_metric_is_refused_when_it_cannot_be_called(reference: str, rule: str, tmp_path: Path) -> None:
    for name in ("own.py", "own.txt"):
        (tmp_path / name).write_text("def three(a, b, c):\n    return 0.0\n")
    with pytest.raises(ValueError, match=rule):
        read_own(reference.format(folder=tmp_path))


def test_own_metric_is_refused_when_it_returns_no_number() -> None:
    codes, outputs = _binary()
    with pytest.raises(ValueError, match="own_bad must return a number, got str"):
        score(BINARY, np.array(BINARY.classes)[codes], outputs, (OwnMetric("own_bad", lambda labels, scores: "0.5"),))
