"""Show what a recipe found: the table of variants, the verdict, the Pareto plot. Rows go in; text or a figure comes out."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_opt import metrics
from mlflow_opt.declaration.parameter import to_text
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.records import Measurement, Outcome, Param, Policy, Quantity, Verdict

_COLUMNS = ("speedup", "latency_p50_ms", "latency_p99_ms", "size_mb", "label_flips")


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a variant or the baseline, with its metrics on the selection rows.

    Args:
        name: of the variant.
        metrics: plain metric names to values.
        params: what made it.
        run_id: its child run.
        model_id: its logged model.
        standing: `baseline`, `chosen`, `passes`, `misses: ...` or what kept it out.
        quantities: the metrics that have an interval, with it.
    """

    name: str
    metrics: Mapping[str, float]
    params: Mapping[str, Param] = field(default_factory=dict)
    run_id: str = ""
    model_id: str = ""
    standing: str = ""
    quantities: Mapping[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True)
class Exhibit:
    """What a recipe shows besides its variants: a section of the page, and its text in the run's description.

    Args:
        title: heading of the section.
        text: Markdown.
        figures: HTML above the text, on the page alone.
    """

    title: str
    text: str
    figures: str = ""


@dataclass(frozen=True)
class Closing:
    """What a recipe ends with.

    Args:
        recipe: its name.
        params: its parameters.
        rows: baseline first, then the variants.
        headline: the quality metric that stands for quality.
        findings: what the figures mean, in sentences.
        register_as: registered model, `""` if none.
        version: the new version, `""` if nothing was registered.
        aim: what was looked for: `latency`, `quality`, or `first` for a model that nothing is compared with.
        facts: where the figures come from, name to words.
        scored: answers on the selection rows of the models whose calibration is shown, by name.
        exhibits: what is the recipe's own to show.
    """

    recipe: str
    params: Mapping[str, Any]
    rows: Sequence[Row]
    headline: str
    findings: tuple[str, ...]
    register_as: str
    version: str
    aim: str = "latency"
    facts: Mapping[str, str] = field(default_factory=dict)
    scored: Mapping[str, Scored] = field(default_factory=dict)
    exhibits: Sequence[Exhibit] = ()

    @property
    def command(self) -> str:
        """Return the exact command to run it again."""
        given = [f"-P {shlex.quote(f'{key}={to_text(value)}')}" for key, value in self.params.items() if value != ""]
        return f"mlflow run . -e {self.recipe} {' '.join(given)}".rstrip()

    @property
    def chosen(self) -> Row | None:
        """Return the chosen row, None if nothing was chosen."""
        return next((row for row in self.rows if row.standing == "chosen"), None)


def columns(rows: Sequence[Row], headline: str) -> list[str]:
    """Pick the columns worth showing: the headline quality and its drop, then cost, each only where some row has it."""
    wanted = (headline, f"drop_{headline}", *_COLUMNS)
    return [name for name in wanted if any(name in row.metrics for row in rows)]


def markdown_table(rows: Sequence[Row], headline: str) -> str:
    """Write the comparison as a Markdown table that also reads well as plain text.

    Example:
        >>> print(markdown_table([Row("fp32", {"accuracy": 0.9, "speedup": 2.0}, standing="passes")], "accuracy"))
        | variant | accuracy | speedup | standing |
        | ------- | -------- | ------- | -------- |
        | fp32    | 0.9000   | 2.00x   | passes   |
    """
    names = columns(rows, headline)
    head = ["variant", *names, "standing"]
    return text_table(head, [[row.name, *(show(name, row.metrics.get(name)) for name in names), row.standing] for row in rows])


def text_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns line up as plain text, too.

    Args:
        head: column names.
        body: cells.
    """
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [head, ["-" * max(width, 3) for width in widths], *body]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def show(name: str, value: float | None) -> str:
    """Write one value in the unit its name implies."""
    if value is None or not math.isfinite(value):
        return "-"
    if name in metrics.RELATIVE:
        return f"{value:.2f}x"
    if name == "label_flips":
        return f"{value:.0f}"
    if name.startswith(("latency", "pyfunc")):
        return f"{value:.3g}"
    return f"{value:+.4f}" if "drop_" in name else f"{value:.4f}" if metrics.is_quality(name) else f"{value:.4g}"


def verdict_lines(verdict: Verdict) -> list[str]:
    """Write a verdict as one line a reason, the decisive ones first."""
    order = {Outcome.FAIL: 0, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 2}
    ranked = sorted(verdict.reasons, key=lambda reason: order[reason.outcome])
    return [f"{reason.outcome.value:<12} {reason.text}" for reason in ranked]


def verdict_json(verdict: Verdict, measured: Measurement, policy: Policy, binding: Mapping[str, object]) -> str:
    """Write everything that the decision rests on, for machines."""
    reasons = [
        {
            "outcome": reason.outcome.value,
            "text": reason.text,
            "quantity": reason.criterion.quantity if reason.criterion else None,
            "side": reason.criterion.side if reason.criterion else None,
            "bound": reason.criterion.bound if reason.criterion else None,
        }
        for reason in verdict.reasons
    ]
    quantities = {name: [q.value, q.lo, q.hi, q.n] for name, q in measured.quantities.items()}
    document = {
        "outcome": verdict.outcome.value,
        "reasons": reasons,
        "quantities": quantities,
        "confidence": policy.confidence,
        "doubt": measured.doubt,
        **binding,
    }
    return json.dumps(document, indent=2)


def pareto_names(rows: Sequence[Row], headline: str) -> set[str]:
    """Name the rows that no other row beats in both latency and headline quality."""
    sign = 1 if metrics.larger_is_better(headline) else -1
    points = {
        row.name: (row.metrics["latency_p50_ms"], -sign * row.metrics[headline])
        for row in rows
        if "latency_p50_ms" in row.metrics and headline in row.metrics
    }
    return {
        name
        for name, point in points.items()
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points.values())
    }


def save_pareto(rows: Sequence[Row], headline: str, path: Path) -> None:
    """Draw latency against quality, one dot a variant, the Pareto front joined; nothing is drawn without latencies."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if "latency_p50_ms" in row.metrics and headline in row.metrics]
    front = sorted((row for row in shown if row.name in pareto_names(rows, headline)), key=lambda row: row.metrics["latency_p50_ms"])
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="tight")
    axes = figure.subplots()
    axes.plot([r.metrics["latency_p50_ms"] for r in front], [r.metrics[headline] for r in front], color="#8c8c8c", zorder=1)
    for row in shown:
        colour = {"baseline": "#d62728", "chosen": "#2ca02c"}.get(row.standing.split(":")[0], "#1f77b4")
        axes.scatter(row.metrics["latency_p50_ms"], row.metrics[headline], color=colour, zorder=2)
        axes.annotate(
            row.name, (row.metrics["latency_p50_ms"], row.metrics[headline]), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlabel("latency_p50_ms (one row, log scale; left is faster)")
    axes.set_ylabel(f"{headline} on the selection rows")
    axes.set_title("Red: baseline. Green: chosen. Grey line: Pareto front.", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path)
