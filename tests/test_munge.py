from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.tables.munge import munge


@pytest.fixture
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = np.concatenate([rng.normal(0, 1, 100), rng.normal(50, 1, 100)])
    return pd.DataFrame(
        {
            "number": np.where(rng.random(200) < 0.1, np.nan, number),
            "count": np.repeat([3, 90], 100) + rng.integers(0, 3, 200),
            "text": pd.Series(np.repeat(["low", "high"], 100)).mask(rng.random(200) < 0.1),
            "flag": np.repeat([False, True], 100),
            "kind": pd.Categorical(np.repeat(["a", "b"], 100)),
            "empty": np.nan,
        }
    )


def test_munge_keeps_types_and_ranges_when_columns_are_of_every_kind(rows: pd.DataFrame) -> None:
    made = munge(rows, 3)
    assert len(made) == 600
    assert made.dtypes.to_dict() == rows.dtypes.to_dict()
    assert made["number"].min() >= rows["number"].min()
    assert made["count"].max() <= rows["count"].max()
    assert set(made["text"].dropna()) == {"low", "high"}
    assert made["empty"].isna().all()


def test_munge_stays_near_when_rows_lie_in_two_groups(rows: pd.DataFrame) -> None:
    made = munge(rows, 2, swap=1.0)
    low = ~made["flag"].to_numpy()
    assert made.loc[low, "count"].max() < 20
    assert made.loc[~low, "number"].min() > 40
    assert (made["number"].round(6).isin(rows["number"].round(6)).mean()) < 0.5, "numbers are drawn, not copied"


def test_munge_changes_nothing_when_no_column_takes_part(rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(munge(rows, 1, swap=0.0), rows)


def test_munge_repeats_itself_when_the_seed_is_the_same(rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(munge(rows, 2, seed=4), munge(rows, 2, seed=4))
    assert not munge(rows, 2, seed=4).equals(munge(rows, 2, seed=5))


def test_munge_makes_no_rows_when_none_are_wanted_or_there_is_no_neighbour(rows: pd.DataFrame) -> None:
    assert len(munge(rows, 0)) == 0
    assert len(munge(rows.head(1), 5)) == 0
    assert len(munge(rows.head(2), 5)) == 10


def test_munge_takes_infinite_values_when_a_column_has_them(rows: pd.DataFrame) -> None:
    made = munge(rows.assign(count=np.where(rows["flag"], np.inf, rows["count"])), 1)
    assert np.isfinite(made["count"]).any()
