"""Where a benchmark's figures go: a JSON for machines and the Markdown that the README quotes, with the machine they hold for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.records import Quantity

FOLDER = Path(__file__).resolve().parent / "results"


def save(name: str, figures: dict[str, Any], lines: list[str], threads: int = 1) -> None:
    """Write a benchmark's result files and show the Markdown.

    Args:
        name: of the benchmark.
        figures: everything measured.
        lines: Markdown lines, the table first.
        threads: threads that one call could use.
    """
    FOLDER.mkdir(exist_ok=True)
    machine, day = fingerprint(threads), time.strftime("%Y-%m-%d")
    (FOLDER / f"{name}.json").write_text(json.dumps({"date": day, "machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
    text = "\n".join([*lines, "", f"Measured {day} on: {machine}.", ""])
    (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def interval(values: Any, form: str = "{:.2f}") -> str:
    """Write a quantity (value, lo, hi) with its interval.

    Example:
        >>> interval((2.0, 1.9, 2.1))
        '2.00 [1.90, 2.10]'
    """
    value, lo, hi = values[:3]
    return f"{form.format(value)} [{form.format(lo)}, {form.format(hi)}]"


def ends(quantity: Quantity) -> tuple[float, float, float]:
    """Give a quantity as `interval` takes it, and as JSON holds it."""
    return quantity.value, quantity.lo, quantity.hi
