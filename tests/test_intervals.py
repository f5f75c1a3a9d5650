from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_opt.measurement.intervals import (
    Sample,
    careful_interval,
    clopper_pearson,
    look_levels,
    median_log_sd,
    paired_share_difference,
    spend,
    t_interval,
)
from mlflow_opt.measurement.sequential import plan_looks

LEVELS = st.floats(0.6, 0.999)


def _share_outside(missed: np.ndarray, nominal: float) -> bool:
    """Tell whether a simulated error is above its nominal share by more than chance (4 standard errors)."""
    return float(missed.mean()) > nominal + 4 * math.sqrt(nominal * (1 - nominal) / len(missed))


@pytest.mark.parametrize("sessions", [3, 5, 10, 15])
@pytest.mark.parametrize("noise", ["normal", "student", "contaminated"])
def test_t_interval_covers_when_sessions_are_few(sessions: int, noise: str) -> None:
    rng = np.random.default_rng(sessions)
    shape = (4000, sessions)
    drawn = {
        "normal": lambda: rng.standard_normal(shape),
        "student": lambda: rng.standard_t(3, shape),
        "contaminated": lambda: rng.standard_normal(shape) * np.where(rng.random(shape) < 0.15, 6, 1),
    }[noise]()
    ends = np.array([t_interval(values, 0.95)[1:] for values in drawn])
    assert not _share_outside(ends[:, 0] > 0, 0.025)
    assert not _share_outside(ends[:, 1] < 0, 0.025)


def test_t_interval_is_needed_when_a_percentile_bootstrap_undercovers() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1500, 5))
    means = np.array([values[rng.integers(5, size=(400, 5))].mean(1) for values in drawn])
    lo, hi = np.quantile(means, [0.025, 0.975], axis=1)
    covered = ((lo <= 0) & (hi >= 0)).mean()
    assert 0.78 < covered < 0.89


def test_t_interval_does_not_collapse_when_sessions_agree_by_luck() -> None:
    _, lo, hi = t_interval([0.1, 0.1, 0.1], 0.95, within_sd=0.02)
    assert hi - lo == pytest.approx(2 * 4.3027 * 0.02 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("values", [[0.1], [], [0.1, math.nan], [0.1, math.inf]], ids=["one", "none", "nan", "infinite"])
def test_t_interval_refuses_when_values_are_unfit(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 finite"):
        t_interval(values, 0.95)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), LEVELS, LEVELS)
def test_t_interval_widens_when_the_level_rises(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    mean, lo, hi = t_interval(values, low)
    _, lower, higher = t_interval(values, high)
    assert lower <= lo + 1e-12
    assert lo - 1e-12 <= mean <= hi + 1e-12
    assert higher >= hi - 1e-12


def test_median_log_sd_matches_when_simulated() -> None:
    rng = np.random.default_rng(0)
    samples = np.exp(0.1 * rng.standard_normal((2000, 101)))
    truth = np.log(np.median(samples, axis=1)).std()
    assert np.mean([median_log_sd(sample) for sample in samples]) == pytest.approx(truth, rel=0.15)


@given(st.integers(0, 60), st.integers(1, 60), LEVELS)
def test_clopper_pearson_equals_scipy_when_compared(successes: int, extra: int, level: float) -> None:
    trials = successes + extra
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert clopper_pearson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_clopper_pearson_knows_nothing_when_nothing_was_tried() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("planned", [3, 5, 8, 12, 16, 24])
def test_looks_keep_the_level_when_every_look_could_stop(planned: int) -> None:
    rng = np.random.default_rng(planned)
    looks, tries = plan_looks(planned), 20_000
    drawn = rng.standard_normal((tries, planned))
    above, below = np.zeros(tries, dtype=bool), np.zeros(tries, dtype=bool)
    for index, count in enumerate(looks):
        seen = looks[: index + 1]
        level = look_levels(seen, [look / planned for look in seen], 0.95)[-1]
        head = drawn[:, :count]
        half = stats.t.ppf((1 + level) / 2, count - 1) * head.std(1, ddof=1) / math.sqrt(count)
        above |= head.mean(1) - half > 0
        below |= head.mean(1) + half < 0
    assert not _share_outside(above, 0.025)
    assert not _share_outside(below, 0.025)
    # Nor may the error be left unspent: that would cost power.
    assert above.mean() > 0.018


def test_looks_would_break_the_level_when_peeking() -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, 24))
    peeked = np.zeros(20_000, dtype=bool)
    for count in plan_looks(24):
        head = drawn[:, :count]
        peeked |= head.mean(1) - stats.t.ppf(0.975, count - 1) * head.std(1, ddof=1) / math.sqrt(count) > 0
    assert peeked.mean() > 0.06


def test_looks_spend_what_is_left_when_the_budget_ends_early() -> None:
    early = look_levels([4, 6], [4 / 24, 1.0], 0.95)
    late = look_levels([4, 6], [4 / 24, 6 / 24], 0.95)
    assert early[0] == late[0]
    assert early[1] < late[1]


def test_look_levels_are_plain_when_there_is_one_look() -> None:
    assert look_levels([7], [1.0], 0.9) == pytest.approx([0.9])


def test_look_levels_refuse_when_a_look_brings_nothing_new() -> None:
    with pytest.raises(ValueError, match="new sessions"):
        look_levels([4, 4], [0.2, 1.0], 0.95)


@pytest.mark.parametrize("kept", [0.9, 0.95, 0.99])
def test_looks_keep_the_level_when_time_runs_out_right_after_one(kept: float) -> None:
    drawn = np.random.default_rng(1).standard_normal((40_000, 4))
    half = drawn.std(1, ddof=1) / 2
    first = look_levels([4], [4 / 24], kept)[0]
    missed = drawn.mean(1) - stats.t.ppf((1 + first) / 2, 3) * half > 0
    missed |= drawn.mean(1) - stats.t.ppf((1 + kept) / 2, 3) * half > 0
    assert not _share_outside(missed, (1 - kept) / 2)


@given(st.floats(0, 1), st.floats(0, 1))
def test_spend_rises_when_more_is_in(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= spend(low, 0.05) <= spend(high, 0.05) <= 0.05 + 1e-12


@pytest.mark.parametrize(("lost", "won", "rows"), [(0, 0, 100), (0, 0, 5000), (3, 0, 400), (0, 7, 90), (12, 5, 1000), (5, 0, 5)])
def test_paired_difference_solves_the_score_equation_when_inverted(lost: int, won: int, rows: int) -> None:
    lo, hi = paired_share_difference(lost, won, rows)
    value = (lost - won) / rows
    assert lo <= value <= hi
    for end in (lo, hi):
        if abs(end) == 1:
            continue
        # The restricted maximum-likelihood share by brute force instead of Tango's closed form.
        shares = np.linspace(max(0.0, -end) + 1e-9, min(1.0, 1 - end, (1 - end) / 2 + 1e-9), 400_001)
        agree = np.maximum(1 - 2 * shares - end, 1e-300)
        likelihood = lost * np.log(shares + end + 1e-300) + won * np.log(shares + 1e-300) + (rows - lost - won) * np.log(agree)
        best = shares[int(np.argmax(likelihood))]
        score = (lost - won - rows * end) / math.sqrt(rows * (2 * best + end - end**2))
        assert abs(score) == pytest.approx(1.96, abs=0.02)


@pytest.mark.parametrize("rows", [10, 1000, 100_000])
def test_paired_difference_is_not_zero_when_no_row_differs(rows: int) -> None:
    z = 1.959964
    assert paired_share_difference(0, 0, rows)[1] == pytest.approx(z * z / (rows + z * z), rel=1e-6)


@pytest.mark.parametrize(("shares", "rows"), [((0.02, 0.01), 600), ((0.012, 0.002), 1500), ((0.004, 0.004), 1000)])
def test_paired_difference_covers_when_the_loss_is_at_the_margin(shares: tuple[float, float], rows: int) -> None:
    rng = np.random.default_rng(rows)
    drawn = rng.multinomial(rows, [*shares, 1 - sum(shares)], size=3000)
    cells, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    ends = np.repeat([paired_share_difference(int(lost), int(won), rows) for lost, won in cells], counts, axis=0)
    truth = shares[0] - shares[1]
    assert (ends[:, 1] < truth).mean() < 0.035
    assert (ends[:, 0] > truth).mean() < 0.045


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 500), LEVELS, LEVELS)
@settings(max_examples=60)
def test_paired_difference_widens_when_the_level_rises(lost: int, won: int, rest: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    narrow, wide = (paired_share_difference(lost, won, lost + won + rest, level) for level in (low, high))
    assert wide[0] <= narrow[0] + 1e-9
    assert wide[1] >= narrow[1] - 1e-9


def test_paired_difference_rises_when_one_more_row_is_lost() -> None:
    ends = [paired_share_difference(lost, 4, 500)[1] for lost in range(30)]
    assert np.all(np.diff(ends) > 0)


@pytest.mark.parametrize("losses", [0, 1, 2, 3, 5, 10, 30, 100])
def test_careful_interval_follows_poisson_when_losses_are_equal(losses: int) -> None:
    rows = 5000
    influence = np.repeat([1.0, 0.0], [losses, rows - losses]) - losses / rows
    draws = np.random.default_rng(0).poisson(losses, 40_000) / rows
    _, hi = careful_interval(losses / rows, Sample(draws, influence, np.ones(1), rows))
    exact = stats.chi2.ppf(0.975, 2 * losses + 2) / 2
    assert hi * rows == pytest.approx(exact, rel=0.15)
    assert hi * rows > exact * 0.99


@given(st.floats(-1, 1), st.integers(20, 400), LEVELS, LEVELS)
@settings(max_examples=60, deadline=None)
def test_careful_interval_widens_when_the_level_rises(value: float, rows: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    rng = np.random.default_rng(rows)
    influence = rng.exponential(size=rows) - 1
    sample = Sample(value + rng.standard_normal(500) / math.sqrt(rows), influence, np.ones(1), rows)
    narrow, wide = careful_interval(value, sample, low), careful_interval(value, sample, high)
    assert wide[0] <= narrow[0]
    assert wide[1] >= narrow[1]


def test_careful_interval_is_a_point_when_nothing_can_vary() -> None:
    assert careful_interval(0.5, Sample(np.full(10, 0.5), np.zeros(9), np.zeros(1), 9)) == (0.5, 0.5)
