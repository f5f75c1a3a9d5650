from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mlflow_opt.tables.thresholds import best_threshold, f1_at


def sample(rows: int, seed: int, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(rows) < share
    return positive, 1 / (1 + np.exp(-(1.5 * positive - 2.2 + rng.normal(size=rows))))


def test_f1_at_is_scikit_learns_when_compared() -> None:
    positive, scores = sample(300, 0)
    for threshold in (0.1, 0.3, 0.5, 0.99):
        assert f1_at(positive, scores, threshold) == pytest.approx(f1_score(positive, scores >= threshold, zero_division=0))


def test_best_threshold_is_better_on_fresh_rows_than_one_half_when_classes_are_unequal() -> None:
    gains = []
    for seed in range(10):
        threshold = best_threshold(*sample(400, seed))
        fresh = sample(20_000, 1000 + seed)
        gains.append(f1_at(*fresh, threshold) - f1_at(*fresh, 0.5))
    assert min(gains) > 0.05


def test_best_threshold_is_near_the_best_there_is_when_rows_are_many() -> None:
    positive, scores = sample(5000, 0)
    best = max(f1_at(positive, scores, threshold) for threshold in np.linspace(0.01, 0.99, 99))
    assert f1_at(positive, scores, best_threshold(positive, scores)) > best - 0.005


@pytest.mark.parametrize("scores", [np.full(50, 0.3), np.where(np.arange(50) % 2, 0.3, 0.6)], ids=["one score", "two scores"])
def test_best_threshold_cuts_between_scores_when_many_are_equal(scores: np.ndarray) -> None:
    positive = np.arange(50) % 5 == 0
    threshold = best_threshold(positive, scores)
    assert np.isfinite(threshold)
    assert threshold not in scores


@pytest.mark.parametrize("positive", [np.zeros(9, dtype=bool), np.ones(9, dtype=bool)], ids=["none", "all"])
def test_best_threshold_refuses_when_there_is_one_class(positive: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rows of both classes"):
        best_threshold(positive, np.linspace(0, 1, 9))
