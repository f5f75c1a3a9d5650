"""The README's figures are those that the committed benchmarks wrote, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from mlflow_opt.declaration.entries import entries

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_quotes_no_figure_when_no_benchmark_wrote_it() -> None:
    quoted = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    written = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")))
    rows = [line for line in quoted.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in written] == []


def test_docs_name_no_command_when_it_does_not_exist() -> None:
    known = {entry.name for entry in entries()} | {"NAME", "--help"}
    # The recipe that docs/adding-a-technique.md writes.
    known |= {"round_weights"}
    texts = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
    named = [name for text in texts for name in re.findall(r"(?:`|\$ )mlflow-opt ([a-zA-Z_-]+)", text)]
    run = [name for text in texts for name in re.findall(r"mlflow run \. -e ([a-z_]+)", text)]
    assert len(named) + len(run) > 6
    assert sorted({name for name in named + run if name not in known}) == []
