from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_opt.declaration.docstring import read_docstring
from mlflow_opt.declaration.entries import read_source
from mlflow_opt.declaration.manual import manual
from mlflow_opt.declaration.parameter import make_parameter, to_text
from mlflow_opt.records import Outcome, Verdict
from mlflow_opt.signature import COULD_NOT_RUN, INTERRUPTED, execute, logged_params, parse, read, run

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def shrink(
    *,
    model: str = "",
    share: float = 0.5,
    trials: int = 3,
    mode: Literal["fast", "slow"] = "fast",
    bits: Literal[4, 8] = 8,
    strict: bool = False,
) -> Verdict | None:
    """Shrink it.

    Helps on large ones.

    Args:
        model: MLflow model URI,
            or a path: any.
        share: of what is kept, in (0, 1).
        trials: how many.
        mode: how.
        bits: of a weight.
        strict: return the verdict.
    """
    if trials == 0:
        raise ValueError("trials must be at least 1, got 0; leave it out.")
    if mode == "slow":
        raise KeyboardInterrupt
    if bits == 4:
        raise ZeroDivisionError("a bug")
    return Verdict(Outcome(model), ()) if model else None


def judge_it(*, outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]) -> Verdict:
    """Judge it.

    Args:
        outcome: what to answer.
    """
    return Verdict(Outcome(outcome), ())


def test_read_gives_every_parameter_when_signature_is_well_formed() -> None:
    signature = read(shrink)
    assert signature.names == ("model", "share", "trials", "mode", "bits", "strict")
    assert [item.default for item in signature.parameters] == ["", 0.5, 3, "fast", 8, False]
    assert signature.parameters[0].doc == "MLflow model URI, or a path: any."
    assert (signature.summary, signature.details) == ("Shrink it.", "Helps on large ones.")


def _positional(share: float = 0.5) -> None:
    """S.

    Args:
        share: x.
    """


def _unannotated(*, share=0.5) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """S.

    Args:
        share: x.
    """


def _none(*, share: float | None = None) -> None:
    """S.

    Args:
        share: x.
    """


def _many(**share: float) -> None:
    """S.

    Args:
        share: x.
    """


def _listed(*, share: list[int] = []) -> None:  # noqa: B006
    """S.

    Args:
        share: x.
    """


def _mistyped(*, share: int = "x") -> None:  # type: ignore[assignment]
    """S.

    Args:
        share: x.
    """


def _outside(*, share: Literal["a"] = "b") -> None:  # type: ignore[assignment]
    """S.

    Args:
        share: x.
    """


def _undocumented(*, share: float = 0.5) -> None:
    """S."""


def _stale(*, share: float = 0.5) -> None:
    """S.

    Args:
        share: x.
        gone: y.
    """


def _silent(*, share: float = 0.5) -> None:
    pass


@pytest.mark.parametrize(
    "function", [_positional, _unannotated, _none, _many, _listed, _mistyped, _outside, _undocumented, _stale, _silent]
)
def test_read_refuses_when_function_is_no_recipe(function: Callable[..., Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="must"):
        read(function)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--share", "0.25"], {"share": 0.25}),
        (["--share=0.25", "--bits=4"], {"share": 0.25, "bits": 4}),
        (["--model", ""], {"model": ""}),
        (["--model="], {"model": ""}),
        (["--model", "--odd"], {"model": "--odd"}),
        (["--model=--share"], {"model": "--share"}),
        (["--model", "a=b c"], {"model": "a=b c"}),
        (["--trials", "-1"], {"trials": -1}),
        (["--strict", "True"], {"strict": True}),
        (["--share", "1e-3"], {"share": 0.001}),
        (["--share", "1"], {"share": 1.0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parse_reads_values_when_flags_are_exact(argv: list[str], expected: dict[str, Any]) -> None:
    defaults = {"model": "", "share": 0.5, "trials": 3, "mode": "fast", "bits": 8, "strict": False}
    values = parse(read(shrink), argv)
    assert values == defaults | expected
    assert {name: type(value) for name, value in values.items()} == {name: type(value) for name, value in defaults.items()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--x", "3"], "got '--x'"),
        (["--shar", "1"], "did you mean 'share'"),
        (["--time-x", "1"], "It takes --model"),
        (["share", "1"], "got 'share'"),
        (["-share", "1"], "got '-share'"),
        (["--"], "got '--'"),
        (["--share"], "must be followed by a value, got nothing"),
        (["--strict", "--share", "1"], "must be followed by a value, got --share"),
        (["--strict", "--share=1"], "must be followed by a value, got --share=1"),
        (["--share", "1", "--share", "1"], "got it twice"),
        (["--share", "half"], "share must be a finite number, got 'half'; for example --share 0.5"),
        (["--share", "nan"], "a finite number"),
        (["--share", "inf"], "a finite number"),
        (["--share", "1_0"], "a finite number"),
        (["--share", ""], "a finite number"),
        (["--trials", "3.0"], "a whole number"),
        (["--trials", "1_000"], "a whole number"),
        (["--trials", "٣"], "a whole number"),
        (["--strict", "yes"], "true or false"),
        (["--strict", "1"], "true or false"),
        (["--mode", "fats"], "one of fast, slow, got 'fats'; did you mean 'fast'"),
        (["--mode", ""], "one of fast, slow"),
        (["--bits", "16"], "one of 4, 8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parse_refuses_when_command_line_is_not_exact(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="must") as refusal:
        parse(read(shrink), argv)
    assert message in str(refusal.value)


def test_parse_asks_for_a_value_when_parameter_has_no_default() -> None:
    with pytest.raises(ValueError, match="must be given --outcome"):
        parse(read(judge_it), [])


@given(
    st.fixed_dictionaries(
        {"model": TEXT, "share": st.floats(allow_nan=False, allow_infinity=False), "trials": st.integers(), "strict": st.booleans()}
    )
)
def test_parse_gives_back_any_value_when_it_was_written_by_to_text(values: dict[str, Any]) -> None:
    argv = [f"--{name}={to_text(value)}" for name, value in values.items()]
    read_back = parse(read(shrink), argv)
    assert {name: read_back[name] for name in values} == values
    assert logged_params(shrink, values)["share"] == to_text(values["share"])


@given(TEXT)
def test_parse_never_gives_another_type_when_text_is_arbitrary(text: str) -> None:
    try:
        share = parse(read(shrink), ["--share", text])["share"]
    except ValueError:
        return
    assert isinstance(share, float)
    assert math.isfinite(share)


def test_logged_params_gives_defaults_when_values_are_partial() -> None:
    logged = logged_params(shrink, {"strict": True})
    assert logged == {"model": "", "share": "0.5", "trials": "3", "mode": "fast", "bits": "8", "strict": "true"}


@pytest.mark.parametrize(
    ("function", "argv", "code"),
    [
        (shrink, [], 0),
        (shrink, ["--model=PASS"], 0),
        (shrink, ["--model=FAIL"], 0),
        (shrink, ["--model=FAIL", "--strict=true"], 1),
        (shrink, ["--model=INCONCLUSIVE", "--strict=true"], 2),
        (shrink, ["--model=PASS", "--strict=true"], 0),
        (shrink, ["--strict=true"], 1),
        (shrink, ["--trials=0"], COULD_NOT_RUN),
        (shrink, ["--nonsense=0"], COULD_NOT_RUN),
        (shrink, ["--bits=4"], COULD_NOT_RUN),
        (shrink, ["--mode=slow"], INTERRUPTED),
        (judge_it, ["--outcome=PASS"], 0),
        (judge_it, ["--outcome=FAIL"], 1),
        (judge_it, ["--outcome=INCONCLUSIVE"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_execute_gives_the_exit_code_of_design_when_called(function: Callable[..., Verdict | None], argv: list[str], code: int) -> None:
    assert execute(function, argv) == code


def test_execute_shows_one_line_when_failure_was_foreseen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_OPT_DEBUG", raising=False)
    execute(shrink, ["--trials=0"])
    assert capsys.readouterr().err == "shrink: trials must be at least 1, got 0; leave it out.\n"


def test_execute_shows_the_traceback_when_debugging_or_unforeseen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(shrink, ["--bits=4"])
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_OPT_DEBUG", "1")
    execute(shrink, ["--trials=0"])
    assert "Traceback" in capsys.readouterr().err


def test_execute_shows_one_line_when_mlflow_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.exceptions import MlflowException

    def refuse() -> None:
        """Refuse."""
        raise MlflowException("not here")

    assert execute(refuse, []) == COULD_NOT_RUN
    assert capsys.readouterr().err == "refuse: not here\n"


def test_run_leaves_with_the_exit_code_when_started_as_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["judge.py", "--outcome", "FAIL"])
    with pytest.raises(SystemExit) as leaving:
        run(judge_it)
    assert leaving.value.code == 1


def test_manual_teaches_every_parameter_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(shrink, ["--share=wrong", "--help"]) == 0
    text = capsys.readouterr().out
    assert text == manual(read(shrink))
    for words in (
        "Shrink it.",
        "Helps on large ones.",
        "--mode  one of fast, slow; default fast",
        "mlflow-opt shrink --model models:/churn/3",
    ):
        assert words in text


def test_read_source_gives_the_same_as_read_when_file_imports_something_missing(tmp_path: Path) -> None:
    path = tmp_path / "halve.py"
    path.write_text(
        '"""About.\n\nHelps here.\n"""\nimport missing_package\nKIND = Literal["a", "b"]\nFIRST: str = "a"\n\n'
        '@missing_package.wraps\ndef halve(*, kind: KIND = FIRST) -> "Gone":\n    """Halve it.\n\n    Args:\n'
        '        kind: which.\n    """\n'
    )
    signature = read_source(path, "halve")
    assert (signature.parameters[0].choices, signature.parameters[0].default) == (("a", "b"), "a")
    assert (signature.details, signature.background) == ("", "Helps here.")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "must define a function halve"),
        ("import missing\ndef halve(*, kind: str = missing.X) -> None:\n    ...\n", "constants of its own file"),
    ],
    ids=["no function", "foreign default"],
)
def test_read_source_refuses_when_file_is_no_recipe(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "halve.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=message):
        read_source(path, "halve")


def test_read_docstring_gives_empty_parts_when_text_is_empty() -> None:
    assert read_docstring("").summary == ""


def test_make_parameter_takes_a_whole_default_when_annotation_is_float() -> None:
    parameter = make_parameter("budget", float, 60, "seconds")
    assert to_text(parameter.default) == "60.0"
