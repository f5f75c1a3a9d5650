"""Write the shell's completion of names, parameters and choices."""

from __future__ import annotations

import sys
from typing import Literal

from mlflow_opt.declaration.entries import entries
from mlflow_opt.generation import shells
from mlflow_opt.signature import run

# What it writes is for the shell that asks.
CLI_ONLY = True


def completion(*, shell: Literal["bash", "zsh", "fish"]) -> None:
    """Write a completion script for a shell, made from the signatures of what is installed.

    Use it once for the session, `source <(mlflow-opt completion bash)`, or in the shell's start file; in fish,
    `mlflow-opt completion fish | source`. Make it anew after an upgrade.

    Example:
        mlflow-opt completion bash

    Args:
        shell: that will read it.

    References:
        Documentation of bash ("Programmable Completion"), zsh ("Completion System") and fish ("complete").
    """
    sys.stdout.write({"bash": shells.bash, "zsh": shells.zsh, "fish": shells.fish}[shell](entries()) + "\n")


if __name__ == "__main__":
    run(completion)
