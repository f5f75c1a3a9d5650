"""The server answers as `mlflow models serve` answers: status, numbers bit for bit, and the words of every error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mlflow_opt.serving.app import Application
from mlflow_opt.serving.operators import operator_types, uncertain_operators
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.tables import Column, TableReader
from tests.serving_models import MIXED, NUMBERS, Pair, answered_by, client, mixed, numbers, serving_models, split, with_application

__all__ = ["serving_models"]

ROW = [0.5, -1.25, 1e-7, 3.0]
GOOD_MIXED = [44.5, 1.5, 3, "plus"]


def _split(columns: list[Any], *rows: list[Any], **more: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": list(rows), **more}}


# Requests for models on the four numbers -> whether the fast path takes them.
TABLES: dict[str, tuple[Any, bool]] = {
    "split": (_split(NUMBERS, ROW), True),
    "split_of_many": (json.loads(split(numbers(40, seed=1))), True),
    "split_with_index": (_split(NUMBERS, ROW, ROW, index=[7, 7]), True),
    "split_in_another_order": (_split(NUMBERS[::-1], ROW, [1, 2, 3, 4]), True),
    "split_with_extra_columns": (_split(["id", *NUMBERS, "note"], [7, *ROW, {"deep": [1]}]), True),
    "records": ({"dataframe_records": [dict(zip(NUMBERS, ROW, strict=True))] * 3}, True),
    "records_with_extra_keys": ({"dataframe_records": [{"id": "x", **dict(zip(NUMBERS, ROW, strict=True))}]}, True),
    "instances": ({"instances": [dict(zip(NUMBERS, ROW, strict=True))] * 2}, True),
    "inputs": ({"inputs": {name: [1.5, 2, None] for name in NUMBERS}}, True),
    "integers_for_doubles": (_split(NUMBERS, [1, 2, 3, 4], [2**53 + 1, 2**63, -(2**60), 0]), True),
    "missing_values": (_split(NUMBERS, [None, 1, None, 2.5], [None, None, None, None]), True),
    "huge_numbers": (_split(NUMBERS, [1e308, -1e308, 5e-324, -0.0]), True),
    "index_of_another_length": (_split(NUMBERS, ROW, index=[1, 2]), False),
    "missing_column": (_split(NUMBERS[:3], ROW[:3]), False),
    "missing_and_extra_column": (_split([*NUMBERS[:3], "e"], ROW), False),
    "record_without_a_key": ({"dataframe_records": [dict(zip(NUMBERS, ROW, strict=True)), {"a": 1.0}]}, False),
    "text_for_a_number": (_split(NUMBERS, ["abc", 1, 2, 3]), False),
    "number_as_text": (_split(NUMBERS, ["1.5", 1, 2, 3]), False),
    "boolean_for_a_number": (_split(NUMBERS, [True, 1, 2, 3]), False),
    "list_in_a_cell": (_split(NUMBERS, [[1], 1, 2, 3]), False),
    "short_row": (_split(NUMBERS, ROW, ROW[:2]), False),
    "column_twice": (_split([*NUMBERS, "a"], [*ROW, 9.0]), False),
    "no_columns": ({"dataframe_split": {"data": [ROW]}}, False),
    "unknown_part": (_split(NUMBERS, ROW, more=1), False),
    "no_rows": (_split(NUMBERS), False),
    "no_records": ({"dataframe_records": []}, False),
    "records_as_an_object": ({"dataframe_records": {"a": 1}}, False),
    "instances_as_lists": ({"instances": [ROW]}, False),
    "inputs_of_other_lengths": ({"inputs": {"a": [1.0], "b": [1.0, 2.0], "c": [1.0], "d": [1.0]}}, False),
    "two_formats": ({**_split(NUMBERS, ROW), "instances": []}, False),
    "params": ({**_split(NUMBERS, ROW), "params": {"x": 1}}, False),
    "no_format": ({"rows": [ROW]}, False),
    "a_list": ([ROW], False),
    "a_number": (3, False),
}

# For the model on numbers, whole numbers and text.
MIXED_TABLES: dict[str, tuple[Any, bool]] = {
    "split": (_split(MIXED, GOOD_MIXED), True),
    "split_of_many": (json.loads(split(mixed(60, seed=2))), True),
    "missing_values": (_split(MIXED, [None, None, 0, None]), True),
    "unknown_text": (_split(MIXED, [40, 1, 2, "gold"], [40, 1, 2, ""]), True),
    "records": ({"dataframe_records": [dict(zip(MIXED, GOOD_MIXED, strict=True))] * 2}, True),
    "instances": ({"instances": [dict(zip(MIXED, GOOD_MIXED, strict=True))] * 2}, True),
    "inputs": ({"inputs": {name: [value] * 3 for name, value in zip(MIXED, GOOD_MIXED, strict=True)}}, True),
    "float_for_a_whole_number": (_split(MIXED, [44.5, 1.5, 3.5, "plus"]), False),
    "missing_whole_number": (_split(MIXED, [44.5, 1.5, None, "plus"]), False),
    "whole_number_beyond_doubles": (_split(MIXED, [44.5, 1.5, 2**53 + 1, "plus"]), False),
    "number_for_text": (_split(MIXED, [44.5, 1.5, 3, 7]), False),
    "missing_text_in_instances": ({"instances": [dict(zip(MIXED, [44.5, 1.5, 3, None], strict=True))]}, False),
    "missing_text_in_inputs": ({"inputs": {"age": [1.0], "income": [1.0], "visits": [1], "plan": [None]}}, False),
}

_X = [0.25 * value for value in range(12)]
# For the network with a tensor signature.
TENSORS: dict[str, tuple[Any, bool]] = {
    "inputs": ({"inputs": [_X]}, True),
    "instances": ({"instances": [_X, _X[::-1]]}, True),
    "integers": ({"inputs": [list(range(12))]}, True),
    "missing_value": ({"inputs": [[*_X[:11], None]]}, True),
    "numbers_as_text": ({"inputs": [[str(value) for value in _X]]}, True),
    "another_width": ({"inputs": [_X[:5]]}, False),
    "ragged": ({"inputs": [_X, _X[:5]]}, False),
    "a_vector": ({"inputs": _X}, False),
    "text": ({"inputs": [["a"] * 12]}, False),
    "a_table": ({"dataframe_split": {"data": [_X]}}, False),
    "no_rows": ({"inputs": []}, False),
    "an_object": ({"inputs": {"x": [_X]}}, False),
}

CASES = [
    *(("booster", name, *case) for name, case in TABLES.items()),
    *(("classifier", name, *TABLES[name]) for name in ("split_of_many", "missing_values", "missing_column")),
    *(("trees_variant", name, *case) for name, case in TABLES.items()),
    *(("mixed_variant", name, *case) for name, case in MIXED_TABLES.items()),
    *(("network_variant", name, *case) for name, case in TENSORS.items()),
    *(("pipeline", name, case[0], False) for name, case in MIXED_TABLES.items()),
]


@pytest.fixture(scope="module")
def pairs(serving_models: Mapping[str, Path]) -> Mapping[str, Pair]:
    return {name: Pair(folder, Settings(watch_s=0)) for name, folder in serving_models.items()}


@pytest.mark.parametrize("name", ["booster", "classifier", "trees_variant", "mixed_variant", "network_variant", "pipeline"])
def test_server_answers_as_mlflow_when_asked_the_same(pairs: Mapping[str, Pair], name: str) -> None:
    pair, asked = pairs[name], [case for case in CASES if case[0] == name]

    async def compare() -> None:
        await pair.application.start()
        for _, label, payload, fast in asked:
            before = answered_by(pair.application).get("fast", 0)
            ours, theirs = await pair.both(json.dumps(payload).encode())
            assert ours.status_code == theirs.status_code, (label, ours.text, theirs.text)
            assert ours.headers["content-type"] == theirs.headers["content-type"], label
            assert _loaded(ours.text) == _loaded(theirs.text), label
            assert answered_by(pair.application).get("fast", 0) - before == int(fast), f"{label}: fast path"
        await pair.application.stop()

    asyncio.run(compare())
    assert len(asked) >= 3


def _loaded(text: str) -> Any:
    # NaN is equal to itself here; an error's stack trace names lines of files and says nothing of the contract.
    said = json.loads(text, parse_constant=str)
    return {key: value for key, value in said.items() if key != "stack_trace"} if isinstance(said, dict) else said


RAW: dict[str, tuple[bytes, str]] = {
    "csv": (numbers(5).to_csv(index=False).encode(), "text/csv"),
    "csv_with_charset": (numbers(5).to_csv(index=False).encode(), "text/csv; charset=utf-8"),
    "csv_that_is_none": (b'a,b\n"1', "text/csv"),
    "json_with_charset": (split(numbers(3)), "application/json; charset=utf-8"),
    "another_charset": (split(numbers(3)), "application/json; charset=latin-1"),
    "another_parameter": (split(numbers(3)), "application/json; format=pandas-split"),
    "another_type": (b"<a/>", "application/xml"),
    "cut_off": (b'{"dataframe_split": {"columns": ["a"', "application/json"),
    "empty": (b"", "application/json"),
    "not_utf8": (b'{"\xff": 1}', "application/json"),
    "not_a_number": (b'{"dataframe_split": {"columns": ["a","b","c","d"], "data": [[NaN, 1, Infinity, 2]]}}', "application/json"),
    "key_twice": (b'{"instances": 1, "instances": [{"a":1,"b":2,"c":3,"d":4}]}', "application/json"),
    "endless_number": (b'{"dataframe_split": {"columns": ["a","b","c","d"], "data": [[1e999, 1, 1, 2]]}}', "application/json"),
    "many_digits": (
        b'{"instances": [{"a": 0.1000000000000000055511151231257827, "b": 123456789012345678901234, "c": 1, "d": 2}]}',
        "application/json",
    ),
}


@pytest.mark.parametrize("name", ["booster", "trees_variant"])
def test_server_answers_as_mlflow_when_the_body_is_odd(pairs: Mapping[str, Pair], name: str) -> None:
    pair = pairs[name]

    async def compare() -> None:
        await pair.application.start()
        for label, (body, content_type) in RAW.items():
            ours, theirs = await pair.both(body, content_type)
            assert ours.status_code == theirs.status_code, (label, ours.text, theirs.text)
            same = _loaded(ours.text) == _loaded(theirs.text) if ours.text[:1] == "{" else ours.text == theirs.text
            assert same, label
        await pair.application.stop()

    asyncio.run(compare())


def test_server_says_what_is_missing_when_a_column_is(pairs: Mapping[str, Pair]) -> None:
    pair = pairs["trees_variant"]

    async def ask() -> str:
        await pair.application.start()
        ours, _ = await pair.both(json.dumps(TABLES["missing_column"][0]).encode())
        await pair.application.stop()
        assert ours.status_code == 400
        return str(ours.json()["message"])

    assert "Model is missing inputs ['d']" in asyncio.run(ask())


def test_reader_reads_only_the_rows_when_it_knows_the_opening() -> None:
    reader, row = TableReader([Column(name, "double") for name in NUMBERS]), [0.5, 1, 2.0, None]
    shuffled = dict(zip(NUMBERS[::-1], row[::-1], strict=True))
    for table in (
        {"columns": NUMBERS, "data": [row]},
        {"columns": list(shuffled), "data": [list(shuffled.values())]},
        {"index": [3], "columns": NUMBERS, "data": [row]},
    ):
        body = json.dumps({"dataframe_split": table}).encode()
        found = [reader.read_body(body) for _ in range(3)]
        assert [[list(one) for one in rows or []] for rows in found] == [[row]] * 3
        # A list, a foreign type, too short a row: as before, only MLflow can say what they mean.
        for old, new in ((b"0.5", b"[1]"), (b"0.5", b"true"), (b"2.0, ", b""), (b"]]}}", b"]], 1}}"), (b"]]}}", b"]], [1]}}")):
            assert reader.read_body(body.replace(old, new)) is None, (old, new)
    two = json.dumps({"dataframe_split": {"index": [3], "columns": NUMBERS, "data": [row, row]}}).encode()
    assert reader.read_body(two) is None


def test_reader_stays_bounded_when_openings_never_repeat() -> None:
    wide = [f"column_{number}" for number in range(2000)]
    reader, row = TableReader([Column(name, "double") for name in wide]), [0.5] * 2000
    for number in range(400):
        body = json.dumps({"dataframe_split": {"index": [number], "columns": wide, "data": [row]}}).encode()
        assert reader.read_body(body) == [row]
        unlike = {"columns": [*wide, f"more_{number}" * 2000], "data": [[*row, 1]]}
        assert reader.read_body(json.dumps({"dataframe_split": unlike}).encode()) == [tuple(row)]
    assert 0 < sum(map(len, reader._openings)) <= 4_000_000
    assert 0 < sum(len("".join(names)) for names in reader._layouts) <= 4_000_000


def test_server_joins_all_the_same_when_batching_is_always(serving_models: Mapping[str, Path]) -> None:
    async def ask(application: Application) -> None:
        bodies = [split(numbers(1, seed=seed)) for seed in range(40)]
        headers = {"content-type": "application/json"}
        asked = (client(application).post("/invocations", content=body, headers=headers) for body in bodies)
        answers = [answer.json()["predictions"][0] for answer in await asyncio.gather(*asked)]
        model = mlflow.pyfunc.load_model(str(serving_models["trees_variant"]))
        wanted = [float(model.predict(numbers(1, seed=seed))[0]) for seed in range(40)]
        np.testing.assert_allclose(answers, wanted, rtol=1e-12)
        sizes = {sample.name: sample.value for metric in application.telemetry.batch_rows.collect() for sample in metric.samples}
        assert sizes["mlflow_opt_batch_rows_count"] < 40

    with_application(serving_models["trees_variant"], ask, batching="always")


@pytest.mark.parametrize(
    ("name", "uncertain"),
    [("trees_variant", {"Sigmoid"}), ("network_variant", {"Gemm", "Softmax"}), ("mixed_variant", set())],
    ids=["trees", "network", "pipeline"],
)
def test_operators_are_named_when_a_batch_may_change_their_last_bits(
    serving_models: Mapping[str, Path], name: str, uncertain: set[str]
) -> None:
    import onnx

    path = serving_models[name] / "artifacts" / "model.onnx"
    assert operator_types(path.read_bytes()) == {node.op_type for node in onnx.load(path).graph.node}
    assert set(uncertain_operators(path)) >= uncertain
    with pytest.raises(ValueError, match="must be a protocol buffer"):
        operator_types(path.read_bytes()[:-3])


def test_server_refuses_as_the_variant_does_when_a_text_was_never_seen(serving_models: Mapping[str, Path]) -> None:
    pair = Pair(serving_models["strict_variant"], Settings())
    seen, strange = mixed(3), mixed(3).assign(plan="gold")

    async def ask() -> None:
        await pair.application.start()
        good, _ = await pair.both(split(seen))
        bad, wanted = await pair.both(split(strange))
        assert (good.status_code, bad.status_code) == (200, wanted.status_code) == (200, 400)
        assert bad.json()["message"] == wanted.json()["message"]
        assert answered_by(pair.application)["fast"] == 1
        await pair.application.stop()

    asyncio.run(ask())
