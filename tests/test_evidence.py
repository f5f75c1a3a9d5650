"""Evidence goes onto a run and comes back the same, and what is incomplete never comes back as if it were whole."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_opt.gate import judge
from mlflow_opt.records import Binding, Criterion, Measurement, Outcome, Policy, Quantity
from mlflow_opt.verdicts.evidence import PASSED, PREFIX, from_metrics, from_tags, to_metrics, to_tags

FINITE = st.floats(-1e9, 1e9, allow_nan=False)
NAMES = st.sampled_from(["speedup", "drop_f1", "latency_p99_ms", "slice/two_year/drop_f1", "rel_drop_rmse"])
QUANTITIES = st.builds(Quantity, FINITE, FINITE, FINITE, st.integers(0, 10**9))
BINDING = Binding("m-1", "files", "rows", "split", "policy", "m-0", "cpu=x", "binary", 1_700_000_000_000)


def policy_on(names: list[str]) -> Policy:
    return Policy(tuple(Criterion(name, "min", 0.5, name) for name in names))


@given(st.dictionaries(NAMES, QUANTITIES, min_size=1))
def test_metrics_come_back_the_same_when_written_and_read(quantities: dict[str, Quantity]) -> None:
    policy, measured = policy_on(list(quantities)), Measurement(quantities)
    metrics = to_metrics(measured, policy, judge(measured, policy))
    assert dict(from_metrics(metrics, {}).quantities) == quantities
    assert judge(from_metrics(metrics, {}), policy).outcome is judge(measured, policy).outcome


@given(st.dictionaries(NAMES, QUANTITIES, min_size=1), st.sampled_from(["", "_lo", "_hi", "_n"]))
def test_quantity_is_left_out_when_one_of_its_parts_is_missing(quantities: dict[str, Quantity], part: str) -> None:
    policy, measured = policy_on(list(quantities)), Measurement(quantities)
    metrics = to_metrics(measured, policy, judge(measured, policy))
    name = next(iter(quantities))
    del metrics[f"gate_{name}{part}"]
    assert name not in from_metrics(metrics, {}).quantities
    assert not judge(from_metrics(metrics, {}), policy).passed


@pytest.mark.parametrize("n", [math.nan, math.inf, -1.0, 0.0], ids=str)
def test_quantity_is_not_usable_when_its_count_is_none(n: float) -> None:
    metrics = {"gate_speedup": 2.0, "gate_speedup_lo": 2.0, "gate_speedup_hi": 2.0, "gate_speedup_n": n}
    assert not from_metrics(metrics, {}).quantities["speedup"].usable


def test_unmeasured_quantity_is_no_metric_when_written() -> None:
    policy = policy_on(["speedup"])
    assert to_metrics(Measurement({}), policy, judge(Measurement({}), policy)) == {PASSED: 0.0, "gate_speedup_min": 0.5}


def test_tags_come_back_the_same_when_written_and_read() -> None:
    tags = to_tags(BINDING, Outcome.PASS, "noisy")
    assert from_tags(tags) == BINDING
    read = from_metrics({}, tags)
    assert (read.doubt, read.reference, read.fingerprint, read.data_digest) == ("noisy", "m-0", "cpu=x", "rows")


@pytest.mark.parametrize(
    "name", ["model_id", "model_digest", "data_digest", "split_digest", "policy_digest", "fingerprint", "task", "measured_at"]
)
def test_binding_is_refused_when_a_part_is_missing_or_empty(name: str) -> None:
    tags = to_tags(BINDING, Outcome.PASS)
    for broken in ({**tags, PREFIX + name: ""}, {key: value for key, value in tags.items() if key != PREFIX + name}):
        with pytest.raises(ValueError, match=name):
            from_tags(broken)


@pytest.mark.parametrize("when", ["yesterday", "-5", "1e12", "1.5"])
def test_binding_is_refused_when_its_time_is_no_number(when: str) -> None:
    with pytest.raises(ValueError, match="measured_at"):
        from_tags({**to_tags(BINDING, Outcome.PASS), PREFIX + "measured_at": when})
