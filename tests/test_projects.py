"""`mlflow run` for real: a small recipe in a copy of the project, and the project itself."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("docs", "benchmarks", "mlflow_opt", "recipes", "pyproject.toml", "constraints.txt", "conda.yaml", "LICENSE", "README.md")
ENTRIES = sorted(set(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]))

ECHO = '''"""Write down what it was given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import mlflow_opt
from mlflow_opt.records import Outcome, Verdict
from mlflow_opt.signature import run


def echo(
    *,
    out: str,
    model: str = "",
    note: str = "two words",
    share: float = 0.01,
    trials: int = 3,
    mode: Literal["fast", "slow"] = "fast",
    strict: bool = False,
) -> Verdict:
    """Write down what it was given.

    Args:
        out: the file.
        model: empty by default.
        note: text.
        share: a number.
        trials: a whole number.
        mode: a choice.
        strict: return the verdict.
    """
    given = {"model": model, "note": note, "share": share, "trials": trials, "mode": mode, "strict": strict}
    Path(out).write_text(json.dumps(given | {"run": os.environ["MLFLOW_RUN_ID"], "code": mlflow_opt.__file__}))
    return Verdict(Outcome.INCONCLUSIVE, ())


if __name__ == "__main__":
    run(echo)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project and give it one cheap recipe."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "recipes/echo.py").write_text(ECHO)
    subprocess.run([sys.executable, "-m", "mlflow_opt.sync"], cwd=folder, check=True, capture_output=True)
    return folder


def _mlflow_run(folder: Path, entry: str, *words: str, manager: str = "local", **environment: str) -> subprocess.CompletedProcess[str]:
    # `--env-manager local` takes python, and `uv` takes uv, from PATH: as with an activated environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "mlflow", "run", str(folder), "-e", entry, "--env-manager", manager, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path} | environment, timeout=1500)


def _read_echo(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return loaded


def test_mlflow_run_passes_values_unchanged_when_they_are_awkward(project: Path, tracking_uri: str, tmp_path: Path) -> None:
    note = """it's "$HOME" {x} `date` --share \\ ü; exit 5"""
    ended = _mlflow_run(project, "echo", "-P", f"out={tmp_path / 'out.json'}", "-P", f"note={note}", "-P", "strict=false")
    assert ended.returncode == 0, ended.stderr
    given = _read_echo(tmp_path)
    expected = {"model": "", "note": note, "share": 0.01, "trials": 3, "mode": "fast", "strict": False}
    assert {name: given[name] for name in expected} == expected
    assert given["code"] == str(project / "mlflow_opt/__init__.py"), "the code of the project's folder runs"

    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri).get_run(given["run"])
    assert run.info.status == "FINISHED"
    # MLflow logs what it put into the command, quotes included, before the recipe starts: a recipe may log only what is missing.
    logged = {"model": "", "share": "0.01", "trials": "3", "mode": "fast", "strict": "false", "note": note}
    assert {name: run.data.params.get(name) for name in logged} == {name: shlex.quote(text) for name, text in logged.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-P", "x=3"], "got '--x'"),
        (["-P", "share=half"], "share must be a finite number, got 'half'"),
        (["-P", "mode=fats"], "did you mean 'fast'"),
        (["-P", "strict=true"], ""),
    ],
    ids=["unknown", "type", "choice", "strict"],
)
def test_mlflow_run_fails_when_recipe_refuses(project: Path, tracking_uri: str, tmp_path: Path, words: list[str], message: str) -> None:
    ended = _mlflow_run(project, "echo", "-P", f"out={tmp_path / 'out.json'}", *words)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert (tmp_path / "out.json").exists() == (words == ["-P", "strict=true"])


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_mlflow_run_refuses_an_unknown_parameter_when_entry_is_ours(entry: str, tracking_uri: str) -> None:
    # Required parameters come first: MLflow asks for them before it starts anything.
    required = [name for name, item in _parameters(entry).items() if "default" not in item]
    words = [word for name in required for word in ("-P", f"{name}=nothing")]
    ended = _mlflow_run(ROOT, entry, *words, "-P", "no_such_parameter=3")
    assert ended.returncode != 0
    assert "got '--no_such_parameter'" in ended.stderr


@pytest.mark.slow
def test_mlflow_run_builds_the_environment_when_manager_is_uv(project: Path, tracking_uri: str, tmp_path: Path) -> None:
    if shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("uv is not installed")
    # uv does not read pip's own setting of where wheels lie; the CPU build of torch may lie there.
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    environments = {"MLFLOW_ENV_ROOT": str(tmp_path / "environments")}
    ended = _mlflow_run(project, "echo", "-P", f"out={tmp_path / 'out.json'}", "-P", "note=by uv", manager="uv", **links, **environments)
    shutil.rmtree(tmp_path / "environments", ignore_errors=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert _read_echo(tmp_path)["note"] == "by uv"


def _parameters(entry: str) -> dict[str, dict[str, str]]:
    parameters: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"][entry]["parameters"]
    return parameters


@pytest.mark.slow
def test_wheel_runs_away_from_the_checkout_when_installed(project: Path, tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(project)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    wheel = next(tmp_path.glob("mlflow_opt-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {
        "mlflow_opt/recipes/echo.py",
        "mlflow_opt/recipes/quantize.py",
        "mlflow_opt/py.typed",
        "mlflow_opt/commands/__init__.py",
    } <= names
    assert {f"mlflow_opt/datasets/{path.name}" for path in (ROOT / "mlflow_opt/datasets").iterdir() if path.is_file()} <= names
    assert not [name for name in names if name.startswith(("recipes/", "tests/", "build/"))]
    # Extracted beside nothing of ours and first on the path, as site-packages would be.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mlflow_opt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "installed"), "echo", "--out", str(tmp_path / "out.json"), "--strict=true"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"MLFLOW_RUN_ID": "none"})
    assert ended.returncode == 2, ended.stderr
    assert _read_echo(tmp_path)["code"] == str(tmp_path / "installed/mlflow_opt/__init__.py")
