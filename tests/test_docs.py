"""The docs do what they say: their commands run, their files work, their policies parse, their links and pictures exist."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import sys
from pathlib import Path

import pytest

from mlflow_opt import metrics, policy
from mlflow_opt.declaration.entries import entries
from mlflow_opt.generation import quoted, recipe_guides
from mlflow_opt.generation.policy_reference import bounds_table, keys_table, metrics_table
from mlflow_opt.policy import parse_policy
from tests import docs_world, test_layers
from tests.pages import reader

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
# Pages whose commands are all run by a test that follows the page.
FOLLOWED = ("tutorial", "adding-a-technique", "recipes", "gate")
# Of the README and the guide of the gate: what needs a package index, or is a test of its own (test_demo, this very suite).
NOT_TYPED = ("pip install mlflow-opt", "make demo", "make test")


def _text(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_tutorial_ends_with_a_served_champion_when_followed(tmp_path: Path) -> None:
    with reader(tmp_path, {"PYTHONPATH": str(ROOT)}) as someone:
        someone.follow(_text("tutorial"))
        served = someone.ports["5001"]
        someone.follow(f'```console\n$ curl -s http://127.0.0.1:{served}/version | grep -q \'"version": *"2"\'\n```')
        assert len(someone.ran) >= 12
        assert {"champion", "challenger"} <= set(re.findall(r"@(\w+)", " ".join(someone.ran)))


@pytest.mark.slow
def test_adding_a_technique_passes_the_contract_when_followed(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    # Data, pictures and results are not what a recipe is checked against, but sync and the contract read the files around them.
    left_out = shutil.ignore_patterns(".git", ".venv", "mlruns", "mlflow.db*", "__pycache__", ".*_cache", "*.egg-info", "images")
    shutil.copytree(ROOT, copy, ignore=left_out)
    page = _text("adding-a-technique").replace("$ make sync\n", f"$ make sync VENV={sys.prefix} -o {sys.prefix}/.installed\n")
    with reader(copy, {"PYTHONPATH": str(copy)}) as someone:
        someone.follow(page)
        assert len(someone.ran) == 4
    assert "round_weights:" in (copy / "MLproject").read_text()
    assert "| [`round_weights`]" in (copy / "README.md").read_text()


@pytest.mark.slow
def test_recipes_run_as_shown_when_followed(tmp_path: Path) -> None:
    with reader(tmp_path, {"PYTHONPATH": str(ROOT)}) as someone:
        someone.follow(_text("recipes"))
        named = {command.split()[1] for command in someone.ran if command.startswith("mlflow-opt ")}
    assert {entry.name for entry in entries() if entry.kind == "recipe"} <= named


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/gate.md"])
def test_gate_is_as_shown_when_followed_in_a_world_with_versions(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for one in ("mlflow_opt", "recipes", "docs", "benchmarks"):
        shutil.copytree(ROOT / one, home / one, ignore=shutil.ignore_patterns("__pycache__", "images"))
    for one in ("MLproject", "conda.yaml", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / one, home / one)
    (home / "server.yaml").write_text(docs_world.POLICY)
    settings = {"PYTHONPATH": str(ROOT), "MLFLOW_OPT_POLICY": str(home / "server.yaml"), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    served, typed = _server_and_the_rest((ROOT / name).read_text(encoding="utf-8"))
    with reader(home, settings) as someone:
        someone.follow(f"```console\n$ {served} --port 5000 &\n$ export MLFLOW_TRACKING_URI=http://127.0.0.1:5000\n```")
        prepared = ["python -m tests.docs_world", "mlflow-opt promote --model models:/churn/2 --data holdout.parquet --budget_s 10"]
        for command in (*prepared, *typed):
            someone.follow(f"```console\n$ {command}\n```")
    assert len(typed) >= 4


def _server_and_the_rest(page: str) -> tuple[str, list[str]]:
    """Take a page's commands without comments: the one that starts the server, and the others in their order."""
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    (server,) = [line for line in lines if line.startswith("mlflow server")]
    in_a_month = (dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=30)).date().isoformat()
    typed = [re.sub(r"--until \S+", f"--until {in_a_month}", line) for line in lines if line != server and line not in NOT_TYPED]
    return server, typed


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_page_is_followed_whole_when_it_has_commands(path: Path) -> None:
    # A block without a language would hide commands from the test that follows the page.
    text = path.read_text(encoding="utf-8")
    assert (path.stem in FOLLOWED) or "```console" not in text, "a page with commands needs a test that follows it"
    shown = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    if path.stem == "serving":
        # Its three commands are run with a model of their own by test_serving_live and test_start_server.
        return
    assert [body for kind, body in shown if not kind and re.search(r"^(\$ |mlflow|python|pip|curl)", body, re.MULTILINE)] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_policies_in_docs_parse_when_read(path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        # The page's defaults are three policies below each other; the server's file maps names to policies.
        parts = re.split(r"^# (?:binary|multiclass|regression)$", block, flags=re.MULTILINE)
        for part in parts if len(parts) > 1 else [block]:
            if re.search(r"^validation_criteria:", part, re.MULTILINE):
                assert parse_policy(part).criteria


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_links_and_pictures_exist_when_docs_name_them(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_pictures_are_small_when_committed() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert len(pictures) >= 4
    assert sum(path.stat().st_size for path in pictures) < 1_000_000


def test_policy_reference_has_every_key_and_metric_when_written() -> None:
    keys, bounds, named = keys_table(), bounds_table(), metrics_table()
    assert [key for key in policy.KEYS if f"| `{key}` |" not in keys] == []
    assert [key for key in policy.CRITERION_KEYS if f"| `{key}` |" not in bounds] == []
    assert [name for name in metrics.known_names() if f"`{name}`" not in named] == []


def test_requoted_takes_the_rows_as_they_are_now_when_results_change(tmp_path: Path) -> None:
    (tmp_path / "speed.md").write_text(
        "| what | x |\n|---|---|\n| one row | 2 |\n| a batch | 3 |\n\n| other | y |\n|---|---|\n| last | 4 |\n"
    )
    page = "Look:\n\n<!-- figures speed: a batch; one row; last -->\nold\n<!-- /figures -->\n\nEnd.\n"
    want = "| what | x |\n|---|---|\n| a batch | 3 |\n| one row | 2 |\n\n| other | y |\n|---|---|\n| last | 4 |\n"
    assert quoted.requoted(page, tmp_path) == page.replace("old\n", want)
    parted = page.replace("a batch", "a ... | 3 |")
    assert quoted.requoted(parted, tmp_path) == parted.replace("old\n", want)
    with pytest.raises(ValueError, match=r"speed\.md must have a row that begins with 'two rows'"):
        quoted.requoted(page.replace("one row", "two rows"), tmp_path)
    with pytest.raises(ValueError, match="figures must be of a benchmark that was run, got 'nothing'"):
        quoted.requoted(page.replace("speed", "nothing"), tmp_path)


def test_architecture_names_every_package_in_its_layer_when_read() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| ([\w-]+) \|", _text("architecture"), re.MULTILINE)
    told = {name.rstrip("/"): layer for names, layer in rows for name in re.findall(r"`([\w/]+)`", names)}
    heads = {module.removeprefix("mlflow_opt.").split(".")[0]: test_layers._layer(module) for module in sorted(test_layers.FILES)}
    assert len(heads) > 30
    assert {name: layer for name, layer in heads.items() if told.get(name) != layer} == {}


def test_guides_are_written_for_every_recipe_when_generated() -> None:
    found = entries()
    text = recipe_guides.filled("# Page\n", found, ())
    for entry in found:
        assert (f"## {entry.name}\n" in text) == (entry.kind == "recipe")
    assert "| `budget_s` | `60.0` | seconds that timing for the verdict may take. |" in text
    with pytest.raises(ValueError, match="must tell of recipes that there are, got juggle"):
        recipe_guides.filled("<!-- recipe juggle -->\n<!-- /recipe -->\n", found, ())
