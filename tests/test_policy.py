"""Policies: strict reading, digests over what decides, combining that never loosens, and text that comes back the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_opt.gate import judge
from mlflow_opt.policy import default_policy, load_yaml, make_policy, parse_policy, policy_text, read_policy, tighten
from mlflow_opt.records import Criterion, Measurement, Policy, Quantity

BOUNDS = st.floats(0, 1, allow_nan=False)


@st.composite
def criteria(draw: st.DrawFn) -> str:
    """Draw one criterion as a policy file has it."""
    bound = draw(BOUNDS)
    metric = draw(st.sampled_from(["f1", "accuracy", "rmse", "own_profit"]))
    kind = draw(st.sampled_from(["min", "max", "max_drop", "max_relative_drop", "min_improvement"]))
    where = draw(st.sampled_from(["", "id: two_year, slice: 'contract == \"Two year\"', ", "id: b-2, slice: 'age > 60', "]))
    cost = draw(st.sampled_from(["speedup", "latency_p99_ms", "size_mb", "label_flips", "drop_f1", "rel_drop_rmse"]))
    return draw(st.sampled_from([f"{{{where}metric: {metric}, {kind}: {bound!r}}}", f"{{metric: {cost}, max: {bound!r}}}"]))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    listed = draw(st.lists(criteria(), min_size=1, max_size=4))
    settings = draw(
        st.fixed_dictionaries(
            {
                "confidence": st.floats(0.51, 0.999),
                "expires_days": st.floats(0.5, 400),
                "promote": st.sampled_from(["manual", "auto"]),
                "mode": st.sampled_from(["enforce", "dry_run", "off"]),
                "hardware": st.sampled_from(["", "*Xeon*", "cpu=x; *"]),
                "verify_files": st.booleans(),
                "guards": st.sampled_from([("champion",), ("champion", "prod")]),
                "data_digest": st.sampled_from(["", "abc", "def"]),
                "trusted_keys": st.sampled_from([(), ("a",), ("a", "b"), ("c",)]),
                "trusted_experiments": st.sampled_from([(), ("1",), ("2", "1")]),
                "waivers": st.sampled_from([(), ("*",), ("ann", "bob")]),
            }
        )
    )
    seen: dict[tuple[str, str], Criterion] = {}
    for text in listed:
        for each in parse_policy(f"validation_criteria: [{text}]").criteria:
            seen.setdefault((each.quantity, each.side), each)
    return make_policy(seen.values(), **settings)


@given(policies())
def test_policy_comes_back_the_same_when_written_as_text(policy: Policy) -> None:
    again = parse_policy(policy_text(policy))
    assert again.digest == policy.digest
    assert replace(again, criteria=()) == replace(policy, criteria=())
    assert [(each.quantity, each.side, each.bound, each.slice_rows) for each in again.criteria] == [
        (each.quantity, each.side, each.bound, each.slice_rows) for each in policy.criteria
    ]


@given(policies(), policies(), st.dictionaries(st.sampled_from(["drop_f1", "speedup", "f1", "size_mb"]), BOUNDS))
def test_tightened_policy_passes_nothing_that_either_keeps_out_when_judged(ours: Policy, extra: Policy, values: dict[str, float]) -> None:
    try:
        both = tighten(ours, extra)
    except ValueError:
        # They cannot both hold, and then nothing passes.
        return
    measured = Measurement({name: Quantity(value, value - 0.01, value + 0.01, 500) for name, value in values.items()})
    if judge(measured, both).passed:
        assert judge(measured, ours).passed
        assert judge(measured, extra).passed
    assert (both.mode, both.promote, both.waivers) == (ours.mode, ours.promote, ours.waivers)
    for each in (ours, extra):
        assert each.hardware in ("", both.hardware)
        assert each.data_digest in ("", both.data_digest)
        for key in ("trusted_keys", "trusted_experiments"):
            allowed, now = getattr(each, key), getattr(both, key)
            assert not allowed or (now and set(now) <= set(allowed))
    assert both.expires_days <= min(ours.expires_days, extra.expires_days)
    assert both.confidence >= max(ours.confidence, extra.confidence)
    assert set(both.guards) == {*ours.guards, *extra.guards}
    assert parse_policy(policy_text(both)).digest == both.digest


@given(policies())
def test_tightening_changes_nothing_when_it_asks_for_the_same(policy: Policy) -> None:
    assert tighten(policy, policy) == policy


def test_tightening_is_refused_when_one_slice_id_means_two_things() -> None:
    one, other = (parse_policy(f"validation_criteria: [{{id: a, slice: 'x > {n}', metric: f1, min: 0.5}}]") for n in (1, 2))
    with pytest.raises(ValueError, match="slice id 'a' must mean the same rows"):
        tighten(one, other)


def test_digest_covers_criteria_and_confidence_and_no_more_when_a_policy_changes() -> None:
    text = "validation_criteria: [{metric: f1, max_drop: 0.01}, {metric: speedup, min: 1.1}]"
    digest = parse_policy(text).digest
    same = ["expires_days: 3", "mode: dry_run", "promote: auto", "guards: [prod]", 'hardware: "*x*"']
    assert {parse_policy(f"{text}\n{line}").digest for line in same} == {digest}
    assert parse_policy("validation_criteria: [{metric: speedup, min: 1.1}, {metric: f1, max_drop: 0.01}]").digest == digest
    other = [
        f"{text}\nconfidence: 0.9",
        text.replace("0.01", "0.02"),
        text.replace("f1", "accuracy"),
        text.replace("max_drop", "max_relative_drop"),
    ]
    assert digest not in {parse_policy(each).digest for each in other}


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("{metric: f1, max_drop: 0.01}", ("drop_f1", "max", 0.01)),
        ("{metric: rmse, max_relative_drop: 0.02}", ("rel_drop_rmse", "max", 0.02)),
        ("{metric: f1, min_improvement: 0.01}", ("drop_f1", "max", -0.01)),
        ("{metric: latency_p99_ms, max: 8}", ("latency_p99_ms", "max", 8.0)),
        ("{metric: own_profit, min: 100}", ("own_profit", "min", 100.0)),
        ("{id: b, slice: 'x > 1', metric: f1, max_drop: 0.03}", ("slice/b/drop_f1", "max", 0.03)),
    ],
)
def test_criterion_is_one_bound_on_one_quantity_when_read(criterion: str, expected: tuple[Any, ...]) -> None:
    (made,) = parse_policy(f"validation_criteria: [{criterion}]").criteria
    assert (made.quantity, made.side, made.bound) == expected


@pytest.mark.parametrize("written", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_bound_is_a_number_when_written_with_an_exponent(written: str) -> None:
    (made,) = parse_policy(f"validation_criteria: [{{metric: max_abs_diff, max: {written}}}]").criteria
    assert made.bound == 1e-5


BROKEN = {
    "no criteria": ("guards: [champion]", "validation_criteria must be a list"),
    "empty criteria": ("validation_criteria: []", "at least one criterion"),
    "unknown key": ("validation_criteria: [{metric: f1, min: 0}]\nconfidance: 0.9", "line 2.*did you mean 'confidence'"),
    "unknown metric": ("validation_criteria:\n  - {metric: latency_p9_ms, max: 1}", "line 2.*did you mean latency_p9"),
    "no bound": ("validation_criteria: [{metric: f1}]", "needs a bound"),
    "nan bound": ("validation_criteria: [{metric: f1, min: .nan}]", "finite number"),
    "infinite bound": ("validation_criteria: [{metric: f1, min: -.inf}]", "finite number"),
    "boolean bound": ("validation_criteria: [{metric: f1, min: true}]", "finite number"),
    "drop in points": ("validation_criteria: [{metric: f1, max_drop: 1.5}]", "0.01 means one point"),
    "drop of a cost": ("validation_criteria: [{metric: size_mb, max_drop: 0.1}]", "for quality metrics"),
    "two bounds": ("validation_criteria: [{metric: f1, min: 0.1}, {metric: f1, min: 0.2}]", "two min bounds"),
    "key written twice": ("validation_criteria: [{metric: f1, min: 0.1}]\nmode: enforce\nmode: off", "line 3.*written twice"),
    "slice without an id": ("validation_criteria: [{slice: x > 1, metric: f1, min: 0.1}]", "needs an id"),
    "confidence of one": ("validation_criteria: [{metric: f1, min: 0.1}]\nconfidence: 1", "between 0.5 and 1"),
    "unknown mode": ("validation_criteria: [{metric: f1, min: 0.1}]\nmode: maybe", "mode must be one of"),
    "no guards": ("validation_criteria: [{metric: f1, min: 0.1}]\nguards: []", "guards must be a list"),
    "not YAML": ("validation_criteria: [", "not valid YAML"),
    "no mapping": ("[]", "must be a mapping"),
    "empty": ("", "must be a mapping"),
    "code": ("!!python/object/apply:os.system ['true']", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_policy_is_refused_with_key_and_line_when(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)here.yaml: .*{said}"):
        parse_policy(text, "here.yaml")


def test_bare_off_is_the_word_when_yaml_reads_it_as_false() -> None:
    assert parse_policy("validation_criteria: [{metric: f1, min: 0.1}]\nmode: off").mode == "off"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_default_policy_asks_for_speed_and_bounded_loss_when_nobody_gives_one(task: str) -> None:
    speed, loss = default_policy(task).criteria
    assert (speed.quantity, speed.side) == ("speedup", "min")
    assert loss.quantity.startswith(("drop_", "rel_drop_"))


def test_default_policy_is_refused_when_the_task_is_unknown() -> None:
    with pytest.raises(ValueError, match="ranking"):
        default_policy("ranking")


def test_policy_file_is_named_when_it_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml.*mlflow-opt init"):
        read_policy(tmp_path / "nowhere.yaml")


def test_yaml_knows_its_lines_when_loaded() -> None:
    assert load_yaml("a: 1\nb:\n  c: 2").lines == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trusted_keys: []", "leave the key out to trust any"),
        ("trusted_keys: key", "must be a list"),
        ("trusted_keys: [true]", "must be a list"),
        ("trusted_keys: ['']", "must be a list"),
        ("trusted_experiments: [1.5]", "must be a list"),
        ("waivers: 3", "false, true or a list of users"),
        ("waivers: [3]", "false, true or a list of users"),
        ("data_digest: 3", "must be text"),
        ("waiver: true", "did you mean 'waivers'"),
    ],
)
def test_policy_is_refused_when_what_it_trusts_is_unclear(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_policy("validation_criteria: [{metric: f1, min: 0.5}]\n" + text)


@pytest.mark.parametrize(
    ("text", "users"), [("", ()), ("waivers: false", ()), ("waivers: []", ()), ("waivers: true", ("*",)), ("waivers: [ann]", ("ann",))]
)
def test_waivers_are_forbidden_when_the_policy_does_not_allow_them(text: str, users: tuple[str, ...]) -> None:
    assert parse_policy("validation_criteria: [{metric: f1, min: 0.5}]\n" + text).waivers == users
