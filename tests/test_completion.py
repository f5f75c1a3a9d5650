from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_opt.declaration.entries import entries
from mlflow_opt.generation import shells

ROOT = Path(__file__).resolve().parent.parent
MAKE = [sys.executable, "-m", "mlflow_opt.cli", "completion"]
WORDS = {
    "first word": (["mlflow-opt", "quan"], {"quantize"}),
    "parameter": (["mlflow-opt", "quantize", "--sch"], {"--schemes"}),
    "choice": (["mlflow-opt", "start_server", "--cache", ""], {"stored", "off", "memory", "redis"}),
    "truth": (["mlflow-opt", "compile", "--strict", ""], {"true", "false"}),
    "shell": (["mlflow-opt", "completion", ""], {"bash", "zsh", "fish"}),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    for name in ("bash", "zsh", "fish"):
        text = subprocess.run([*MAKE, name], capture_output=True, text=True, cwd=ROOT, check=True).stdout
        (folder / name).write_text(text)
    return {name: folder / name for name in ("bash", "zsh", "fish")}


@pytest.mark.parametrize(("words", "offered"), WORDS.values(), ids=WORDS)
def test_completion_offers_what_fits_when_bash_asks(scripts: dict[str, Path], words: list[str], offered: set[str]) -> None:
    ask = f'source {scripts["bash"]}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mlflow_opt; echo "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", ask, "bash", *words], capture_output=True, text=True, check=True)
    assert offered <= set(shown.stdout.split())
    assert all(word.startswith(words[-1]) for word in shown.stdout.split())


def test_completion_leaves_files_to_bash_when_a_value_has_no_choices(scripts: dict[str, Path]) -> None:
    ask = f'source {scripts["bash"]}; COMP_WORDS=(mlflow-opt compile --policy ""); COMP_CWORD=3; _mlflow_opt; echo "${{COMPREPLY[@]}}"'
    assert subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
@pytest.mark.parametrize(("words", "offered"), WORDS.values(), ids=WORDS)
def test_completion_offers_what_fits_when_fish_asks(scripts: dict[str, Path], words: list[str], offered: set[str]) -> None:
    ask = f"source {scripts['fish']}; complete -C '{' '.join(words)}'"
    shown = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert offered <= {line.partition("\t")[0] for line in shown.splitlines()}


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(("words", "offered"), WORDS.values(), ids=WORDS)
def test_completion_offers_what_fits_when_zsh_asks(scripts: dict[str, Path], words: list[str], offered: set[str]) -> None:
    # What the completion system is given, without its line editor.
    catch = "compdef() {}; compadd() { print -l -- $@ }; _files() {}; _describe() { print -l -- ${(P)2%%:*} ${${(P)2}%%:*} }"
    ask = f'{catch}; source {scripts["zsh"]}; words=("$@"); CURRENT=$#; _mlflow_opt'
    shown = subprocess.run(["zsh", "-f", "-c", ask, "zsh", *words], capture_output=True, text=True, check=True).stdout
    assert offered <= set(shown.split())


@pytest.mark.parametrize("write", [shells.bash, shells.zsh, shells.fish], ids=lambda write: write.__name__)
def test_completion_knows_every_parameter_when_written(write: object) -> None:
    assert callable(write)
    text = str(write(entries()))
    names = [f"--{name}" if write is not shells.fish else f"-l {name} " for entry in entries() for name in entry.signature().names]
    assert len(names) > 100
    assert [name for name in names if name not in text] == []
