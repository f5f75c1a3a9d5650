"""The page of the recipe `serve`: what each setting sustains, the curves of rate over latency, what was stored, what to do next."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_opt.reports.report_charts import COLOURS, GREY
from mlflow_opt.reports.report_page import Chart, Section, chart, commands, page, table
from mlflow_opt.reports.report_sections import tile
from mlflow_opt.serving import study_report
from mlflow_opt.serving.contender import Objective

if TYPE_CHECKING:
    from mlflow_opt.serving.study import Tried


def study_page(tried: Sequence[Tried], chosen: Tried | None, lines: Sequence[str], objective: Objective, params: Mapping[str, Any]) -> str:
    """Write the self-contained page of a study.

    Args:
        tried: every setting, `mlflow models serve` first.
        chosen: what was stored, None if nothing met the objective.
        lines: what the figures mean.
        objective: what was asked.
        params: of the recipe.
    """
    model, data = (str(params.get(name, "")) for name in ("model", "data"))
    again = "mlflow run . -e serve " + " ".join(
        f"-P {shlex.quote(f'{name}={value}')}"
        for name, value in (("model", model), ("data", data), ("p95_ms", objective.p95_ms))
        if value != ""
    )
    then = [("Measure again:", again)]
    if chosen and model:
        then.insert(0, ("Serve it, with what was stored:", f"mlflow-opt start_server --model {shlex.quote(model)}"))
    sections = [
        Section(
            "What was tried",
            chart(_curves(tried, objective), "p95 over the rate of requests, a line for each setting") + _table(tried, chosen, params),
        ),
        Section("What the figures mean", "".join(f"<p>{html.escape(line)}</p>" for line in lines)),
        Section("What to do next", commands(then)),
    ]
    return page("serve", _header(tried, chosen, objective, model or "a default model that this run trained"), sections)


def _header(tried: Sequence[Tried], chosen: Tried | None, objective: Objective, model: str) -> str:
    word, style = ("objective met", "PASS") if chosen else ("objective not met", "FAIL")
    lead = (
        f"Asked for: the most requests per second of which 95% are answered within {objective.p95_ms:g} ms of the moment they were meant "
        f"to be sent. Client and server share this machine."
    )
    tiles = ""
    if chosen:
        before = tried[0].found.sustained
        gain = f"{chosen.found.sustained / before:.1f}x" if before else "-"
        tiles = tile(f"{chosen.found.sustained:,.0f}/s", f"requests, {html.escape(chosen.name)}", f"before {before:,.0f}/s")
        tiles += tile(gain, "over mlflow models serve", f"at p95 {objective.p95_ms:g} ms")
        tiles += tile(f"{chosen.found.best.p95_ms:.2g} ms", "p95 at that rate", f"p99 {chosen.found.best.p99_ms:.2g} ms")
        tiles += tile(f"{chosen.found.cpu_us:,.0f} us", "processor time a request", f"before {tried[0].found.cpu_us:,.0f} us")
    return (
        f"<h1>serve <span class='badge {style}'>{word}</span></h1><p class='from'>{html.escape(model)}</p>"
        f"<p class='lead'>{html.escape(lead)}</p><div class='tiles'>{tiles}</div>"
    )


def _curves(tried: Sequence[Tried], objective: Objective) -> Chart:
    traces: list[dict[str, Any]] = []
    for index, one in enumerate(tried):
        shown = [load for load in one.found.curve if load.offered > 0 and math.isfinite(load.p95_ms)]
        traces.append(
            {
                "x": [load.offered for load in shown],
                "y": [load.p95_ms for load in shown],
                "mode": "lines+markers",
                "line": {"color": COLOURS[index % len(COLOURS)], "width": 1.6, "dash": "solid" if index < len(COLOURS) else "dot"},
                "hovertemplate": "%{x:.0f}/s: p95 %{y:.2f} ms<extra>" + one.name + "</extra>",
                "name": one.name,
            }
        )
    rates = [rate for trace in traces for rate in trace["x"]]
    if rates:
        line = {"color": GREY, "dash": "dash", "width": 1.2}
        ends = [min(rates), max(rates)]
        traces.append({"x": ends, "y": [objective.p95_ms] * 2, "mode": "lines", "line": line, "hoverinfo": "skip", "name": "objective"})
    layout = {
        "xaxis": {"type": "log", "title": {"text": "requests per second, as they come"}, "dtick": "D2"},
        "yaxis": {"type": "log", "title": {"text": "p95 in ms"}},
    }
    return Chart(traces, layout, "Lower and further right is better; where a line crosses the dashed one is what the setting sustains.")


def _table(tried: Sequence[Tried], chosen: Tried | None, params: Mapping[str, Any]) -> str:
    price = float(params["price_per_core_hour"])
    body = []
    for one in tried:
        got = study_report.metrics(one.found, one.hit_rate, price)
        figures = [f"{got['requests_per_s']:,.0f}", *(f"{got[f'serve_{name}_ms']:.2f}" for name in ("p50", "p95", "p99"))]
        figures += [f"{got['capacity_per_s']:,.0f}", f"{got['cpu_us']:,.0f}", f"{got['cost_per_million']:.4f}", f"{one.hit_rate:.0%}"]
        body.append([html.escape(one.name), "chosen" if one is chosen else "baseline" if one is tried[0] else "", *figures])
    head = ["setting", "", "requests/s", "p50 ms", "p95 ms", "p99 ms", "full load/s", "CPU us", "cost/million", "cache hits"]
    return table(head, body, ["chosen" if one is chosen else "" for one in tried], (0, 1))
