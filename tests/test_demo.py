"""The demo is the README's first command: it must run to its end, with a promotion and two refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_demo_promotes_and_refuses_when_run_as_the_readme_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlflow_opt.commands.demo", "--folder", str(tmp_path / "demo")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-5000:]
    assert "is now 'champion'" in told
    assert told.count("403 from the registry") == 2
    assert "drop_accuracy must be at most" in told
    assert "has no evidence" in told
