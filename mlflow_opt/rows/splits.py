"""Assign rows to the parts of a split by their content alone, stratified, with equal rows together.

No seed enters: what was a gate row stays one in every later run on the same data, whatever that run's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

TRAIN, CALIBRATION, SELECTION, GATE = "train", "calibration", "selection", "gate"
PARTS = (TRAIN, CALIBRATION, SELECTION, GATE)

# Without a `split` column; the rest trains.
SHARES: Mapping[str, float] = {GATE: 0.20, SELECTION: 0.15, CALIBRATION: 0.05}
# With one: its test rows are the gate, and these are shares of its train rows.
TRAIN_SHARES: Mapping[str, float] = {SELECTION: 0.20, CALIBRATION: 0.07}

# A quality that is measured on fewer rows than this decides nothing.
GATE_ROWS = 50
# Of each class in each part: one row cannot rank, and a class that a part lacks breaks its metrics.
CLASS_ROWS = 2


def assign(hashes: np.ndarray, strata: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """Name the part of every row: within each stratum the rows are ranked by hash and cut at the shares.

    Rows with equal hashes share a part even if their strata differ (they then count to the lowest one). A stratum
    gets at least `CLASS_ROWS` rows in every part where its number of rows allows it.

    Example:
        >>> parts = assign(np.arange(100, dtype=np.uint64), np.zeros(100, dtype=int), {"gate": 0.2})
        >>> (parts == "gate").sum(), (parts == "train").sum()
        (np.int64(20), np.int64(80))

    Args:
        hashes: one uint64 per row.
        strata: one class index per row, zeros for a regression.
        shares: part -> share of the rows, each in (0, 1); what they leave over is `train`.

    Returns:
        One part name per row.

    """
    if len(hashes) == 0:
        return np.empty(0, dtype="<U11")
    _, first, group, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    owner = np.full(len(first), strata.max())
    np.minimum.at(owner, group, strata)
    order = np.argsort(owner, kind="stable")
    bounds = _bounds(np.bincount(owner, weights=sizes), shares)
    middle = np.empty(len(first))
    middle[order] = _middles(owner[order], sizes[order])
    chosen = (middle[:, None] >= bounds[owner]).sum(axis=1)
    named: np.ndarray = np.array([*shares, TRAIN])[chosen][group]
    return named


def _bounds(rows: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    quotas = [np.maximum(np.round(share * rows), CLASS_ROWS) for share in shares.values()]
    return np.cumsum(np.stack(quotas, axis=1), axis=1, dtype=np.float64)


def _middles(owner: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    # A group of equal rows goes where its middle row would, so a large one does not always land in the first part.
    ends = np.cumsum(sizes)
    starts = ends - sizes
    is_first = np.append(True, owner[1:] != owner[:-1])
    base = np.maximum.accumulate(np.where(is_first, starts, 0))
    middles: np.ndarray = starts - base + sizes / 2
    return middles


def check_sizes(parts: np.ndarray, strata: np.ndarray, classes: Sequence[object]) -> None:
    """Refuse a split whose parts are too small to train, calibrate, select or decide with.

    Args:
        parts: one part name per row.
        strata: one class index per row, zeros for a regression.
        classes: the class labels, empty for a regression.

    Raises:
        ValueError: if the gate has fewer than `GATE_ROWS` rows or a part has fewer than `CLASS_ROWS` rows of a class.

    """
    gate = int((parts == GATE).sum())
    if gate < GATE_ROWS:
        raise ValueError(
            f"the gate needs at least {GATE_ROWS} rows to decide anything, got {gate} of {len(parts)} rows;"
            f" give at least {round(GATE_ROWS / SHARES[GATE])} distinct rows, or {GATE_ROWS} rows with split == 'test'."
        )
    for part in PARTS:
        counts = np.bincount(strata[parts == part], minlength=max(len(classes), 1))
        if counts.min() >= CLASS_ROWS:
            continue
        lacking = f"{counts.min()} of class {classes[int(counts.argmin())]!r}" if classes else str(counts.min())
        raise ValueError(
            f"every part of the split needs at least {CLASS_ROWS} rows{' of each class' if classes else ''}, got {lacking} in {part!r};"
            f" give more distinct rows (at least {5 * CLASS_ROWS} of each class; equal rows share a part), or merge rare classes."
        )
