from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_opt.declaration.entries import Entry, entries
from tests.contract import FOR_ALL, FOR_RECIPES, SKIPS

ROOT = Path(__file__).resolve().parent.parent
FOUND = entries()
RECIPES = [entry for entry in FOUND if entry.kind == "recipe"]
CASES = [(entry, check) for entry in FOUND for check in (*FOR_ALL, *(FOR_RECIPES if entry.kind == "recipe" else ()))]
HEAVY = ("torch", "sklearn", "lightgbm", "onnx", "onnxruntime", "shap", "optuna", "matplotlib", "plotly", "xgboost")


@pytest.mark.parametrize(("entry", "check"), CASES, ids=[f"{entry.name}-{check.__name__.removeprefix('check_')}" for entry, check in CASES])
def test_contract_holds_when_checked(entry: Entry, check: Callable[[Entry], None]) -> None:
    for name, rule, why in SKIPS:
        if (name, rule) == (entry.name, check.__name__):
            pytest.skip(why)
    check(entry)


def test_contract_covers_every_recipe_when_parametrized() -> None:
    assert {"compile", "quantize"} <= {entry.name for entry in RECIPES}
    assert len(CASES) == len(FOUND) * len(FOR_ALL) + len(RECIPES) * len(FOR_RECIPES)


def test_names_are_unique_when_recipes_and_commands_are_taken_together() -> None:
    names = [entry.name for entry in FOUND]
    assert len(names) == len(set(names))
    assert not {"main", "recipes"} & {entry.name for entry in RECIPES}


def test_skips_name_what_exists_when_listed() -> None:
    known = {(entry.name, check.__name__) for entry, check in CASES}
    assert {(name, rule) for name, rule, _ in SKIPS} <= known


@pytest.fixture(scope="module")
def loaded_by_help() -> dict[str, list[str]]:
    """Start every recipe with --help in one fresh process and note what is loaded after each."""
    code = f"""
import contextlib, io, json, runpy, sys
loaded = {{}}
for name in {[entry.name for entry in RECIPES]}:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        runpy.run_module(f"recipes.{{name}}", run_name="__main__")
    assert shown.getvalue().startswith(f"mlflow-opt {{name}}: ")
    loaded[name] = sorted(set({HEAVY}) & set(sys.modules))
print(json.dumps(loaded))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded: dict[str, list[str]] = json.loads(shown.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("name", [entry.name for entry in RECIPES])
def test_recipe_imports_nothing_heavy_when_asked_for_help(name: str, loaded_by_help: dict[str, list[str]]) -> None:
    assert loaded_by_help[name] == []
