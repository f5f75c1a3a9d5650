"""DESIGN's arrows, read from the code: who may import whom, and who may import what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("mlflow_opt", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py" and "datasets" not in path.parts
}

# Modules at the top of the package; what is named nowhere is core: models, data, measure, and the packages that no layer names.
MODULES = {
    "base": {"records", "metrics", "signature"},
    "gate": {"gate", "policy"},
    "session": {"session"},
    "front": {"cli", "sync"},
}
PACKAGES = {
    "base": {"declaration"},
    "gate": {"verdicts"},
    "session": {"runs", "reports", "workbench"},
    "front": {"generation"},
    "plugin": {"plugin"},
    "serving": {"serving"},
    "commands": {"commands"},
    "recipes": {"recipes"},
}
# Packages of techniques and of measuring: pure, so that they can be read and tested without a tracking store.
PURE = {"architectures", "ensembles", "features", "measurement", "precision", "pruning", "search", "trees"}

# Layer -> the layers that it may import, itself included. What is in no set above is core: models, data, measure and their parts.
ARROWS = {
    "base": {"base"},
    "gate": {"base", "gate"},
    "core": {"base", "gate", "core"},
    "plugin": {"base", "gate", "core", "plugin", "discovery"},
    "session": {"base", "gate", "core", "session", "discovery"},
    "discovery": {"base", "gate"},
    "recipes": {"base", "gate", "core", "session", "serving"},
    "serving": {"base", "gate", "core", "session", "serving"},
    "front": {"base", "gate", "front"},
    "commands": {"base", "gate", "core", "session", "discovery", "plugin", "serving", "front", "commands"},
}

HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "onnxmltools", "skl2onnx", "sklearn", "lightgbm", "xgboost", "shap", "optuna"}
HEAVY |= {"matplotlib", "plotly", "safetensors"}
# Where a decision is taken or a technique works, MLflow is not known: neither at the top nor inside a function.
# A timing session loads what it times: MLflow's own pyfunc may be that.
WITHOUT_MLFLOW = [
    name
    for name in FILES
    if name != "mlflow_opt.measurement.timing_session"
    and (
        name.split(".")[0] == "recipes"
        or name == "mlflow_opt.measure"
        or name.removeprefix("mlflow_opt.").split(".")[0] in PURE | PACKAGES["base"] | PACKAGES["gate"] | MODULES["base"] | MODULES["gate"]
    )
]


def _layer(module: str) -> str:
    package, _, name = module.partition(".")
    if package == "recipes":
        return "recipes"
    if name == "plugin.discovery":
        # What a client asks a server about its gate: the one part of the plugin that a session may use.
        return "discovery"
    head, _, rest = name.partition(".")
    return next((layer for layer, names in (PACKAGES if rest else MODULES).items() if head in names), "core")


def _imports(tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Name what a file imports when it runs; `from a import b` gives `a.b`. Imports for type checking alone do not run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"imports are absolute here, got {ast.unparse(node)}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(node, everywhere=everywhere)


def _ours(imported: str) -> str:
    """Reduce `mlflow_opt.records.Task` to the module `mlflow_opt.records`; what is not ours to ``."""
    parts = imported.split(".")
    while parts and ".".join(parts) not in FILES:
        parts.pop()
    return ".".join(parts)


def _edges(*, everywhere: bool) -> list[tuple[str, str]]:
    trees = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
    return [(module, imported) for module, tree in trees.items() for imported in _imports(tree, everywhere=everywhere)]


def test_layers_import_downwards_only_when_read_from_the_code() -> None:
    ours = [(module, _ours(imported)) for module, imported in _edges(everywhere=True) if _ours(imported)]
    wrong = [f"{module} -> {target}" for module, target in ours if module != target and _layer(target) not in ARROWS[_layer(module)]]
    assert not wrong, "imports must go down only; a new module that is not core is named in its layer above"
    assert len(ours) > 100
    assert {_layer(module) for module in FILES} >= {"base", "gate", "core", "plugin", "session", "recipes", "front"}


def test_recipes_import_no_recipe_when_they_call_another() -> None:
    wrong = [
        (module, imported)
        for module, imported in _edges(everywhere=True)
        if module.startswith("recipes.") and "recipes" in imported.split(".")
    ]
    assert not wrong


def test_modules_have_no_cycle_when_imported() -> None:
    targets: dict[str, set[str]] = {module: set() for module in FILES}
    for module, imported in _edges(everywhere=False):
        if _ours(imported) not in ("", module):
            targets[module].add(_ours(imported))
    while leaves := [module for module, needed in targets.items() if not needed & targets.keys()]:
        for module in leaves:
            del targets[module]
    assert not targets


@pytest.mark.parametrize("module", WITHOUT_MLFLOW)
def test_module_never_imports_mlflow_when_it_decides_or_optimises(module: str) -> None:
    assert module in FILES
    found = [name for name in _imports(ast.parse(FILES[module].read_text()), everywhere=True) if name.split(".")[0] == "mlflow"]
    assert not found


def test_modules_import_heavy_packages_inside_functions_only() -> None:
    edges = _edges(everywhere=False)
    # A module that defines torch networks needs torch at its top: it is heavy itself, and imported inside functions.
    networks = {module for module, imported in edges if imported.split(".")[0] == "torch"}
    heavy = [(module, imported) for module, imported in edges if imported.split(".")[0] in HEAVY or _ours(imported) in networks]
    wrong = [f"{module} -> {imported}" for module, imported in heavy if module not in networks]
    wrong += [f"{module} -> {imported}" for module, imported in heavy if imported.split(".")[0] in HEAVY - {"torch", "safetensors"}]
    assert not wrong
    assert not [module for module in networks if _layer(module) != "core"]
    assert len(edges) > 300


def test_plugin_imports_nothing_heavy_when_a_server_loads_it() -> None:
    modules = sorted(module for module in FILES if module.startswith("mlflow_opt.plugin."))
    assert len(modules) >= 8
    code = f"""
import importlib, sys
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
before = set(sys.modules)
for module in {modules}:
    importlib.import_module(module)
print(sorted({HEAVY} & (set(sys.modules) - before)))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
