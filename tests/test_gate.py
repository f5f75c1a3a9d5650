"""The gate's one rule, by example and by property: nothing that gets worse or less certain ever helps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_opt.gate import P99_SAMPLES, judge, worst
from mlflow_opt.records import Criterion, Measurement, Outcome, Policy, Quantity

ORDER = {Outcome.FAIL: 0, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 2}
VALUES = st.floats(-1e6, 1e6, allow_nan=False)
WIDTHS = st.floats(0, 1e6, allow_nan=False)
SIDES: st.SearchStrategy[Literal["min", "max"]] = st.sampled_from(["min", "max"])
NAMES = ("speedup", "drop_f1", "latency_p50_ms")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Policy, dict[str, Quantity]]:
    """Draw a policy of one to three criteria and quantities for them."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    criteria = tuple(Criterion(name, draw(SIDES), draw(VALUES), name) for name in names)
    measured = {}
    for name in names:
        value = draw(VALUES)
        measured[name] = Quantity(value, value - draw(WIDTHS), value + draw(WIDTHS), draw(st.integers(1, 10_000)))
    return Policy(criteria), measured


def outcome(policy: Policy, measured: dict[str, Quantity], doubt: str = "") -> int:
    return ORDER[judge(Measurement(measured, doubt=doubt), policy).outcome]


@given(cases(), st.floats(0, 1e6, allow_nan=False))
def test_judge_never_turns_better_when_a_value_gets_worse(case: tuple[Policy, dict[str, Quantity]], step: float) -> None:
    policy, measured = case
    for criterion in policy.criteria:
        shift = -step if criterion.side == "min" else step
        old = measured[criterion.quantity]
        worse = replace(old, value=old.value + shift, lo=old.lo + shift, hi=old.hi + shift)
        assert outcome(policy, measured | {criterion.quantity: worse}) <= outcome(policy, measured)


@given(cases(), WIDTHS, WIDTHS)
def test_judge_never_turns_to_pass_when_an_interval_gets_wider(
    case: tuple[Policy, dict[str, Quantity]], below: float, above: float
) -> None:
    policy, measured = case
    for name, old in measured.items():
        wider = replace(old, lo=old.lo - below, hi=old.hi + above)
        if outcome(policy, measured | {name: wider}) == ORDER[Outcome.PASS]:
            assert outcome(policy, measured) == ORDER[Outcome.PASS]


@given(cases(), st.floats(0, 1, allow_nan=False))
def test_judge_never_passes_when_a_bound_gets_stricter_and_it_did_not_before(case: tuple[Policy, dict[str, Quantity]], step: float) -> None:
    policy, measured = case
    stricter = tuple(replace(each, bound=each.bound + (step if each.side == "min" else -step)) for each in policy.criteria)
    assert outcome(Policy(stricter), measured) <= outcome(policy, measured)


@given(cases(), st.sampled_from(NAMES))
def test_judge_never_passes_when_a_quantity_is_missing(case: tuple[Policy, dict[str, Quantity]], name: str) -> None:
    policy, measured = case
    left = {key: value for key, value in measured.items() if key != name}
    if len(left) < len(measured):
        assert not judge(Measurement(left), policy).passed


@given(cases())
def test_judge_never_passes_when_the_machine_is_in_doubt(case: tuple[Policy, dict[str, Quantity]]) -> None:
    policy, measured = case
    assert outcome(policy, measured, doubt="noisy") <= ORDER[Outcome.INCONCLUSIVE]


@given(
    st.lists(st.one_of(VALUES, st.sampled_from([math.nan, math.inf, -math.inf, 1.7976931348623157e308, -1e308])), min_size=3, max_size=3),
    st.integers(-5, 10_000),
    SIDES,
)
def test_judge_passes_only_usable_quantities_when_anything_may_come(parts: list[float], n: int, side: Literal["min", "max"]) -> None:
    criterion = Criterion("speedup", side, 0.0, "speedup")
    quantity = Quantity(parts[0], parts[1], parts[2], n)
    verdict = judge(Measurement({"speedup": quantity}), Policy((criterion,)))
    if verdict.passed:
        assert all(map(math.isfinite, parts))
        assert max(map(abs, parts)) < 1e308
        assert parts[1] <= parts[0] <= parts[2]
        assert n > 0
        assert parts[1] >= 0 if side == "min" else parts[2] <= 0


@given(cases())
def test_judge_gives_one_reason_per_criterion_and_the_worst_of_them_when_it_decides(case: tuple[Policy, dict[str, Quantity]]) -> None:
    policy, measured = case
    verdict = judge(Measurement(measured), policy)
    assert [reason.criterion for reason in verdict.reasons] == list(policy.criteria)
    assert ORDER[verdict.outcome] == min(ORDER[reason.outcome] for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("side", "lo", "hi", "expected"),
    [
        ("min", 1.2, 1.4, Outcome.PASS),
        ("min", 1.19, 1.4, Outcome.INCONCLUSIVE),
        ("min", 1.0, 1.19, Outcome.FAIL),
        ("max", 1.0, 1.2, Outcome.PASS),
        ("max", 1.0, 1.21, Outcome.INCONCLUSIVE),
        ("max", 1.21, 1.4, Outcome.FAIL),
    ],
)
def test_judge_looks_at_the_unfavourable_end_when_it_compares(side: str, lo: float, hi: float, expected: Outcome) -> None:
    criterion = Criterion("speedup", "min" if side == "min" else "max", 1.2, "speedup")
    assert judge(Measurement({"speedup": Quantity((lo + hi) / 2, lo, hi, 100)}), Policy((criterion,))).outcome is expected


def test_judge_is_inconclusive_when_the_policy_is_empty() -> None:
    assert judge(Measurement({}), Policy(())).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("n", "expected"), [(P99_SAMPLES - 1, Outcome.INCONCLUSIVE), (P99_SAMPLES, Outcome.PASS)])
def test_judge_asks_for_samples_when_a_p99_is_bounded(n: int, expected: Outcome) -> None:
    policy = Policy((Criterion("latency_p99_ms", "max", 8.0, "latency_p99_ms"),))
    assert judge(Measurement({"latency_p99_ms": Quantity(5, 4, 6, n)}), policy).outcome is expected


def test_worst_proves_nothing_when_there_is_no_reason() -> None:
    assert worst(()) is Outcome.INCONCLUSIVE
