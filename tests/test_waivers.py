"""What a waiver covers, for how long, and what it can never cover."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest

from mlflow_opt.gate import judge, undecided
from mlflow_opt.policy import parse_policy
from mlflow_opt.records import Measurement, Outcome, Quantity, Verdict
from mlflow_opt.verdicts.waivers import LONGEST_DAYS, Waiver, apply, check, in_force, named_quantity, read_waiver

POLICY = parse_policy("validation_criteria: [{metric: speedup, min: 1.2}, {metric: f1, max_drop: 0.01}, {metric: f1, min: 0.8}]")
GOOD = {"speedup": Quantity(2, 1.9, 2.1, 500), "drop_f1": Quantity(0, -0.001, 0.001, 500), "f1": Quantity(0.9, 0.88, 0.92, 500)}
WORSE = Quantity(0.05, 0.04, 0.06, 500)
DAY_MS = 86_400_000


def day(ahead: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + ahead * 86_400))


def waiver(metric: str = "drop_f1", until: str = "") -> Waiver:
    return Waiver(metric, "ann", "known since March", until or day(7), "champion", "ann")


def verdict(**changed: Quantity | None) -> Verdict:
    quantities = {name: each for name, each in (GOOD | changed).items() if each is not None}
    return judge(Measurement(quantities), POLICY)


@pytest.mark.parametrize("value", [WORSE, Quantity(0.01, 0.0, 0.02, 500)], ids=["fails", "undecided"])
def test_criterion_is_waived_when_it_was_measured_and_missed(value: Quantity) -> None:
    marked, used = apply(verdict(drop_f1=value), [waiver(), waiver("speedup")])
    assert marked.passed
    assert [each.metric for each in used] == ["drop_f1"]
    assert any("WAIVED until" in reason.text and "ann" in reason.text and "known since March" in reason.text for reason in marked.reasons)


@pytest.mark.parametrize(
    "value",
    [None, Quantity(math.nan, math.nan, math.nan, 500), Quantity(math.inf, math.inf, math.inf, 500), Quantity(0, 0, 0, 0)],
    ids=["missing", "nan", "infinite", "no samples"],
)
def test_criterion_is_not_waived_when_nobody_knows_its_value(value: Quantity | None) -> None:
    before = verdict(drop_f1=value)
    assert apply(before, [waiver()]) == (before, ())


def test_other_criteria_stand_when_one_is_waived() -> None:
    marked, used = apply(verdict(drop_f1=WORSE, speedup=Quantity(1.2, 1.1, 1.3, 500)), [waiver()])
    assert marked.outcome is Outcome.INCONCLUSIVE
    assert len(used) == 1


def test_doubt_about_the_evidence_stands_when_every_criterion_is_waived() -> None:
    failed = verdict(drop_f1=WORSE)
    doubted = Verdict(Outcome.INCONCLUSIVE, (undecided("the evidence is of another model."), *failed.reasons))
    assert apply(doubted, [waiver(), waiver("speedup"), waiver("f1")])[0].outcome is Outcome.INCONCLUSIVE


def test_waiver_is_in_force_when_neither_expired_nor_granted_by_a_stranger() -> None:
    now = int(time.time() * 1000)
    today, gone = waiver(until=day(0)), waiver(until=day(-1))
    stranger = replace(today, granted_by="bob")
    assert in_force([today, gone, stranger], ("ann",), now) == [today]
    assert in_force([today, gone, stranger], ("*",), now) == [today, stranger]
    assert in_force([today], (), now) == []


@pytest.mark.parametrize("ahead", [-1, LONGEST_DAYS + 2], ids=["past", "too far"])
def test_waiver_is_refused_when_its_last_day_is(ahead: int) -> None:
    with pytest.raises(ValueError, match="until must be a day from today"):
        check(waiver(until=day(ahead)), int(time.time() * 1000))


def test_waiver_holds_to_the_end_of_its_last_day() -> None:
    given = Waiver("f1", "ann", "x", "2026-12-31", "champion")
    assert given.expires_ms == 1_798_761_600_000
    check(given, given.expires_ms - 1)
    with pytest.raises(ValueError, match="until"):
        check(given, given.expires_ms)


@pytest.mark.parametrize("missing", ["metric", "owner", "reason", "until", "alias"])
def test_waiver_is_refused_when_nobody_answers_for_it(missing: str) -> None:
    whole = json.loads(waiver().to_json())
    for value in ("", "  ", None, 3):
        with pytest.raises(ValueError, match=missing):
            read_waiver(json.dumps(whole | {missing: value}))


def test_waiver_names_nobody_as_its_granter_when_a_client_says_so() -> None:
    assert read_waiver(json.dumps(json.loads(waiver().to_json()) | {"granted_by": "admin"})).granted_by == ""


@pytest.mark.parametrize(("text", "said"), [("[]", "must say"), ("no json", "must be JSON"), ("3", "must say")])
def test_waiver_is_refused_when_its_text_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_waiver(text)


def test_waiver_is_refused_when_its_date_is_none() -> None:
    with pytest.raises(ValueError, match="2026-12-31"):
        read_waiver(waiver(until="soon").to_json())


@pytest.mark.parametrize(("metric", "said"), [("f1", "means drop_f1 and f1"), ("accuracy", "names no criterion")])
def test_criterion_must_be_named_when_a_metric_is_not_enough(metric: str, said: str) -> None:
    criteria = [each for each in POLICY.criteria if metric != "f1" or each.quantity != "f1"]
    if metric == "f1":
        criteria = [*parse_policy("validation_criteria: [{metric: f1, max_drop: 0.1}, {metric: f1, max_relative_drop: 0.1}]").criteria]
        said = "means drop_f1 and rel_drop_f1"
    with pytest.raises(ValueError, match=said):
        named_quantity(metric, criteria)
