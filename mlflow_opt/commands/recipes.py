"""List the recipes, one line each."""

from __future__ import annotations

import sys
import textwrap

from mlflow_opt.declaration.entries import entries, helps
from mlflow_opt.signature import run

# It reads the files of this installation and writes to a terminal.
CLI_ONLY = True

_WIDTH = 100


def recipes(*, when: bool = False) -> None:
    """List the recipes, one line each: its name and what it does.

    Use it to find the one to run; `mlflow-opt NAME --help` then says when it helps, when it does not, and what it takes.

    Example:
        mlflow-opt recipes --when true

    Args:
        when: also say what each recipe helps.

    References:
        README, section "Recipes".
    """
    found = [entry for entry in entries() if entry.kind == "recipe"]
    width = max((len(entry.name) for entry in found), default=0)
    for entry in found:
        signature = entry.signature()
        sys.stdout.write(f"{entry.name:<{width}}  {signature.summary}\n")
        if when and helps(signature):
            indent = " " * (width + 2)
            sys.stdout.write(textwrap.fill(f"helps {helps(signature)}", _WIDTH, initial_indent=indent, subsequent_indent=indent) + "\n")


if __name__ == "__main__":
    run(recipes)
