"""Quote rows of the committed benchmark results in a page of the docs, so that no figure is copied by hand and none grows old."""

from __future__ import annotations

import re
from pathlib import Path

# <!-- figures quantize: int8 over float; accuracy lost -->
_BLOCK = re.compile(r"(<!-- figures (?P<name>\w+): (?P<rows>[^>]*?) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_RULE = re.compile(r"^\|[-| ]+\|$")


def requoted(text: str, results: Path) -> str:
    """Give a page with its quoted figures as the results have them now.

    Args:
        text: of the page; `<!-- figures NAME: row; row -->` and `<!-- /figures -->` stand around each quotation, and name the
            results file and the beginnings of the rows; `telco_churn ... cheapest` begins with the one and holds the other.
        results: folder of the results' Markdown.

    Raises:
        ValueError: a results file or a row that is quoted does not exist.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{_quotation(results / (found['name'] + '.md'), found['rows'].split('; '))}{found[4]}", text)


def _quotation(path: Path, wanted: list[str]) -> str:
    if not path.exists():
        raise ValueError(f"figures must be of a benchmark that was run, got '{path.stem}', which has no {path.name}; run it first.")
    lines = path.read_text(encoding="utf-8").splitlines()
    quoted: list[str] = []
    for row in wanted:
        begins, *holds = row.split(" ... ")
        fitting = (index for index, line in enumerate(lines) if line.startswith(f"| {begins}") and all(one in line for one in holds))
        at = next(fitting, -1)
        if at < 0:
            raise ValueError(f"{path.name} must have a row that begins with '{row}', and has none; quote another.")
        rule = next(index for index in range(at, -1, -1) if _RULE.match(lines[index]))
        head = lines[rule - 1 : rule + 1]
        # Rows of one table stand below one head.
        quoted += lines[at : at + 1] if head[0] in quoted else [*([""] if quoted else []), *head, lines[at]]
    return "\n".join(quoted) + "\n"
