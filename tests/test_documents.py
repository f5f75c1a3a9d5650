"""What commands answer to machines: one document on stdout whatever happens, numbers that JSON has words for, honest exit codes."""

from __future__ import annotations

import json
import math
import sys

import pytest

from mlflow_opt.commands._document import document, verdict_fields
from mlflow_opt.records import Criterion, Outcome, Quantity, Reason, Verdict

FAILED = Reason(Criterion("f1", "min", 0.8, "f1"), Quantity(math.nan, -math.inf, 0.5, 10), Outcome.FAIL, "too low")


def test_document_is_all_that_stdout_holds_when_others_print(capsys: pytest.CaptureFixture[str]) -> None:
    with document("gate", wanted=True) as answer:
        sys.stdout.write("MLflow prints a link\n")
        answer.update(verdict_fields(Verdict(Outcome.FAIL, (FAILED,))))
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (told["command"], told["outcome"], told["exit_code"]) == ("gate", "FAIL", 1)
    assert told["reasons"][0] | {"text": ""} == {
        "outcome": "FAIL",
        "text": "",
        "quantity": "f1",
        "side": "min",
        "bound": 0.8,
        "value": None,
        "lo": None,
        "hi": 0.5,
        "n": 10,
    }
    assert "a link" in shown.err


@pytest.mark.parametrize(("error", "code"), [(ValueError("no such model"), 3), (KeyboardInterrupt(), 130)], ids=["error", "interrupted"])
def test_document_tells_the_error_and_lets_it_pass_when_one_is_raised(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), document("promote", wanted=True):
        raise error
    assert json.loads(capsys.readouterr().out) == {"command": "promote", "exit_code": code, "error": str(error)}


def test_document_writes_nothing_when_nobody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with document("gate", wanted=False) as answer:
        answer["x"] = 1
    assert capsys.readouterr().out == ""
