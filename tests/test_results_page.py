from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_opt.generation.results_page import results_page


def benchmarks(folder: Path) -> Path:
    (folder / "results").mkdir()
    (folder / "speed.py").write_text('"""How fast\nit is.\n\nMore.\n"""\n')
    (folder / "results" / "speed.md").write_text("| what |\n|---|\n| 2x |\n")
    return folder


def test_page_shows_each_result_under_what_its_benchmark_says_when_written(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path)
    (folder / "results" / "speed_large.md").write_text("| 3x |\n")
    page = results_page(folder)
    assert "## `speed`\n\nHow fast it is. (`benchmarks/speed.py`)\n\n| what |\n|---|\n| 2x |\n" in page
    assert "## `speed_large`\n\nHow fast it is. (`benchmarks/speed.py`)" in page


def test_page_is_refused_when_nobody_wrote_a_result(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path)
    (folder / "results" / "other.md").write_text("| 3x |\n")
    with pytest.raises(ValueError, match=r"must be of a benchmark, got other\.md"):
        results_page(folder)
