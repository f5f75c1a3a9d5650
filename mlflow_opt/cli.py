"""`mlflow-opt NAME --flag ...`: every recipe and command by name, imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from mlflow_opt.declaration.entries import Entry, entries
from mlflow_opt.declaration.manual import manual
from mlflow_opt.declaration.parameter import nearest
from mlflow_opt.signature import COULD_NOT_RUN, execute, guard, parse

_USAGE = """usage: mlflow-opt NAME --parameter value ...
       mlflow-opt NAME --help       what it does, when it helps, its parameters
       mlflow-opt recipes           the recipes, one line each
       mlflow-opt --version
       source <(mlflow-opt completion bash)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Be the console script.

    Args:
        argv: the words after `mlflow-opt`; None takes them from the process.

    Returns:
        The exit code: that of the recipe or command, or 3 for a name that is none.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    found = {entry.name: entry for entry in entries()}
    if name in found:
        return _start(found[name], rest)
    if name in ("-h", "--help"):
        print(overview(tuple(found.values())))
        return 0
    if name == "--version":
        print(version("mlflow-opt"))
        return 0
    message = f"the first word must be a recipe or command, got '{name}'{nearest(name, found)} `mlflow-opt --help` lists them."
    print(f"mlflow-opt: {message}", file=sys.stderr)
    return COULD_NOT_RUN


def overview(found: Sequence[Entry]) -> str:
    """List every recipe and command with its one sentence.

    Args:
        found: what there is.
    """
    width = max((len(entry.name) for entry in found), default=0)
    lines = [_USAGE]
    for kind, title in (("recipe", "Recipes"), ("command", "Commands")):
        lines.append(f"{title}:")
        lines.extend(f"  {entry.name:<{width}}  {entry.signature().summary}" for entry in found if entry.kind == kind)
        lines.append("")
    return "\n".join(lines).rstrip()


def _start(entry: Entry, argv: Sequence[str]) -> int:
    # Help is read from the source: importing a recipe imports MLflow, which takes seconds.
    if "-h" in argv or "--help" in argv:
        print(manual(entry.signature()), end="")
        return 0
    return guard(entry.name, lambda: _run(entry, argv))


def _run(entry: Entry, argv: Sequence[str]) -> int:
    signature = entry.signature()
    # `mlflow-opt completion bash`: the only parameter of a command needs no name.
    words = [f"--{signature.names[0]}", *argv] if len(signature.names) == len(argv) == 1 and not argv[0].startswith("-") else argv
    # From the source as well, so that a mistyped flag is refused at once.
    parse(signature, words)
    return execute(entry.load(), words)


if __name__ == "__main__":
    sys.exit(main())
