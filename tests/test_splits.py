from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.data import Dataset, Split, n_rows, read, split, take
from mlflow_opt.rows import batches, splits


def _dataset(rows: Any, labels: np.ndarray, parts: np.ndarray | None = None) -> Dataset:
    return Dataset("made", rows, labels, "target", "made", parts, "")


def _table(rows: int = 2_000, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"a": random.normal(size=rows), "b": random.integers(0, 2**40, rows).astype(str)})
    return _dataset(table, random.choice(["x", "y", "z"], rows, p=[0.6, 0.35, 0.05]).astype(object))


def _parts(parts: Split) -> list[Any]:
    return [parts.train, parts.calibration, parts.selection, parts.gate]


def _keys(rows: Any) -> set[int]:
    return set(batches.row_hashes(rows).tolist())


def test_split_has_its_shares_in_every_class_when_stratified() -> None:
    parts = split(_table())
    for name in ("x", "y", "z"):
        counts = np.array([(part.labels == name).sum() for part in _parts(parts)])
        assert np.abs(counts - counts.sum() * np.array([0.60, 0.05, 0.15, 0.20])).max() <= 1.5
    assert sum(n_rows(part.rows) for part in _parts(parts)) == 2_000


def test_split_is_the_same_when_rows_and_columns_are_shuffled() -> None:
    data = _table()
    order = np.random.default_rng(1).permutation(2_000)
    assert isinstance(data.rows, pd.DataFrame)
    shuffled = dataclasses.replace(data, rows=data.rows.iloc[order][["b", "a"]].reset_index(drop=True), labels=data.labels[order])
    one, two = split(data), split(shuffled)
    assert one.digest == two.digest
    assert (one.train.labels == two.train.labels).all()
    assert isinstance(one.gate.rows, pd.DataFrame)
    assert isinstance(two.gate.rows, pd.DataFrame)
    pd.testing.assert_frame_equal(one.gate.rows, two.gate.rows[["a", "b"]])


def test_split_never_changes_when_versions_do() -> None:
    # Written down once: another digest would orphan every registered version's evidence.
    assert split(read("telco_churn")).digest == "3dc89f10aacd5b07fe693701fdf4ed2e"
    assert split(read("fashion_mnist")).digest == "ca85376e0af4be7690341f3085f47956"


def test_split_keeps_duplicates_together_when_labels_conflict() -> None:
    data = _table(3_000)
    index = np.random.default_rng(2).integers(0, 1_000, 3_000)
    labels = np.random.default_rng(3).choice(["x", "y"], 3_000).astype(object)
    parts = split(_dataset(take(data.rows, index), labels))
    keys = [_keys(part.rows) for part in _parts(parts)]
    assert sum(map(len, keys)) == len(set.union(*keys)) > 900
    assert abs(len(parts.gate.labels) - 600) < 60


@pytest.mark.parametrize("kind", ["table", "arrays"])
def test_split_respects_parts_when_the_data_say_them(kind: str) -> None:
    data = _table()
    rows = data.rows if kind == "table" else {"x": np.random.default_rng(0).normal(size=(2_000, 3))}
    given = np.repeat(["test", "train"], [300, 1_700])
    parts = split(_dataset(rows, data.labels, given))
    assert _keys(parts.gate.rows) == _keys(take(rows, slice(0, 300)))
    shares = np.array([n_rows(part.rows) for part in _parts(parts)[:3]]) / 1_700
    assert np.allclose(shares, [0.73, 0.07, 0.20], atol=0.003)


def test_split_gives_a_random_sample_first_when_the_file_is_sorted() -> None:
    data = _table()
    order = np.argsort(data.labels, kind="stable")
    parts = split(_dataset(take(data.rows, order), data.labels[order]))
    assert set(parts.gate.labels[:60]) == {"x", "y", "z"}


def test_split_gives_every_part_two_rows_when_a_class_is_rare() -> None:
    labels = np.repeat(["often", "rare"], [990, 10]).astype(object)
    parts = split(_dataset(_table(1_000).rows, labels))
    assert [int((part.labels == "rare").sum()) for part in _parts(parts)] == [4, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        (240, np.arange(240) % 2, "at least 50 rows to decide anything, got 48"),
        (1_000, (np.arange(1_000) > 996).astype(int), "at least 2 rows of each class, got .* of class 1 in"),
        (1_000, np.ones(1_000, dtype=int), "two different values"),
    ],
    ids=["few rows", "rare class", "one class"],
)
def test_split_refuses_when_parts_would_be_too_small(rows: int, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split(_dataset(_table(rows).rows, labels))


def test_split_refuses_when_rows_are_all_equal() -> None:
    with pytest.raises(ValueError, match="distinct rows"):
        split(_dataset(pd.DataFrame({"a": np.ones(1_000)}), np.arange(1_000) % 2))


def test_split_ignores_labels_in_the_assignment_when_a_regression() -> None:
    data = _table()
    values = np.random.default_rng(0).normal(size=2_000)
    one, two = split(_dataset(data.rows, values)), split(_dataset(data.rows, values + 1))
    assert _keys(one.gate.rows) == _keys(two.gate.rows)
    assert one.digest != two.digest
    assert n_rows(one.gate.rows) == 400


def test_row_hashes_are_equal_when_rows_are() -> None:
    floats = pd.DataFrame({"n": [1.0, 0.0, np.nan], "t": ["a", "b", None]})
    others = pd.DataFrame({"t": pd.Categorical(["a", "b", None]), "n": pd.array([1, 0, None], dtype="Int64")})
    assert (batches.row_hashes(floats) == batches.row_hashes(others)).all()
    negative = floats.assign(n=[1.0, -0.0, np.nan])
    assert (batches.row_hashes(floats) == batches.row_hashes(negative)).all()
    moments = pd.DataFrame({"m": [pd.Timestamp("2024-01-01"), pd.NaT]})
    in_utc = pd.DataFrame({"m": moments["m"].dt.as_unit("ns").dt.tz_localize("UTC")})
    assert (batches.row_hashes(moments) == batches.row_hashes(in_utc)).all()


def test_row_hashes_differ_when_values_swap_columns() -> None:
    one, two = pd.DataFrame({"a": [1.0], "b": [2.0]}), pd.DataFrame({"a": [2.0], "b": [1.0]})
    assert batches.row_hashes(one)[0] != batches.row_hashes(two)[0]
    arrays = {"a": np.zeros((2, 2)), "b": np.ones((2, 2))}
    assert batches.row_hashes(arrays)[0] != batches.row_hashes({"a": arrays["b"], "b": arrays["a"]})[0]


def test_content_digest_changes_when_one_label_does(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.arange(10.0), "target": [0, 1] * 5})
    table.to_csv(tmp_path / "t.csv", index=False)
    before = read(str(tmp_path / "t.csv")).digest
    table.assign(target=[1, 1] + [0, 1] * 4).to_csv(tmp_path / "t.csv", index=False)
    assert read(str(tmp_path / "t.csv")).digest != before
    assert len(before) <= 36, "MLflow's limit"


def test_assign_never_moves_others_when_strata_are_added() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 1_000).astype(np.uint64)
    alone = splits.assign(hashes[:600], np.zeros(600, dtype=int), splits.SHARES)
    both = splits.assign(hashes, np.repeat([0, 1], [600, 400]), splits.SHARES)
    assert (alone == both[:600]).all()
    assert splits.assign(hashes[:0], np.zeros(0, dtype=int), splits.SHARES).tolist() == []
