"""What every recipe and command must be, from its file alone; a new one is checked without anybody adding a line."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from mlflow_opt import sync
from mlflow_opt.declaration.entries import Entry, helps
from mlflow_opt.declaration.parameter import to_text
from mlflow_opt.signature import COULD_NOT_RUN, execute, parse

ROOT = Path(__file__).resolve().parent.parent

# Skips: (entry, check, why). A recipe that cannot keep a rule says so here and nowhere else.
SKIPS: tuple[tuple[str, str, str], ...] = (
    ("compare", "check_recipe_takes_the_parameters_of_all_recipes", "it reads stored runs: there is no data and nothing random"),
)

# DESIGN's common parameters: type, and the default where the design fixes one.
COMMON = {
    "model": ("str", ""),
    "data": ("str", None),
    "target": ("str", "target"),
    "policy": ("str", ""),
    "register_as": ("str", ""),
    "seed": ("int", 0),
    "trials": ("int", None),
    "time_budget_s": ("float", None),
    "executor": ("str", "local"),
    "workers": ("int", 1),
    "strict": ("bool", False),
}
LINES, OWN_PARAMETERS = 40, 10
_REFERENCE = re.compile(r"\b(19|20)\d\d\b|https?://|documentation", re.IGNORECASE)


def check_parameters_are_described_once(entry: Entry) -> None:
    signature = entry.signature()
    assert signature.summary.endswith(".")
    assert all(item.doc for item in signature.parameters)
    assert all(item.default is not None for item in signature.parameters) or entry.kind == "command", "a recipe runs without parameters"


def check_parameters_survive_text(entry: Entry) -> None:
    signature = entry.signature()
    given = {
        item.name: item.default if item.default is not None else item.choices[0] if item.choices else "x" for item in signature.parameters
    }
    argv = [word for name, value in given.items() for word in (f"--{name}", to_text(value))]
    assert parse(signature, argv) == given
    assert parse(signature, [f"--{name}={to_text(value)}" for name, value in given.items()]) == given


def check_common_parameters_are_spelt_alike(entry: Entry) -> None:
    for item in entry.signature().parameters:
        kind, default = COMMON.get(item.name, (item.kind, item.default))
        assert item.kind == kind, item.name
        assert default is None or entry.kind == "command" or item.default == default, item.name
        assert item.name != "executor" or item.choices == ("local", "dask", "ray")


def check_recipe_takes_the_parameters_of_all_recipes(entry: Entry) -> None:
    names = entry.signature().names
    assert {"data", "target", "seed"} <= set(names)
    assert len(set(names) - set(sync.COMMON)) <= OWN_PARAMETERS


def check_project_lists_it_as_generated(entry: Entry) -> None:
    import yaml

    listed = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert (entry.name in listed) == entry.in_project
    assert not entry.in_project or listed[entry.name] == sync.mlproject([entry])["entry_points"][entry.name]


def check_order_is_docstring_imports_code_program(entry: Entry) -> None:
    body = ast.parse(entry.path.read_text()).body
    assert isinstance(body[0], ast.Expr), "the docstring comes first"
    assert ast.unparse(body[-1]) == f"if __name__ == '__main__':\n    run({entry.name})"
    imports = [i for i, node in enumerate(body) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == list(range(1, len(imports) + 1)), "imports follow the docstring, together"
    public = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert public[-1] == entry.name or entry.kind == "command", "the recipe comes after its technique"


def check_function_is_short(entry: Entry) -> None:
    function = next(
        node for node in ast.parse(entry.path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == entry.name
    )
    # Signature and docstring are the declaration; what is bounded is the story.
    last, first = function.body[-1].end_lineno, function.body[1].lineno
    assert last is not None
    assert last - first < LINES


def check_docstring_says_when_and_when_not_and_where_from(entry: Entry) -> None:
    signature = entry.signature()
    text = f"{signature.details}\n{signature.background}"
    assert helps(signature), "a sentence begins with Helps: the README's table shows it"
    assert re.search(r"\b(does not|do not) (help|pay)", text, re.IGNORECASE), "it says when it does not help"
    assert _REFERENCE.search(entry.path.read_text().partition('"""')[2].partition('"""')[0]), "the file's docstring names its source"


def check_name_shadows_nothing(entry: Entry) -> None:
    assert entry.name.isidentifier()
    assert entry.name == entry.name.lower()
    assert entry.name not in sys.stdlib_module_names
    assert entry.name not in packages_distributions()


def check_has_tests_of_its_own(entry: Entry) -> None:
    # A recipe's tests are a file of its name; commands may share one.
    texts = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    tested = f"test_{entry.name}.py" in texts
    assert tested or (entry.kind == "command" and any(f"def test_{entry.name}_" in text for text in texts.values()))


def check_source_and_function_agree(entry: Entry) -> None:
    function = entry.load()
    assert inspect.getdoc(function)
    assert entry.signature().names == tuple(inspect.signature(function).parameters)


def check_unknown_parameter_is_refused(entry: Entry) -> None:
    assert execute(entry.load(), ["--no_such_parameter=3"]) == COULD_NOT_RUN


FOR_ALL = (
    check_parameters_are_described_once,
    check_parameters_survive_text,
    check_common_parameters_are_spelt_alike,
    check_project_lists_it_as_generated,
    check_order_is_docstring_imports_code_program,
    check_name_shadows_nothing,
    check_has_tests_of_its_own,
    check_source_and_function_agree,
    check_unknown_parameter_is_refused,
)
FOR_RECIPES = (
    check_recipe_takes_the_parameters_of_all_recipes,
    check_docstring_says_when_and_when_not_and_where_from,
    check_function_is_short,
)
