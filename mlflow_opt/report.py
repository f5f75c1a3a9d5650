"""Show what a recipe found: the table of variants, the Pareto plot, the page. Rows go in; text, a figure or HTML comes out."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_opt import metrics
from mlflow_opt.records import Measurement, Outcome, Param, Policy, Verdict

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
    """

    name: str
    metrics: Mapping[str, float]
    params: Mapping[str, Param] = field(default_factory=dict)
    run_id: str = ""
    model_id: str = ""
    standing: str = ""


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
    body = [[row.name, *(show(name, row.metrics.get(name)) for name in names), row.standing] for row in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
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


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;display:block;overflow-x:auto}}th,td{{padding:.3rem .7rem;border-bottom:1px solid #8884;text-align:right}}
th:first-child,td:first-child,th:last-child,td:last-child{{text-align:left}}pre{{overflow-x:auto;padding:1rem;background:#8881}}
.PASS{{color:#2a9d3a}}.FAIL{{color:#d33}}.INCONCLUSIVE{{color:#c80}}</style>
<h1>{title}</h1><p class="{outcome}"><strong>{outcome}</strong></p><ul>{reasons}</ul>
{figure}{table}{findings}<h2>Run it again</h2><pre>{command}</pre></html>"""


def page(title: str, rows: Sequence[Row], headline: str, verdict: Verdict | None, findings: Sequence[str], command: str) -> str:
    """Write the self-contained page: verdict with reasons, interactive Pareto plot, table, findings, the command to repeat it."""
    reasons = "".join(f"<li class='{r.outcome.value}'>{html.escape(r.text)}</li>" for r in verdict.reasons) if verdict else ""
    return _PAGE.format(
        title=html.escape(title),
        outcome=verdict.outcome.value if verdict else "nothing chosen",
        reasons=reasons,
        figure=_figure(rows, headline),
        table=_html_table(rows, headline),
        findings="".join(f"<p>{html.escape(text)}</p>" for text in findings),
        command=html.escape(command),
    )


def _figure(rows: Sequence[Row], headline: str) -> str:
    import plotly.graph_objects as go

    shown = [row for row in rows if "latency_p50_ms" in row.metrics and headline in row.metrics]
    if not shown:
        return ""
    figure = go.Figure(
        go.Scatter(
            x=[row.metrics["latency_p50_ms"] for row in shown],
            y=[row.metrics[headline] for row in shown],
            text=[row.name for row in shown],
            customdata=[[row.standing, row.metrics.get("speedup", math.nan)] for row in shown],
            hovertemplate="%{text}<br>%{x:.3g} ms, %{y:.4f}<br>speedup %{customdata[1]:.2f}<br>%{customdata[0]}<extra></extra>",
            mode="markers+text",
            textposition="top center",
            marker={"size": 11, "color": [{"baseline": "#d62728", "chosen": "#2ca02c"}.get(r.standing, "#1f77b4") for r in shown]},
        )
    )
    figure.update_xaxes(type="log", title="latency_p50_ms, one row")
    figure.update_yaxes(title=f"{headline} on the selection rows")
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(128,128,128,0.06)", font={"color": "#888"}, height=480)
    return str(figure.to_html(full_html=False, include_plotlyjs=True, config={"responsive": True}))


def _html_table(rows: Sequence[Row], headline: str) -> str:
    names = columns(rows, headline)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("variant", *names, "standing"))
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in (row.name, *(show(n, row.metrics.get(n)) for n in names), row.standing))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
