from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_opt.commands.keygen import keygen
from mlflow_opt.verdicts import signing


def test_keygen_writes_a_pair_that_nobody_else_can_read_when_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ci.key"
    keygen(path=str(path))
    public = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing.public_key("ci.key.pub", tmp_path) == public
    monkeypatch.setenv(signing.VARIABLE, str(path))
    assert signing.own_public_key() == public


def test_keygen_never_overwrites_a_key_when_the_file_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ci.key"
    path.write_text("in use")
    with pytest.raises(ValueError, match="exists"):
        keygen(path=str(path), json=True)
    assert path.read_text() == "in use"
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 3
    assert "exists" in told["error"]
