from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mlflow_opt.cli import main
from mlflow_opt.declaration.entries import entries
from mlflow_opt.signature import COULD_NOT_RUN

ROOT = Path(__file__).resolve().parent.parent
# What --help may not import; mlflow alone takes more than a second.
SLOW_IMPORTS = ("mlflow", "pandas", "torch", "sklearn", "lightgbm", "onnxruntime", "shap", "optuna")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=" ".join)
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


def test_main_takes_the_only_parameter_without_its_name_when_a_command_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    bare = capsys.readouterr().out
    assert main(["completion", "--shell", "fish"]) == 0
    assert capsys.readouterr().out == bare
    assert main(["completion", "tcsh"]) == COULD_NOT_RUN
    assert "shell must be one of bash, zsh, fish, got 'tcsh'" in capsys.readouterr().err
    assert main(["quantize", "models:/digits/3"]) == COULD_NOT_RUN


@pytest.mark.parametrize("argv", [["--help"], ["quantize", "--help"], ["recipes"], ["completion", "bash"]], ids=" ".join)
def test_help_imports_nothing_slow_when_started(argv: list[str]) -> None:
    code = f"import sys; from mlflow_opt.cli import main; main({argv}); print([m for m in {SLOW_IMPORTS} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_console_script_runs_when_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "mlflow-opt"
    shown = subprocess.run([script, "nothing_such"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (shown.returncode, shown.stdout) == (COULD_NOT_RUN, "")
    assert shown.stderr.startswith("mlflow-opt: the first word must be a recipe or command, got 'nothing_such'")
