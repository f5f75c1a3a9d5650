from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlflow_opt import data
from mlflow_opt.records import Task
from mlflow_opt.tables.table_audit import audit, imbalance, suspicions

BINARY = Task("binary", (0, 1))


def table(rows: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, rows)
    honest = labels + rng.normal(size=rows)
    return pd.DataFrame({"honest": honest, "noise": rng.normal(size=rows), "town": rng.choice(["a", "b", "c"], rows)}), labels


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y * 2.0 - 1,
        lambda y: np.where(y == 1, "churned", "stayed"),
        lambda y: np.where(y == 1, np.nan, 5.0),
        lambda y: np.abs(y - 0.5) * 0 + np.where(y == 1, 1.0, np.arange(len(y)) % 7 + 2),
        lambda y: y + np.random.default_rng(1).normal(size=len(y)) * 0.2,
        lambda y: np.where(y == 1, "code ", "kind ") + pd.Series(np.arange(len(y)) % 60).astype(str).to_numpy(),
    ],
    ids=["number", "text", "missing", "one value among others", "nearly", "text of many values"],
)
def test_audit_names_a_column_when_it_holds_the_target(make: Callable[[np.ndarray], np.ndarray]) -> None:
    rows, labels = table()
    found = audit(rows.assign(late=make(labels)), labels, BINARY)
    assert list(found.leaks) == ["late"]
    assert "exclude=late" in found.warnings[0]
    assert found.findings()[0] == found.warnings[0]


def test_audit_suspects_no_column_when_all_are_honest() -> None:
    rows, labels = table()
    identifier = [f"customer {at}" for at in range(len(rows))]
    found = audit(rows.assign(id=identifier, number=np.arange(len(rows))), labels, BINARY)
    assert not found.leaks
    assert not found.useless


def test_audit_suspects_no_column_when_the_data_are_real() -> None:
    split = data.split(data.read("telco_churn"))
    found = audit(pd.DataFrame(split.train.rows), split.train.labels, split.task)
    assert not found.leaks
    assert not found.useless
    assert "26.5% of the train rows are 1" in found.imbalance


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_audit_names_a_leak_when_the_target_is_not_binary(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 800) if kind == "multiclass" else rng.normal(size=800) ** 3
    task = Task("multiclass", (0, 1, 2, 3)) if kind == "multiclass" else Task("regression")
    rows = pd.DataFrame({"late": labels * 10.0 + 3, "honest": labels + rng.normal(size=800) * 2})
    assert list(audit(rows, labels, task).leaks) == ["late"]


def test_suspicions_are_in_the_log_when_a_column_holds_the_target(caplog: pytest.LogCaptureFixture) -> None:
    rows, labels = table()
    assert suspicions(rows, labels, BINARY) == []
    found = suspicions(rows.assign(late=labels * 2.0), labels, BINARY)
    assert len(found) == 1
    assert "'late' predicts the target almost alone" in found[0]
    assert found[0] in caplog.text


def test_audit_names_columns_that_say_nothing_when_there_are_some() -> None:
    rows, labels = table()
    odd = rows.assign(same=3, none=np.nan, nothing=None, copy=rows["noise"], words=rows["town"], half=np.where(labels > 2, 1.0, np.nan))
    found = audit(odd.assign(seldom=np.where(np.arange(600) % 9 == 0, 4.0, np.nan)), labels, BINARY)
    assert found.constant == ("same",)
    assert set(found.empty) == {"none", "nothing", "half"}
    assert found.twins == {"copy": "noise", "words": "town"}
    assert "seldom" not in found.useless, "that a value is missing may say something"


def test_audit_counts_infinite_values_and_categories_when_there_are_many() -> None:
    rows, labels = table(2000)
    found = audit(
        rows.assign(big=np.where(labels > 0, rows["noise"], np.inf), code=[f"c{at % 1000}" for at in range(2000)]), labels, BINARY
    )
    assert found.infinite == {"big": int((labels == 0).sum())}
    assert found.many == {"code": 1000}
    text = " ".join(found.findings())
    assert "Infinite values in big" in text
    assert "code (1000)" in text


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0] * 50 + [1] * 50, False),
        ([0] * 95 + [1] * 5, True),
        ([0] * 40 + [1] * 40 + [2] * 20, False),
        ([0] * 60 + [1] * 35 + [2] * 5, True),
    ],
    ids=["equal", "one in twenty", "three nearly equal", "three unequal"],
)
def test_imbalance_names_the_rarest_class_when_the_classes_are_unequal(labels: list[int], named: bool) -> None:
    task = Task("binary" if max(labels) == 1 else "multiclass", tuple(sorted(set(labels))))
    assert bool(imbalance(np.array(labels), task)) == named
