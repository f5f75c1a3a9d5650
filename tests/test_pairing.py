from __future__ import annotations

import time

import numpy as np
import pytest

from mlflow_opt.measurement.own_metrics import OwnMetric
from mlflow_opt.measurement.pairing import compare_quality, parity
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.records import Task

BINARY = Task("binary", (0, 1))
REGRESSION = Task("regression")


def _pair(seed: int, rows: int, scrambled: float) -> tuple[Scored, Scored]:
    """Give a reference, and a candidate that answers this share of the rows at random: few rows, large losses."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.27).astype(int)
    latent = rng.standard_normal(rows) + 1.6 * labels - 1.3
    broken = np.where(rng.random(rows) < scrambled, 1.2 * rng.standard_normal(rows) - 0.9, latent)
    return _scored(labels, broken), _scored(labels, latent)


def _scored(labels: np.ndarray, latent: np.ndarray) -> Scored:
    chance = 1 / (1 + np.exp(-1.6 * latent))
    return score(BINARY, labels, np.column_stack([1 - chance, chance]))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "scrambled"), [(500, 0.05), (1500, 0.02)])
def test_drops_cover_when_losses_sit_in_few_rows(rows: int, scrambled: float) -> None:
    candidate, reference = _pair(10_000, 1_000_000, scrambled)
    truth = {name: reference.values[name] - candidate.values[name] for name in ("roc_auc", "accuracy", "f1", "average_precision")}
    truth["log_loss"] = candidate.values["log_loss"] - reference.values["log_loss"]
    tries = 150
    missed = dict.fromkeys(truth, 0)
    for seed in range(tries):
        found = compare_quality(*_pair(seed, rows, scrambled), seed=seed)
        for name, loss in truth.items():
            missed[name] += found[f"drop_{name}"].hi < loss
    # A percentile bootstrap misses 10 to 48% here; 2.5% is nominal, up to 5% is what so skewed a loss leaves, and chance adds 5%.
    assert max(missed.values()) / tries < 0.10, missed


@pytest.mark.parametrize("rows", [200, 1408, 10_000])
def test_drops_are_not_proven_absent_when_no_row_differs(rows: int) -> None:
    _, reference = _pair(0, rows, 0.0)
    found = compare_quality(reference, reference)
    for name in ("roc_auc", "accuracy", "f1", "log_loss", "average_precision", "precision_at_k"):
        quantity = found[f"drop_{name}"]
        assert quantity.value == 0
        assert quantity.hi > 0.5 / rows
        assert quantity.usable
    assert found["drop_accuracy"].hi == pytest.approx(3.84 / rows, rel=0.03)


def test_drops_are_resolvable_when_two_equal_models_meet_the_default_policy() -> None:
    _, reference = _pair(0, 1408, 0.0)
    found = compare_quality(reference, reference)
    assert found["drop_roc_auc"].hi < 0.01
    assert found["drop_accuracy"].hi < 0.01


def test_drops_are_positive_when_worse_whatever_the_direction() -> None:
    rng = np.random.default_rng(0)
    labels = rng.standard_normal(500) + 10
    good, bad = (score(REGRESSION, labels, labels + spread * rng.standard_normal(500)) for spread in (0.1, 0.3))
    found = compare_quality(bad, good)
    for name in ("r2", "mae", "rmse", "mape"):
        assert found[f"drop_{name}"].lo > 0, name
        assert found[f"rel_drop_{name}"].lo > 0, name
    back = compare_quality(good, bad)
    assert all(back[f"drop_{name}"].hi < 0 for name in ("r2", "mae", "rmse", "mape"))
    assert found["rel_drop_rmse"].value == pytest.approx(bad.values["rmse"] / good.values["rmse"] - 1)


def test_drops_are_resolvable_when_two_equal_regressions_meet_the_default_policy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.standard_normal(1000) + 10
    scored = score(REGRESSION, labels, labels + 0.1 * rng.standard_normal(1000))
    assert 0 < compare_quality(scored, scored)["rel_drop_rmse"].hi < 0.02


def test_compare_gives_every_metric_three_times_when_both_define_it() -> None:
    found = compare_quality(*_pair(1, 800, 0.05))
    names = {"roc_auc", "accuracy", "f1", "log_loss", "average_precision", "precision_at_k"}
    assert set(found) == {prefix + name for prefix in ("", "drop_", "rel_drop_") for name in names}
    assert all(quantity.usable for quantity in found.values())


def test_compare_is_repeatable_when_the_seed_is_the_same() -> None:
    pair = _pair(1, 500, 0.05)
    assert compare_quality(*pair, seed=3) == compare_quality(*pair, seed=3)


def test_compare_refuses_when_labels_differ() -> None:
    with pytest.raises(ValueError, match="on the same rows"):
        compare_quality(_pair(1, 500, 0.0)[0], _pair(2, 500, 0.0)[1])


def test_compare_bounds_a_users_own_metric_when_there_is_one() -> None:
    own = (OwnMetric("own_hits", lambda labels, scores: float(((scores[:, 1] > 0.5) == labels).mean())),)
    candidate, reference = _pair(3, 1000, 0.05)
    found = compare_quality(
        score(BINARY, candidate.labels, candidate.outputs, own), score(BINARY, reference.labels, reference.outputs, own)
    )
    assert found["drop_own_hits"].value == pytest.approx(found["drop_accuracy"].value)
    # The same quantity by the exact method and by calling the function on resamples.
    assert found["drop_own_hits"].hi == pytest.approx(found["drop_accuracy"].hi, abs=0.006)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "f1"])
def test_compare_leaves_an_interval_open_when_a_class_has_few_rows(name: str) -> None:
    labels = np.zeros(200, dtype=int)
    labels[:9] = 1
    chance = np.linspace(0.9, 0.1, 200)
    scored = score(BINARY, labels, np.column_stack([1 - chance, chance]))
    found = compare_quality(scored, scored)
    assert not found[name].usable
    assert not found[f"drop_{name}"].usable
    assert found["drop_accuracy"].usable


def test_compare_is_fast_when_there_are_ten_thousand_rows() -> None:
    pair = _pair(1, 10_000, 0.02)
    began = time.process_time()
    compare_quality(*pair)
    assert time.process_time() - began < 2.0


def test_parity_counts_flips_when_answers_differ() -> None:
    labels = np.array([0, 1, 1, 0])
    one = score(BINARY, labels, np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.8, 0.2]]))
    two = score(BINARY, labels, np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.5, 0.5]]))
    found = parity(two, one)
    assert (found["label_flips"].value, found["label_flips"].n) == (1.0, 4)
    assert found["max_abs_diff"].value == pytest.approx(0.3)


def test_parity_has_no_flips_when_the_task_is_a_regression() -> None:
    one = score(REGRESSION, np.arange(5.0), np.arange(5.0))
    assert set(parity(one, one)) == {"max_abs_diff"}


def test_scored_keeps_rows_aligned_when_a_slice_is_taken() -> None:
    candidate, _ = _pair(1, 400, 0.1)
    mask = np.arange(400) % 3 == 0
    part = candidate.rows(mask)
    assert part.values == score(BINARY, candidate.labels[mask], candidate.outputs[mask]).values
