"""The page of a comparison: recommendation, every technique, the Pareto front, parallel coordinates, the literature beside it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mlflow_opt import metrics
from mlflow_opt.policy import policy_text
from mlflow_opt.reports import report_charts
from mlflow_opt.reports.literature import Claim, claims_for
from mlflow_opt.reports.report import show
from mlflow_opt.reports.report_charts import Dot, exact
from mlflow_opt.reports.report_comparison import COST, NOTES, Group, cautions, ends_of, plain_text, suits
from mlflow_opt.reports.report_page import Section, chart, commands, page, table
from mlflow_opt.reports.report_sections import tile, with_interval
from mlflow_opt.runs.stored_runs import BASELINE, Result


def page_of(groups: Sequence[Group], left_out: Sequence[str]) -> str:
    """Write the self-contained page of a comparison.

    Args:
        groups: runs that may be compared with each other.
        left_out: what was left out, with the reason.
    """
    sections: list[Section] = []
    for group in groups:
        sections += [
            Section(group.title, _recommended(group)),
            Section("Every technique" if len(groups) == 1 else f"Every technique: {group.title}", _figure(group) + _table(group)),
            Section("What else differs", _parallel(group)),
        ]
    recipes = {one.recipe for group in groups for one in group.members}
    left = "".join(f"<li>{html.escape(why)}</li>" for why in left_out)
    sections += [
        Section("Beside the literature", _beside(groups, recipes)),
        Section("What was left out, and why", f"<ul class='plain'>{left}</ul>" if left else ""),
        Section(
            "What was asked",
            "".join(f"<h3>{html.escape(g.title)}</h3><pre>{html.escape(policy_text(g.policy))}</pre>" for g in groups),
            True,
        ),
    ]
    made = sum(1 for group in groups for one in group.members if one.name != BASELINE)
    header = (
        f"<h1>Techniques compared</h1><p class='from'>{made} variants of {len(recipes)} recipe{'s' if len(recipes) > 1 else ''}: "
        f"{html.escape(', '.join(sorted(recipes)))}</p><p>{html.escape(NOTES)} What was lost is a gain if it is negative.</p>"
    )
    return page("compare", header, sections)


def _recommended(group: Group) -> str:
    found = next((one for one in group.members if one.run_id == group.recommended.run_id), None)
    minded = "".join(f"<p>{html.escape(text)}</p>" for text in cautions(group))
    lead = f"<p class='lead'>{html.escape(group.recommended.text)}</p>{minded}"
    if found is None:
        return lead
    tiles = [
        tile(
            html.escape(found.name), "recommended", f"{html.escape(found.recipe)}, {'proven' if group.recommended.proven else 'not proven'}"
        )
    ]
    for name, label in (("speedup", "as fast as its reference"), (f"drop_{group.headline}", f"{group.headline} lost")):
        value = found.quantity(name)
        if value:
            limits = ends_of(value)
            tiles.append(
                tile(show(name, value.value), label, f"[{show(name, limits[0])}, {show(name, limits[1])}]" if limits else "not judged")
            )
    tiles.append(tile(f"{found.minutes:.1f} min", "to get it", f"at most {found.core_hours:.2f} core-hours"))
    unproven = found.model_id and not group.recommended.proven
    then = commands([("Judge it on the gate rows:", f"mlflow-opt gate --model models:/{found.model_id}")]) if unproven else ""
    return f"{lead}<div class='tiles'>{''.join(tiles)}</div>{then}"


def _figure(group: Group) -> str:
    shown = [one for one in group.ordered if {COST, group.headline} <= set(one.values)]
    dots = [
        Dot(
            _short(one),
            exact(one.values[COST]),
            exact(one.values[group.headline]),
            BASELINE if one.name == BASELINE else one.recipe,
            f"{one.values[COST]:.3g} ms, {group.headline} {one.values[group.headline]:.4f}<br>{html.escape(one.standing[:80])}",
            one.run_id in group.front,
            one.run_id in group.front or one.name == BASELINE or one.run_id == group.recommended.run_id,
        )
        for one in shown
    ]
    up = "up" if metrics.larger_is_better(group.headline) else "down"
    drawn = report_charts.quality_over(dots, "median ms of one row", f"{group.headline}, selection rows", better=f"{up} and to the left")
    return chart(drawn, "quality over latency of every technique; the table below has the numbers") if len(dots) > 1 else ""


def _table(group: Group) -> str:
    head = ["technique", "standing", "speed-up", "ms a row", group.headline, "lost", "MB", "minutes", "core-hours"]
    body, marks = [], []
    for one in group.ordered:
        found = [one.quantity(name) for name in ("speedup", COST, group.headline, f"drop_{group.headline}", "size_mb")]
        names = ("speedup", COST, group.headline, f"drop_{group.headline}", "size_mb")
        figures = [with_interval(name, value) if value else "-" for name, value in zip(names, found, strict=True)]
        cost = ["-", "-"] if one.name == BASELINE else [f"{one.minutes:.1f}", f"{one.core_hours:.2f}"]
        body.append([_named(group, one), _standing(one), *figures, *cost])
        marks.append("chosen" if one.run_id == group.recommended.run_id else "")
    return table(head, body, marks, (0, 1))


def _parallel(group: Group) -> str:
    axes = [
        ("speedup", True),
        (group.headline, metrics.larger_is_better(group.headline)),
        ("size_mb", False),
        ("throughput_rows_per_s", True),
    ]
    made = [one for one in group.ordered if one.name != BASELINE][:12]
    axes = [(name, up) for name, up in axes if any(name in one.values for one in made)]
    if len(made) < 2 or len(axes) < 3:
        return ""
    titles = [({"size_mb": "size, MB", "throughput_rows_per_s": "rows/s in a batch"}.get(name, name), up) for name, up in axes]
    lines = {_short(one): [one.values.get(name, math.nan) for name, _ in axes] + [-one.minutes] for one in made}
    shown = {_short(one): [show(name, one.values.get(name)) for name, _ in axes] + [f"{one.minutes:.1f} min"] for one in made}
    drawn = report_charts.parallel(lines, [*titles, ("minutes to get it", True)], shown)
    return chart(drawn, "parallel coordinates of the fastest variants; the table above has the numbers")


def _beside(groups: Sequence[Group], recipes: set[str]) -> str:
    rows, words = [], suits(recipes)
    for recipe in sorted(recipes):
        claims = claims_for(recipe)
        rows.append(
            [
                html.escape(recipe),
                f"<span class='note'>{html.escape(words.get(recipe, ''))}</span>",
                _measured(groups, recipe),
                "<br>".join(map(_claim, claims)) or "<small>no figure that we could check</small>",
            ]
        )
    note = "<p>A claim holds for its authors' models, data and machines. It says what was possible there, not what to expect here.</p>"
    return note + table(["technique", "suits", "measured here", "claimed"], rows, text=(0, 1, 2, 3))


def _measured(groups: Sequence[Group], recipe: str) -> str:
    told = []
    for group in groups:
        mine = [one for one in group.ordered if one.recipe == recipe and one.name != BASELINE]
        best = next((one for one in mine if one.standing == "chosen"), mine[0] if mine else None)
        if best is None:
            continue
        faster, lost = best.quantity("speedup"), best.quantity(f"drop_{group.headline}")
        words = [f"{plain_text('speedup', faster)} as fast" if faster else ""]
        words += [f"{group.headline} lost {plain_text(f'drop_{group.headline}', lost)}" if lost else ""]
        told.append(f"{html.escape(best.name)} on {html.escape(group.title)}: {', '.join(word for word in words if word)}")
    return "<br>".join(told)


def _claim(claim: Claim) -> str:
    said = f"{html.escape(claim.says)} <small>{html.escape(claim.where)}<br>"
    return f"{said}<a href='{html.escape(claim.url)}'>{html.escape(claim.source)}</a></small>"


def _named(group: Group, one: Result) -> str:
    front = " <small>Pareto front</small>" if one.run_id in group.front else ""
    return f"{html.escape(_short(one))}{front}"


def _short(one: Result) -> str:
    return f"{one.recipe}: {one.name}"


def _standing(one: Result) -> str:
    word = BASELINE if one.name == BASELINE else one.standing if one.standing in ("chosen", "passes") else "left out"
    return f"{word} <small class='{one.verdict}'>{one.verdict}</small>" if one.verdict else word
