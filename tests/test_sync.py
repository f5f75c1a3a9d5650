from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from mlflow_opt import sync
from mlflow_opt.declaration.entries import Entry, entries

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOUND = entries()

TINY = '''"""About.

Helps on odd
ones. Does not help elsewhere.
"""
{constant}

def {name}(*, note: str = "", share: float = 0.5, seed: int = 0, strict: bool = True) -> None:
    """Do {name}.

    Args:
        note: text.
        share: of it.
        seed: of it all.
        strict: or not.
    """
'''


def _entry(folder: Path, name: str, kind: str = "recipe", constant: str = "") -> Entry:
    path = folder / f"{name}.py"
    path.write_text(TINY.format(name=name, constant=constant))
    return Entry(name, "recipe" if kind == "recipe" else "command", "recipes", path)


def test_sync_finds_nothing_to_write_when_files_are_as_generated() -> None:
    files = sync.generated(ROOT, FOUND)
    assert {path.name for path in files} == {"MLproject", "conda.yaml", "README.md", "policy.md", "faq.md", "recipes.md", "benchmarks.md"}
    for path, text in files.items():
        assert path.read_text() == text, f"{path.name} is not as the signatures say; run `make sync`"


def test_mlproject_lists_every_file_when_generated() -> None:
    listed = set(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]) - {"main"}
    names = {path.stem for path in (ROOT / "recipes").glob("[!_]*.py")}
    names |= {path.stem for path in (ROOT / "mlflow_opt/commands").glob("[!_]*.py") if "\nCLI_ONLY = True" not in path.read_text()}
    assert listed == names
    # An empty folder would compare nothing: these two are there from the first day.
    assert {"compile", "quantize"} <= listed


def test_mlproject_gives_every_parameter_when_generated() -> None:
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    compared = 0
    for entry in FOUND:
        if not entry.in_project:
            continue
        point = points[entry.name]
        for parameter in entry.signature().parameters:
            assert f"--{parameter.name} {{{parameter.name}}}" in point["command"]
            if parameter.default is not None:
                assert parameter.read(point["parameters"][parameter.name]["default"]) == parameter.default
            compared += 1
        assert len(point["parameters"]) == point["command"].count(" --") == len(entry.signature().parameters)
    assert compared == sum(len(points[entry.name]["parameters"]) for entry in FOUND if entry.in_project)
    assert compared >= 20


def test_mlproject_entry_is_as_mlflow_reads_it_when_generated(tmp_path: Path) -> None:
    project = sync.mlproject(
        [_entry(tmp_path, "quantize"), _entry(tmp_path, "gate", "command"), _entry(tmp_path, "doctor", "command", "CLI_ONLY = True")]
    )
    assert list(project["entry_points"]) == ["main", "quantize", "gate"]
    assert project["entry_points"]["main"] == project["entry_points"]["quantize"]
    assert project["entry_points"]["quantize"]["command"] == (
        "python -m recipes.quantize --note {note} --share {share} --seed {seed} --strict {strict}"
    )
    assert project["entry_points"]["gate"]["command"].startswith("python -m mlflow_opt.commands.gate ")
    assert project["entry_points"]["quantize"]["parameters"] == {
        "note": {"type": "string", "default": ""},
        "share": {"type": "float", "default": "0.5"},
        "seed": {"type": "float", "default": "0"},
        "strict": {"type": "string", "default": "true"},
    }


def test_main_runs_pipeline_when_there_is_one(tmp_path: Path) -> None:
    project = sync.mlproject([_entry(tmp_path, "pipeline"), _entry(tmp_path, "quantize")])
    assert project["entry_points"]["main"] == project["entry_points"]["pipeline"]


def test_readme_table_has_a_row_when_entry_is_a_recipe(tmp_path: Path) -> None:
    table = sync.readme_table([_entry(tmp_path, "prune"), _entry(tmp_path, "gate", "command")])
    assert table.splitlines()[2:] == ["| [`prune`](recipes/prune.py) | Do prune. | on odd ones | `note`, `share` |"]


def test_readme_table_has_one_row_a_recipe_when_generated() -> None:
    block = (ROOT / "README.md").read_text().partition("<!-- recipes -->\n")[2].partition("<!-- ")[0]
    assert re.findall(r"^\| \[`(\w+)`\]", block, re.MULTILINE) == [entry.name for entry in FOUND if entry.kind == "recipe"]


def test_generated_refuses_when_readme_lacks_the_markers(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(ValueError, match="must hold '<!-- recipes -->'"):
        sync.generated(tmp_path, [])


def test_conda_refuses_when_a_requirement_is_not_pinned() -> None:
    with pytest.raises(ValueError, match=r"constraints\.txt must pin .* got no pin for"):
        sync.conda(PYPROJECT["project"], {"mlflow": "3.17.2"})


def test_conda_pins_everything_exactly_when_generated() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = environment[-1]["pip"]
    assert pip[0] == "-c constraints.txt"
    assert pip[-1] == "."
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in pip[1:-1])
    assert len(pip) > 15


def test_constraints_pin_every_requirement_when_pyproject_names_it() -> None:
    pins = sync.read_pins((ROOT / "constraints.txt").read_text())
    project = PYPROJECT["project"]
    named = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    assert len(named) > 25
    missing = {re.split(r"[^\w.-]", text)[0].lower() for text in named} - set(pins)
    assert not missing
    assert not [version for version in pins.values() if "+" in version], "a local build tag fits one index only"


def test_pyproject_lists_every_package_when_a_folder_has_code() -> None:
    folders = {
        "mlflow_opt",
        *(f"mlflow_opt.{path.parent.name}" for path in (ROOT / "mlflow_opt").glob("*/__init__.py")),
        "mlflow_opt.recipes",
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_entry_point_loads_when_mlflow_asks_for_it() -> None:
    declared = PYPROJECT["project"]["entry-points"]
    loaded = 0
    for group, points in declared.items():
        # From the installed metadata, as MLflow finds them: an ImportError in a plugin would only be a warning there.
        installed = {point.name: point for point in entry_points(group=group)}
        for name, value in points.items():
            assert installed[name].value == value, "the installed metadata is stale; install again"
            assert installed[name].load()
            loaded += 1
    assert loaded >= 8
