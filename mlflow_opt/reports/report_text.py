"""Findings are written once, in Markdown, and stand in three places: a run's description, the page, the terminal."""

from __future__ import annotations

import html
import re

from mlflow_opt.reports.report_page import table

# A link within MLflow's pages: it leads nowhere from a page of its own or a terminal.
_LINK = re.compile(r"\[([^\]]+)\]\(#[^)]*\)")
_RULE = re.compile(r"^\|[-| :]+\|$")
# An interval keeps to its line.
_LIMITS = re.compile(r" (\[[-+.,\d x%]+\])")
_CODE = re.compile(r"`([^`]+)`")


def without_links(text: str) -> str:
    """Leave the words of links to other runs.

    Example:
        >>> without_links("see [tune](#/experiments/1/runs/2), F1 [0.5, 0.6]")
        'see tune, F1 [0.5, 0.6]'
    """
    return _LINK.sub(r"\1", text)


def as_html(text: str) -> str:
    """Write a finding as HTML: paragraphs, tables, lists and code.

    Example:
        >>> as_html("One `row`.")
        '<p>One <code>row</code>.</p>'

    Args:
        text: Markdown of these few kinds, with an empty line between blocks.
    """
    return "".join(_block(block.splitlines()) for block in without_links(text).split("\n\n") if block.strip())


def _block(lines: list[str]) -> str:
    if len(lines) > 1 and lines[0].startswith("|") and _RULE.match(lines[1]):
        head, *rows = ([_cell(cell.strip()) for cell in line.strip()[1:-1].split("|")] for line in [lines[0], *lines[2:]])
        texts = tuple(at for at in range(len(head)) if any(row[at] and not _is_number(row[at]) for row in rows))
        return table(head, rows, text=texts)
    if all(line.startswith("- ") for line in lines):
        return f"<ul class='plain'>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _is_number(cell: str) -> bool:
    return cell[:1] in "+-0123456789"


def _cell(text: str) -> str:
    return _LIMITS.sub(r" <small>\1</small>", _inline(text))


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(text, quote=False))
