"""Read a Google-style docstring: its summary, its prose, its `Args:` block and its examples."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_SECTIONS = ("Args", "Example", "Examples", "Raises", "Returns", "References", "Source")
_ENTRY = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True)
class Docstring:
    """A docstring taken apart.

    Args:
        summary: the first paragraph, on one line.
        prose: the paragraphs between the summary and the first section, as they are.
        args: parameter name -> its text, on one line.
        sections: section name -> its text, as it is.
    """

    summary: str
    prose: str
    args: Mapping[str, str]
    sections: Mapping[str, str]


def read_docstring(text: str) -> Docstring:
    r"""Take a Google-style docstring apart.

    Example:
        >>> read_docstring("Prune it.\n\nHelps on wide networks.\n\nArgs:\n    share: of the channels.").args["share"]
        'of the channels.'

    Args:
        text: the docstring, indented or not; `""` gives an empty one.

    Returns:
        The parts; what is missing is empty.
    """
    lines = inspect.cleandoc(text).splitlines()
    starts = [i for i, line in enumerate(lines) if line.rstrip().removesuffix(":") in _SECTIONS and line.rstrip().endswith(":")]
    head = "\n".join(lines[: starts[0]] if starts else lines).strip()
    summary, _, prose = head.partition("\n\n")
    ends = [*starts[1:], len(lines)]
    sections = {
        lines[start].rstrip().removesuffix(":"): inspect.cleandoc("\n" + "\n".join(lines[start + 1 : end]))
        for start, end in zip(starts, ends, strict=False)
    }
    args = _entries(sections.get("Args", ""))
    return Docstring(" ".join(summary.split()), prose.strip(), MappingProxyType(args), MappingProxyType(sections))


def _entries(block: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        found = _ENTRY.match(line)
        if found:
            name = found[1]
            entries[name] = found[2].strip()
        elif name:
            entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
