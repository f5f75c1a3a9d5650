from __future__ import annotations

import pytest

from mlflow_opt.cli import main
from mlflow_opt.declaration.entries import entries


def test_recipes_lists_each_on_one_line_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [entry for entry in entries() if entry.kind == "recipe"]
    assert len(lines) == len(found) >= 3
    for line, entry in zip(lines, found, strict=True):
        assert line.split(maxsplit=1) == [entry.name, entry.signature().summary]


def test_recipes_says_when_each_helps_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--when", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.lstrip().startswith("helps ") for line in lines) == sum(entry.kind == "recipe" for entry in entries())
    assert max(map(len, (line for line in lines if line.startswith(" ")))) <= 100
