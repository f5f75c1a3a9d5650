"""The generated parts of docs/recipes.md: of each recipe what it does, when it helps and when not, and its own parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from mlflow_opt.declaration.entries import Entry
from mlflow_opt.declaration.parameter import to_text

_BLOCK = re.compile(r"(<!-- recipe (?P<name>\w+) -->\n).*?(<!-- /recipe -->)", re.DOTALL)


def filled(text: str, found: Sequence[Entry], common: Collection[str]) -> str:
    """Give the page with each recipe's part as its docstrings and its signature say; a recipe without a part gets one at the end.

    Args:
        text: of the page; `<!-- recipe NAME -->` and `<!-- /recipe -->` stand around each part.
        found: recipes and commands.
        common: parameters that recipes share, which the page explains once.

    Raises:
        ValueError: a part has no recipe.
    """
    recipes = {entry.name: entry for entry in found if entry.kind == "recipe"}
    named = {block["name"] for block in _BLOCK.finditer(text)}
    if wrong := named - recipes.keys():
        raise ValueError(f"docs/recipes.md must tell of recipes that there are, got {', '.join(sorted(wrong))}; take its part out.")
    for name in sorted(recipes.keys() - named):
        text += f"\n## {name}\n\n<!-- recipe {name} -->\n<!-- /recipe -->\n"
    return _BLOCK.sub(lambda block: f"{block[1]}{guide(recipes[block['name']], common)}{block[3]}", text)


def guide(entry: Entry, common: Collection[str]) -> str:
    """Write what a recipe's docstrings and signature say of it.

    Args:
        entry: the recipe.
        common: parameters to leave out.
    """
    signature = entry.signature()
    own = [item for item in signature.parameters if item.name not in common]
    parts = [signature.summary, signature.details, _plain(signature.background)]
    if own:
        head = ["| its own parameter | default | what it is |", "|---|---|---|"]
        rows = [f"| `{item.name}` | {_default(to_text(item.default))} | {item.doc.replace('|', chr(92) + '|')} |" for item in own]
        parts.append("\n".join([*head, *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(prose: str) -> str:
    # A star that is a footnote or a product would begin emphasis.
    return prose.replace("*", r"\*")


def _default(text: str) -> str:
    return f"`{text}`" if text else "-"
