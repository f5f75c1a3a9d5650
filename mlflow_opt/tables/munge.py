"""More rows of a table, near the real ones: what a student can ask its teacher about beyond the rows that there are.

Source: Bucila, Caruana and Niculescu-Mizil, "Model compression", 2006 (the method MUNGE). Fakoor et al., "Fast, accurate, and
simple models for tabular data via augmented distillation", 2020, draw such rows by Gibbs sampling from a density model that
must be trained first; this needs none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

# Neighbours are looked for among so many rows, and for so many columns of one text column's values.
MOST_REFERENCES, MOST_VALUES = 10_000, 20
# The paper takes the nearest neighbour and repeats; one of several near ones gives as many different rows in one pass.
NEIGHBOURS = 5


def munge(rows: pd.DataFrame, times: int, *, swap: float = 0.3, spread: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Make new rows by mixing each row with one of its nearest neighbours, column by column.

    Helps a student that has fewer rows than its teacher has opinions. Does not help where columns depend on each other
    exactly (a total and its parts): a mixed row breaks that, and the teacher is asked about rows that cannot be.

    A text is taken from the neighbour with the probability `swap`; a number is then drawn around the neighbour's value with
    the distance of the two as standard deviation, within the column's range, whole where the column is.

    Example:
        >>> made = munge(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "x", "y"]}), 2)
        >>> len(made), sorted(set(made["b"]))
        (6, ['x', 'y'])

    Args:
        rows: a table, missing values allowed.
        times: new rows for each row.
        swap: probability that a column takes part, in [0, 1].
        spread: the standard deviation is the distance divided by this.
        seed: of every draw.

    Returns:
        `times` tables of new rows below each other, types as in `rows`.
    """
    if times < 1 or len(rows) < 2:
        return rows.iloc[:0]
    rng = np.random.default_rng(seed)
    near = _neighbours(rows, rng)
    made = []
    for _ in range(times):
        other = near[np.arange(len(rows)), rng.integers(0, near.shape[1], len(rows))]
        made.append(pd.DataFrame({name: _mixed(rows[name], rows[name].iloc[other], swap, spread, rng) for name in rows}))
    return pd.concat(made, ignore_index=True)


def _mixed(own: pd.Series[Any], other: pd.Series[Any], swap: float, spread: float, rng: np.random.Generator) -> pd.Series[Any]:
    own, other = own.reset_index(drop=True), other.reset_index(drop=True)
    chosen = rng.random(len(own)) < swap
    noise = rng.normal(size=len(own))
    if not _is_number(own):
        return own.where(~chosen, other)
    mine, theirs = own.to_numpy(dtype=float, na_value=np.nan), other.to_numpy(dtype=float, na_value=np.nan)
    with np.errstate(invalid="ignore"):
        drawn = theirs + noise * np.abs(mine - theirs) / spread
    # Where one of the two is missing or infinite there is no distance: the neighbour's value is taken as it is.
    drawn = np.where(np.isnan(drawn), theirs, drawn)
    finite = mine[np.isfinite(mine)]
    if len(finite):
        drawn = np.clip(drawn, finite.min(), finite.max())
    if own.dtype.kind in "iu" or (len(finite) and np.array_equal(finite, np.round(finite))):
        drawn = np.round(drawn)
    return pd.Series(np.where(chosen, drawn, mine)).astype(own.dtype)


def _neighbours(rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Give for each row the places of its nearest rows, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    places = _places(rows)
    chosen = np.sort(rng.choice(len(rows), min(MOST_REFERENCES, len(rows)), replace=False))
    count = min(NEIGHBOURS + 1, len(chosen))
    found = chosen[NearestNeighbors(n_neighbors=count).fit(places[chosen]).kneighbors(places, return_distance=False)]
    # A row that is a reference is its own nearest; else the farthest of those found is left out.
    own = found[:, :1] == np.arange(len(rows))[:, None]
    return np.asarray(np.where(own, found[:, 1:], found[:, :-1]))


def _places(rows: pd.DataFrame) -> np.ndarray:
    """Place rows in a space where distances mean something: numbers by their spread, texts by being the same or not."""
    columns = []
    for name in rows:
        if _is_number(rows[name]):
            values = rows[name].to_numpy(dtype=float, na_value=np.nan)
            values = np.where(np.isfinite(values), values, np.nan)
            known = values[~np.isnan(values)]
            middle, scale = (float(np.median(known)), float(known.std())) if len(known) else (0.0, 0.0)
            columns.append((np.nan_to_num(values, nan=middle) - middle) / (scale or 1.0))
        else:
            texts = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
            # Two different values lie a distance of 1 apart.
            columns += [(texts == value).to_numpy(dtype=float) / np.sqrt(2) for value in texts.value_counts().index[:MOST_VALUES]]
    return np.column_stack(columns)


def _is_number(values: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
