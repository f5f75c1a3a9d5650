"""`mlflow-opt NAME --flag ...`: every recipe and command by name, imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from mlflow_opt.entries import Entry, entries
from mlflow_opt.manual import manual
from mlflow_opt.parameter import nearest
from mlflow_opt.signature import COULD_NOT_RUN, execute, guard, parse

_USAGE = """usage: mlflow-opt NAME --parameter value ...
       mlflow-opt NAME --help       what it does, when it helps, its parameters
       mlflow-opt recipes           this list
       mlflow-opt --version
       mlflow-opt --completion bash >> ~/.bashrc
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
    if name in ("-h", "--help", "recipes"):
        print(overview(tuple(found.values())))
        return 0
    if name == "--version":
        print(version("mlflow-opt"))
        return 0
    if name == "--completion" and rest in (["bash"], []):
        print(completion(tuple(found.values())))
        return 0
    message = (
        f"the first word must be a recipe or command, got '{name}'{nearest(name, [*found, 'recipes'])} `mlflow-opt --help` lists them."
    )
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


def completion(found: Sequence[Entry]) -> str:
    """Write a bash completion of names and flags.

    Args:
        found: what there is.
    """
    cases = [f"    {entry.name}) words='{' '.join('--' + name for name in entry.signature().names)}' ;;" for entry in found]
    names = " ".join([*(entry.name for entry in found), "recipes", "--help", "--version"])
    return "\n".join(
        [
            "_mlflow_opt() {",
            "  local words",
            '  case "${COMP_WORDS[1]}" in',
            *cases,
            "    *) words='' ;;",
            "  esac",
            f"  [ \"$COMP_CWORD\" = 1 ] && words='{names}'",
            '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
            "}",
            "complete -o default -F _mlflow_opt mlflow-opt",
        ]
    )


def _start(entry: Entry, argv: Sequence[str]) -> int:
    # Help is read from the source: importing a recipe imports MLflow, which takes seconds.
    if "-h" in argv or "--help" in argv:
        print(manual(entry.signature()), end="")
        return 0
    return guard(entry.name, lambda: _run(entry, argv))


def _run(entry: Entry, argv: Sequence[str]) -> int:
    # From the source as well, so that a mistyped flag is refused at once.
    parse(entry.signature(), argv)
    return execute(entry.load(), argv)


if __name__ == "__main__":
    sys.exit(main())
