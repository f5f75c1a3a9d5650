from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mlflow_opt.cli import main
from mlflow_opt.entries import entries
from mlflow_opt.signature import COULD_NOT_RUN

ROOT = Path(__file__).resolve().parent.parent
# What --help may not import; mlflow alone takes more than a second.
SLOW_IMPORTS = ("mlflow", "pandas", "torch", "sklearn", "lightgbm", "onnxruntime", "shap", "optuna")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["recipes"]], ids=" ".join)
def test_main_lists_every_recipe_and_command_when_asked(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    text = capsys.readouterr().out
    found = entries()
    assert len(found) >= 2
    for entry in found:
        assert f"  {entry.name} " in text
        assert entry.signature().summary in text


def test_main_suggests_the_nearest_when_name_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantise"]) == COULD_NOT_RUN
    assert "got 'quantise'; did you mean 'quantize'? `mlflow-opt --help` lists them." in capsys.readouterr().err


def test_main_refuses_when_first_word_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "x"]) == COULD_NOT_RUN
    assert "got '--model'." in capsys.readouterr().err


def test_main_gives_its_version_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("mlflow-opt")


def test_main_shows_the_manual_when_a_recipe_gets_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  --{name}  " in text for name in next(entry for entry in entries() if entry.name == "quantize").signature().names)


def test_main_could_not_run_when_a_recipe_gets_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--sceme", "auto"]) == COULD_NOT_RUN
    assert "got '--sceme'; did you mean 'schemes'?" in capsys.readouterr().err


def test_completion_offers_names_and_flags_when_bash_reads_it() -> None:
    script = f"{sys.executable} -m mlflow_opt.cli --completion bash"
    script = f'eval "$({script})"; COMP_CWORD=$1; shift; COMP_WORDS=("$@"); _mlflow_opt; echo "${{COMPREPLY[@]}}"'
    offered = []
    for position, words in (("1", ["quan"]), ("2", ["quantize", "--sch"])):
        command = ["bash", "-c", script, "bash", position, "mlflow-opt", *words]
        offered += subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert offered == ["quantize", "--schemes"]


@pytest.mark.parametrize("argv", [["--help"], ["quantize", "--help"]], ids=" ".join)
def test_help_imports_nothing_slow_when_started(argv: list[str]) -> None:
    code = f"import sys; from mlflow_opt.cli import main; main({argv}); print([m for m in {SLOW_IMPORTS} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_console_script_runs_when_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "mlflow-opt"
    shown = subprocess.run([script, "nothing_such"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (shown.returncode, shown.stdout) == (COULD_NOT_RUN, "")
    assert shown.stderr.startswith("mlflow-opt: the first word must be a recipe or command, got 'nothing_such'")
