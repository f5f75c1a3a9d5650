"""The docs do what they say: their commands run, their files work, their policies parse, their links and pictures exist."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from mlflow_opt import metrics, policy
from mlflow_opt.generation import quoted
from mlflow_opt.generation.policy_reference import bounds_table, keys_table, metrics_table
from mlflow_opt.policy import parse_policy
from tests.pages import reader

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
OWN = ("tutorial", "policy", "adding-a-technique", "faq")


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


@pytest.mark.parametrize("name", OWN)
def test_page_is_followed_whole_when_it_has_commands(name: str) -> None:
    followed = {"tutorial", "adding-a-technique"}
    assert (name in followed) == ("```console" in _text(name)), "a page with commands needs a test that follows it"


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
    with pytest.raises(ValueError, match=r"speed\.md must have a row that begins with 'two rows'"):
        quoted.requoted(page.replace("one row", "two rows"), tmp_path)
    with pytest.raises(ValueError, match="figures must be of a benchmark that was run, got 'nothing'"):
        quoted.requoted(page.replace("speed", "nothing"), tmp_path)
