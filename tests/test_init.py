from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlflow_opt.commands.init import init
from mlflow_opt.policy import default_policy, parse_policy, read_policy


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_init_writes_the_default_policy_when_asked_for_a_task(task: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    init(path=str(path), task=task)  # type: ignore[arg-type]  # parametrized text, one of the literals
    assert read_policy(path).digest == default_policy(task).digest


def test_init_keeps_a_file_that_exists_when_not_forced(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        init(path=str(path))
    assert path.read_text() == "mine"
    init(path=str(path), force=True)
    assert read_policy(path).criteria


def test_init_writes_settings_that_a_policy_takes_when_uncommented(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    init(path=str(path))
    text = re.sub(r"^# (\w+:)", r"\1", path.read_text(), flags=re.MULTILINE)
    policy = parse_policy(text)
    assert policy.waivers == ("ann",)
    assert policy.trusted_experiments == ("12",)
    assert policy.verify_files
