"""The page of all benchmark results, from the files that the benchmarks wrote: docs/benchmarks.md."""

from __future__ import annotations

import ast
from pathlib import Path

_HEAD = """# Benchmarks

All that the committed benchmarks measured, losses included; `make sync` writes this page from `benchmarks/results/`. Each figure is run
anew by `python -m benchmarks.NAME` (`make bench` runs all). Speed is timed in turns in fresh processes; brackets hold 95% intervals.
Ratios carry over to other machines, milliseconds do not; each section names its machine.
"""


def results_page(benchmarks: Path) -> str:
    """Write the page: a section for each results file, under the first sentence of the benchmark that wrote it.

    Args:
        benchmarks: the folder of the benchmarks; their results lie in `results/`.

    Raises:
        ValueError: a results file was written by no benchmark in the folder.
    """
    told = {path.stem: _says(path) for path in sorted(benchmarks.glob("*.py")) if path.stem != "__init__"}
    parts = [_HEAD]
    for path in sorted((benchmarks / "results").glob("*.md")):
        # A benchmark of several parts writes NAME_part.
        name = max((name for name in told if path.stem == name or path.stem.startswith(f"{name}_")), key=len, default="")
        if not name:
            raise ValueError(f"results must be of a benchmark, got {path.name}, and there is no {path.stem}.py; remove the file.")
        parts.append(f"## `{path.stem}`\n\n{told[name]} (`benchmarks/{name}.py`)\n\n{path.read_text(encoding='utf-8').strip()}\n")
    return "\n".join(parts)


def _says(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    return " ".join(text.partition("\n\n")[0].split())
