"""What the pages draw: an interval beside its bound, quality over latency, calibration, parallel coordinates.

Intervals are plain SVG in the page's own colours; the rest is plotly's JSON, made by hand so that nothing is imported.
Colours of marks are readable on white and on black.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_opt.records import Criterion, Quantity
from mlflow_opt.reports.report_calibration import Bin
from mlflow_opt.reports.report_page import Chart

BLUE, GREEN, RED, GREY, AMBER = "#3f86d8", "#2f9e5b", "#d9534f", "#8c8c8c", "#c98a1b"
# Further techniques in one chart, after these.
COLOURS = (BLUE, AMBER, GREEN, "#9b6dd6", RED, "#1fa3a3", "#c2579a", GREY)
_WIDTH, _HEIGHT, _EDGE = 340.0, 40.0, 8.0


@dataclass(frozen=True)
class Dot:
    """One model in a chart of quality over speed.

    Args:
        name: shown beside the dot.
        x: its position, with an interval where it has one.
        y: its quality, with an interval where it has one.
        kind: decides its colour: `baseline`, `chosen`, a technique's name, or `""`.
        note: shown when pointed at.
        front: whether no other model beats it in both.
        named: whether its name is written beside it.
    """

    name: str
    x: Quantity
    y: Quantity
    kind: str = ""
    note: str = ""
    front: bool = False
    named: bool = True


def exact(value: float) -> Quantity:
    """Give a value without an interval.

    Example:
        >>> exact(2.0).hi
        2.0
    """
    return Quantity(value, value, value, 1)


def span(measured: Quantity, criterion: Criterion) -> str:
    """Draw an interval on a line with its bound; the side on which the criterion does not hold is shaded.

    Args:
        measured: value and interval, all finite.
        criterion: the bound and its side.
    """
    at = _scale((measured.lo, measured.hi, criterion.bound, _neutral(criterion.quantity)))
    bound = at(criterion.bound)
    left, right = (0.0, bound) if criterion.side == "min" else (bound, _WIDTH)
    said = f"{criterion.quantity}: {measured.value:.4g}, from {measured.lo:.4g} to {measured.hi:.4g}; bound {criterion.bound:g}"
    # Beside the bound, on the side with more room.
    anchor, offset = ("start", 4.0) if bound < _WIDTH / 2 else ("end", -4.0)
    lo, hi = at(measured.lo), at(measured.hi)
    return (
        f'<svg class="span" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{said}">'
        f'<rect class="out" x="{left:.1f}" y="4" width="{right - left:.1f}" height="20"/>'
        f'<line class="axis" x1="0" x2="{_WIDTH:g}" y1="24" y2="24"/>'
        f'<line class="bound" x1="{bound:.1f}" x2="{bound:.1f}" y1="2" y2="28"/>'
        f'<line class="bar" x1="{lo:.1f}" x2="{max(hi, lo + 0.1):.1f}" y1="14" y2="14"/>'
        f'<circle class="dot" cx="{at(measured.value):.1f}" cy="14" r="4.5"/>'
        f'<text x="{bound + offset:.1f}" y="38" text-anchor="{anchor}">{"at least" if criterion.side == "min" else "at most"} '
        f"{criterion.bound:g}</text></svg>"
    )


def quality_over(dots: Sequence[Dot], x_title: str, y_title: str, *, better: str) -> Chart:
    """Draw models as dots: one axis of speed, on a log scale, one of quality, and the Pareto front as a line.

    Args:
        dots: the models.
        x_title: of the axis of speed.
        y_title: of the axis of quality.
        better: where the best models are, such as `up and to the left`.
    """
    front = sorted((dot for dot in dots if dot.front), key=lambda dot: (dot.x.value, dot.y.value))
    line = {
        "x": [dot.x.value for dot in front],
        "y": [dot.y.value for dot in front],
        "mode": "lines",
        "line": {"color": GREY, "dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
        "name": "Pareto front",
    }
    kinds = list(dict.fromkeys(dot.kind for dot in dots))
    reach = min(dot.x.value for dot in dots), max(dot.x.value for dot in dots)
    drawn = [_group(kind, [dot for dot in dots if dot.kind == kind], _colour(kind, kinds), reach) for kind in kinds]
    layout = {
        "xaxis": {"type": "log", "title": {"text": x_title}, "dtick": _dtick(dots)},
        "yaxis": {"title": {"text": y_title}, "range": _around([end for dot in dots for end in (dot.y.lo, dot.y.hi)])},
    }
    return Chart([line, *drawn] if len(front) > 1 else drawn, layout, f"Best is {better}. Bars are 95% intervals, where there are some.")


def calibration(curves: Mapping[str, tuple[Bin, ...]], what: str) -> Chart:
    """Draw what was said against what was so, each bin with its interval; on the diagonal they agree.

    Args:
        curves: model name to its bins.
        what: the probability is of, such as `the positive class`.
    """
    traces: list[dict[str, Any]] = [
        {"x": [0, 1], "y": [0, 1], "mode": "lines", "line": {"color": GREY, "dash": "dot"}, "hoverinfo": "skip", "name": "perfect"}
    ]
    for index, (name, bins) in enumerate(curves.items()):
        up, down = [one.hi - one.observed for one in bins], [one.observed - one.lo for one in bins]
        traces.append(
            {
                "x": [one.predicted for one in bins],
                "y": [one.observed for one in bins],
                "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.3, "width": 3},
                "customdata": [one.rows for one in bins],
                "hovertemplate": "said %{x:.3f}, was %{y:.3f}<br>%{customdata} rows<extra>" + name + "</extra>",
                "mode": "lines+markers",
                # Two models that agree lie on each other: one is drawn open.
                "marker": {"color": (RED, GREEN)[index % 2], "size": 11 - 4 * index, "symbol": ("circle-open", "circle")[index % 2]},
                "line": {"color": (RED, GREEN)[index % 2], "width": 1.2},
                "name": name,
            }
        )
    unit = {"range": [-0.02, 1.02], "dtick": 0.2}
    layout = {"xaxis": {**unit, "title": {"text": f"probability of {what}"}}, "yaxis": {**unit, "title": {"text": "share that was so"}}}
    return Chart(traces, {**layout, "height": 380})


def parallel(lines: Mapping[str, Sequence[float]], axes: Sequence[tuple[str, bool]], shown: Mapping[str, Sequence[str]]) -> Chart:
    """Draw parallel coordinates: an axis for each figure, best at the top, a line for each model.

    Args:
        lines: model name to its value on each axis; NaN where it has none.
        axes: name of each figure, and whether larger is better.
        shown: model name to the text of each value.
    """
    columns = list(zip(*lines.values(), strict=True))
    ranges = [[value for value in column if math.isfinite(value)] for column in columns]
    titles = [
        _axis_title(title, up, column, texts)
        for (title, up), column, texts in zip(axes, columns, zip(*shown.values(), strict=True), strict=True)
    ]
    traces = []
    for index, (name, values) in enumerate(lines.items()):
        heights = [_height(value, found, up) for value, found, (_, up) in zip(values, ranges, axes, strict=True)]
        traces.append(
            {
                "x": titles,
                "y": heights,
                "text": list(shown[name]),
                "hovertemplate": "%{text}<extra>" + html.escape(name) + "</extra>",
                "mode": "lines+markers",
                "connectgaps": True,
                "line": {"color": COLOURS[index % len(COLOURS)], "width": 2, "dash": "solid" if index < len(COLOURS) else "dash"},
                "marker": {"size": 8},
                "name": name,
            }
        )
    layout = {
        "yaxis": {"tickvals": [0, 1], "ticktext": ["worst", "best"], "range": [-0.08, 1.08]},
        "xaxis": {"type": "category", "side": "bottom"},
    }
    return Chart(
        traces, layout, "Each axis runs from the worst to the best of these models; a line at the top everywhere would be the choice."
    )


def _group(kind: str, dots: Sequence[Dot], colour: str, reach: tuple[float, float]) -> dict[str, Any]:
    return {
        "x": [dot.x.value for dot in dots],
        "y": [dot.y.value for dot in dots],
        "error_x": _bars([dot.x for dot in dots]),
        "error_y": _bars([dot.y for dot in dots]),
        # Names of all would lie on each other; those that a choice is about are shown, the others when pointed at.
        "text": [html.escape(dot.name) if dot.named else "" for dot in dots],
        "customdata": [[html.escape(dot.name), dot.note] for dot in dots],
        "hovertemplate": "%{customdata[1]}<extra>%{customdata[0]}</extra>",
        "mode": "markers+text",
        "textposition": [f"{'top' if index % 2 == 0 else 'bottom'} {_side(dot, reach)}" for index, dot in enumerate(dots)],
        "cliponaxis": False,
        "marker": {"size": 11, "color": colour, "symbol": "diamond" if kind == "baseline" else "circle"},
        "name": kind or "other",
    }


def _side(dot: Dot, reach: tuple[float, float]) -> str:
    """Write a name towards the middle of the chart, where there is room for it."""
    low, high = reach
    share = math.log(dot.x.value / low) / math.log(high / low) if 0 < low < high else 0.5
    return "right" if share < 0.25 else "left" if share > 0.75 else "center"


def _bars(found: Sequence[Quantity]) -> dict[str, Any]:
    ends = [(one.hi - one.value, one.value - one.lo) if one.hi > one.lo else (0.0, 0.0) for one in found]
    up, down = [end[0] for end in ends], [end[1] for end in ends]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "visible": any(map(any, ends)),
        "thickness": 1.3,
        "width": 3,
    }


def _colour(kind: str, kinds: Sequence[str]) -> str:
    fixed = {"baseline": RED, "chosen": GREEN, "passes": BLUE, "left out": GREY, "": BLUE}
    others = [each for each in kinds if each not in fixed]
    return fixed[kind] if kind in fixed else COLOURS[others.index(kind) % len(COLOURS)]


def _dtick(dots: Sequence[Dot]) -> str | int:
    # Within a decade the digits 2 and 5 are labelled too, or an axis may have no label at all.
    values = [dot.x.value for dot in dots if dot.x.value > 0]
    return "D2" if values and max(values) / min(values) < 100 else 1


def _axis_title(title: str, up: bool, values: Sequence[float], texts: Sequence[str]) -> str:
    """Name an axis with its ends, the best above the worst."""
    known = sorted((value, text) for value, text in zip(values, texts, strict=True) if math.isfinite(value))
    if not known:
        return title
    ends = (known[-1][1], known[0][1]) if up else (known[0][1], known[-1][1])
    return f"{title.replace('_', ' ')}<br>{ends[0]}" + (f" to {ends[1]}" if ends[0] != ends[1] else "")


def _around(values: Sequence[float]) -> list[float]:
    """Give a range with room around values that may all be one."""
    low, high = min(values), max(values)
    room = max(0.15 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-6)
    return [low - room, high + room]


def _neutral(quantity: str) -> float:
    """Give the value that means no change, so that it is in the picture."""
    name = quantity.rsplit("/", 1)[-1]
    return 1.0 if name in ("speedup", "throughput_ratio") else 0.0 if "drop_" in name else math.nan


def _scale(values: Sequence[float]) -> Any:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    width = high - low or abs(high) or 1.0
    low, width = low - 0.06 * width, width * 1.12
    return lambda value: _EDGE + (value - low) / width * (_WIDTH - 2 * _EDGE)


def _height(value: float, found: Sequence[float], up: bool) -> float | None:
    if not math.isfinite(value):
        return None
    low, high = min(found), max(found)
    share = (value - low) / (high - low) if high > low else 1.0
    return share if up or high == low else 1.0 - share
