"""The page that people decide with: one HTML file that needs no network, in light and dark, on a phone and on paper.

Sections come in as HTML, charts as plotly's JSON. Plotly itself is stored compressed in the page (1.9 MB instead of 4.8)
and unpacked by the browser; without scripts the page still has every number, because tables and intervals are plain HTML.
"""

from __future__ import annotations

import base64
import functools
import gzip
import html
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_opt.reports.report_style import STYLE


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title: its heading.
        body: HTML.
        folded: whether it is closed until somebody opens it; on paper it is always open.
    """

    title: str
    body: str
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A plotly figure.

    Args:
        data: its traces.
        layout: what departs from the page's own layout.
        caption: what to see in it.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    caption: str = ""


# Text and grid lines take the page's colours by style sheet, so that a chart follows dark, light and paper by itself.
_LAYOUT = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif", "size": 13},
    "margin": {"l": 64, "r": 16, "t": 16, "b": 56},
    "height": 420,
    "autosize": True,
    "hovermode": "closest",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}
_AXIS = {"gridcolor": "#8885", "zeroline": False, "automargin": True, "ticks": "outside", "tickcolor": "#8885", "fixedrange": True}

_DRAW = """
(async () => {
  const charts = [...document.querySelectorAll('.chart')];
  const packed = document.getElementById('plotly');
  if (!charts.length || !packed) return;
  const bytes = Uint8Array.from(atob(packed.textContent.trim()), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const narrow = matchMedia('(max-width: 40rem)');
  const draw = async wide => { for (const chart of charts) {
    const spec = JSON.parse(chart.querySelector('script').textContent);
    const layout = {...spec.layout};
    if (wide) Object.assign(layout, {width: wide, autosize: false});
    if (!wide && narrow.matches) layout.margin = {...layout.margin, l: 48, r: 8};
    await Plotly.react(chart.querySelector('.plot'), spec.data, layout, {responsive: !wide, displayModeBar: false});
  } };
  await draw(0);
  addEventListener('beforeprint', () => { document.querySelectorAll('details').forEach(each => each.open = true); draw(660); });
  addEventListener('afterprint', () => draw(0));
  narrow.addEventListener('change', () => draw(0));
  document.body.dataset.drawn = charts.length;
})();
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{header}</header>
<main>
{sections}
</main>
{scripts}
</body>
</html>
"""


def page(title: str, header: str, sections: Iterable[Section]) -> str:
    """Write a page.

    Args:
        title: of the browser's tab.
        header: HTML above the sections: what was decided, in one look.
        sections: the rest, in order; one without a body is left out.

    Example:
        >>> text = page("compile", "<h1>compile</h1>", [Section("Findings", "<p>none</p>"), Section("Empty", "")])
        >>> "Findings" in text, "Empty" in text, "http" in text
        (True, False, False)
    """
    body = "\n".join(_section(section) for section in sections if section.body)
    scripts = ""
    if 'class="chart"' in body:
        scripts = f'<script type="text/plain" id="plotly">{_plotly()}</script>\n<script>{_DRAW}</script>'
    return _PAGE.format(title=html.escape(title), style=STYLE, header=header, sections=body, scripts=scripts)


def chart(drawn: Chart, label: str) -> str:
    """Write a chart as HTML.

    Args:
        drawn: the figure.
        label: what it shows, for people who do not see it.
    """
    axes = {name: _AXIS | dict(drawn.layout.get(name, {})) for name in ("xaxis", "yaxis")}
    spec = json.dumps(_finite({"data": drawn.data, "layout": _LAYOUT | dict(drawn.layout) | axes}), allow_nan=False).replace("</", "<\\/")
    caption = f"<figcaption>{html.escape(drawn.caption)}</figcaption>" if drawn.caption else ""
    plot = f'<div class="plot" role="img" aria-label="{html.escape(label)}"></div>'
    return f'<figure class="chart">{plot}<script type="application/json">{spec}</script>{caption}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[str] = (), text: Sequence[int] = (0,)) -> str:
    """Write a table; cells are HTML, so text is escaped by the caller.

    Args:
        head: column names, which may break at `_`.
        rows: cells.
        marked: a class for each row, `""` for none.
        text: which columns are text; the others are numbers.
    """
    marks = itertools.chain(marked, itertools.repeat(""))
    top = "".join(_cell("th", name.replace("_", "_<wbr>"), at in text) for at, name in enumerate(head))
    lines = "".join(
        f'<tr class="{mark}">' + "".join(_cell("td", cell, at in text) for at, cell in enumerate(row)) + "</tr>"
        for row, mark in zip(rows, marks, strict=False)
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def commands(named: Iterable[tuple[str, str]]) -> str:
    """Write commands to copy, each with what it does."""
    return "".join(f"<p class='does'>{html.escape(what)}</p><pre><code>{html.escape(command)}</code></pre>" for what, command in named)


def _finite(value: Any) -> Any:
    """Turn what JSON cannot hold, NaN and infinity, into null, which plotly leaves out."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(kind: str, cell: str, text: bool) -> str:
    return f'<{kind} class="text">{cell}</{kind}>' if text else f"<{kind}>{cell}</{kind}>"


def _section(section: Section) -> str:
    title = html.escape(section.title)
    if section.folded:
        return f"<section><details><summary><h2>{title}</h2></summary>{section.body}</details></section>"
    return f"<section><h2>{title}</h2>{section.body}</section>"


@functools.lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # mtime=0: the same page has the same bytes.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), 9, mtime=0)).decode("ascii")
