"""The table of attacks in docs/gate.md: every test it names exists, and every attack there is is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mlflow_opt.commands.init import _TEMPLATE
from mlflow_opt.policy import KEYS, parse_policy
from tests.test_plugin_attacks import ATTACKS
from tests.test_plugin_trust import FORGERIES

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "gate.md").read_text()
TABLE = GUIDE.partition("<!-- attacks -->")[2].partition("<!-- /attacks -->")[0]


def named() -> set[str]:
    return set(re.findall(r"`(\w+)`", "\n".join(line.rpartition("| ")[2] for line in TABLE.splitlines())))


def test_table_names_tests_that_exist() -> None:
    defined = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (\w+)", path.read_text(), re.MULTILINE)}
    assert not named() - defined
    assert len(named()) > 70


def test_table_names_every_attack_and_forgery_that_is_tried() -> None:
    assert not {attack.__name__ for attack in (*ATTACKS, *FORGERIES)} - named()


@pytest.mark.parametrize("key", KEYS)
def test_policy_key_is_explained_when_a_new_file_is_written(key: str) -> None:
    assert re.search(rf"^(# )?{key}:", _TEMPLATE, re.MULTILINE)


def test_policies_in_the_guide_are_ones_that_can_be_read() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if "[...]" not in block]
    read = [parse_policy(yaml.safe_dump(entry)) for block in blocks for entry in block.values() if "validation_criteria" in entry]
    assert read


def test_bounds_of_the_migration_note_are_ones_that_a_policy_takes() -> None:
    rows = [line for line in GUIDE.partition("## Coming from elsewhere")[2].splitlines() if line.startswith("|")]
    texts = [text for line in rows for text in re.findall(r"`(\{metric: [^`]*\})`", line.rpartition("` |")[0] + line[-200:])]
    ours = [text for text in texts if "threshold" not in text]
    assert len({parse_policy(f"validation_criteria: [{text}]").criteria[0] for text in ours}) >= 7
