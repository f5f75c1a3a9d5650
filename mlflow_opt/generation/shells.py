"""Completion of `mlflow-opt` for bash, zsh and fish: names, parameters and their choices, written from the signatures.

Each script is self-contained text that knows everything at once, so that pressing Tab starts no Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from mlflow_opt.declaration.entries import Entry
from mlflow_opt.declaration.parameter import Parameter, to_text


def bash(found: Sequence[Entry]) -> str:
    """Write the completion for bash; without a choice to offer it offers files.

    Args:
        found: recipes and commands.
    """
    values = [
        f"    '{entry.name} --{item.name}') words='{' '.join(_choices(item))}' ;;"
        for entry in found
        for item in entry.signature().parameters
        if _choices(item)
    ]
    flags = [f"    {entry.name}) words='{' '.join(f'--{name}' for name in entry.signature().names)}' ;;" for entry in found]
    return "\n".join(
        [
            "_mlflow_opt() {",
            '  local words="" current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
            f"  if [ \"$COMP_CWORD\" = 1 ]; then words='{' '.join(_first(found))}'",
            '  elif [ "$COMP_CWORD" = 2 ] && [ "$previous" = completion ]; then words="bash zsh fish"',
            '  else case "${COMP_WORDS[1]} $previous" in',
            *values,
            '    *" --"*) words="" ;;',
            '    *) case "${COMP_WORDS[1]}" in',
            *(f"  {line}" for line in flags),
            "      esac ;;",
            "  esac; fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o default -F _mlflow_opt mlflow-opt",
        ]
    )


def zsh(found: Sequence[Entry]) -> str:
    """Write the completion for zsh, with a sentence beside each name.

    Args:
        found: recipes and commands.
    """
    names = [_described(entry.name, entry.signature().summary) for entry in found]
    values = [
        f"    '{entry.name} --{item.name}') compadd {' '.join(_choices(item))}; return ;;"
        for entry in found
        for item in entry.signature().parameters
        if _choices(item)
    ]
    flags = [
        f"    {entry.name}) flags=({' '.join(_described(f'--{item.name}', item.doc) for item in entry.signature().parameters)}) ;;"
        for entry in found
    ]
    return "\n".join(
        [
            "#compdef mlflow-opt",
            "_mlflow_opt() {",
            "  local -a names flags",
            "  if (( CURRENT == 2 )); then",
            f"    names=({' '.join(names)})",
            "    _describe 'recipe or command' names; return",
            "  fi",
            '  if [[ $CURRENT == 3 && "$words[2]" == completion ]]; then compadd bash zsh fish; return; fi',
            '  case "$words[2] $words[CURRENT-1]" in',
            *values,
            "    *' --'*) _files; return ;;",
            "  esac",
            '  case "$words[2]" in',
            *flags,
            "  esac",
            "  _describe 'parameter' flags",
            "}",
            "compdef _mlflow_opt mlflow-opt",
        ]
    )


def fish(found: Sequence[Entry]) -> str:
    """Write the completion for fish, with a sentence beside each name.

    Args:
        found: recipes and commands.
    """
    lines = ["complete -c mlflow-opt -f -n __fish_use_subcommand"]
    for entry in found:
        signature = entry.signature()
        lines.append(f"complete -c mlflow-opt -n __fish_use_subcommand -a {entry.name} -d {_fish(signature.summary)}")
        for item in signature.parameters:
            choices = f"-x -a {_fish(' '.join(_choices(item)))}" if _choices(item) else "-r -F"
            where = f"-n '__fish_seen_subcommand_from {entry.name}'"
            lines.append(f"complete -c mlflow-opt {where} -l {item.name} {choices} -d {_fish(item.doc)}")
    return "\n".join([*lines, "complete -c mlflow-opt -f -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'"])


def _first(found: Sequence[Entry]) -> list[str]:
    return [*(entry.name for entry in found), "--help", "--version"]


def _choices(item: Parameter) -> list[str]:
    if item.choices:
        return [to_text(choice) for choice in item.choices]
    return ["true", "false"] if item.kind == "bool" else []


def _described(name: str, text: str) -> str:
    """Write a name with its description as zsh takes them, a colon between."""
    return shlex.quote(f"{name}:{text.replace(':', chr(92) + ':')}")


def _fish(text: str) -> str:
    """Quote text for fish, which knows only the backslash and the quote inside single quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
