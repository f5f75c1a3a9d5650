"""Every recipe and command by name: where its file lies and what it takes, found without importing it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlflow_opt.declaration.docstring import read_docstring
from mlflow_opt.records import Verdict
from mlflow_opt.signature import Signature, read


@dataclass(frozen=True)
class Entry:
    """A recipe or command: one file that defines a function of its own name.

    Args:
        name: of the file, the function and the entry point.
        kind: `recipe` for a technique, `command` for the rest.
        package: what its module is imported from.
        path: its file.
    """

    name: str
    kind: Literal["recipe", "command"]
    package: str
    path: Path

    @property
    def in_project(self) -> bool:
        """Tell whether MLproject lists it: all do but commands whose module says `CLI_ONLY = True`."""
        body = ast.parse(self.path.read_text(encoding="utf-8")).body
        return not any(isinstance(node, ast.Assign) and ast.unparse(node) == "CLI_ONLY = True" for node in body)

    def signature(self) -> Signature:
        """Read what it takes, without importing it."""
        return read_source(self.path, self.name)

    def load(self) -> Callable[..., Verdict | None]:
        """Import its module, which may take a second, and return its function."""
        function: Callable[..., Verdict | None] = getattr(importlib.import_module(f"{self.package}.{self.name}"), self.name)
        return function


def entries() -> tuple[Entry, ...]:
    """Find every recipe and command, recipes first, each group by name.

    Returns:
        One entry a file; files whose names start with an underscore are none.
    """
    return (*_entries("recipe", _recipes_package()), *_entries("command", "mlflow_opt.commands"))


def read_source(path: Path, name: str) -> Signature:
    """Read what a function in a file takes, without importing the file: its imports may be heavy or missing.

    Args:
        path: the Python file.
        name: of the function in it.

    Returns:
        Its signature, with the prose of the file's docstring as background.

    Raises:
        ValueError: no such function, or a signature that uses other names than the builtins, `Literal` and the file's constants.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None:
        raise ValueError(f"{path.name} must define a function {name}, as its file's name says; it defines none.")
    text = ast.get_docstring(function)
    function.body = [ast.Expr(ast.Constant(text)) if text else ast.Pass()]
    function.decorator_list, function.returns = [], None
    constants: list[ast.stmt] = [node for node in tree.body if _is_constant(node)]
    stub = ast.fix_missing_locations(ast.Module([*constants, function], type_ignores=[]))
    scope: dict[str, Any] = {"Literal": Literal}
    try:
        # A signature without its body, and literal constants, out of our own package: there is nothing in it to be afraid of.
        exec(compile(stub, str(path), "exec"), scope)  # noqa: S102
        found = read(scope[name])
    except NameError as error:
        raise ValueError(f"{path.name}: a signature may use the builtin types, Literal and constants of its own file; {error}.") from error
    return replace(found, background=read_docstring(ast.get_docstring(tree) or "").prose)


def helps(signature: Signature) -> str:
    """Find the words that say when a technique helps: the rest of the first sentence that begins with "Helps".

    Args:
        signature: with the function's prose, then the file's.

    Returns:
        The words, `""` if no sentence begins so.
    """
    found = re.search(r"\bHelps\s+(.*?[^.])\.(?:\s|$)", f"{signature.details}\n\n{signature.background}", re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _recipes_package() -> str:
    # In a checkout the recipes lie beside the package. `mlflow_opt.recipes` may then be another copy's, or missing: an
    # installed one does not follow the working folder that Python imports mlflow_opt from.
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.find_spec("mlflow_opt.recipes")
    if spec is None or not spec.origin:
        return "recipes"
    ours = Path(spec.origin).resolve().parent == root / "recipes"
    return "mlflow_opt.recipes" if ours or not (root / "pyproject.toml").exists() else "recipes"


def _entries(kind: Literal["recipe", "command"], package: str) -> tuple[Entry, ...]:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    paths = sorted(path for folder in folders for path in Path(folder).glob("*.py") if not path.stem.startswith("_"))
    return tuple(Entry(path.stem, kind, package, path) for path in paths)


def _is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    value = node.value
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and value.value.id == "Literal":
        value = value.slice
    if isinstance(node, ast.AnnAssign):
        node.annotation = ast.Constant("")
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True
