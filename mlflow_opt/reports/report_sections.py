"""The page of one recipe's run: what was decided and by how much, what was tried, what was refused and why, what to do next."""

from __future__ import annotations

import html
import math
import shlex
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mlflow_opt import metrics
from mlflow_opt.measurement.reliability import calibration_error
from mlflow_opt.policy import policy_text
from mlflow_opt.records import Outcome, Policy, Quantity, Reason
from mlflow_opt.reports import report, report_charts
from mlflow_opt.reports.report import Closing, Row, show
from mlflow_opt.reports.report_calibration import reliability
from mlflow_opt.reports.report_charts import Dot, exact
from mlflow_opt.reports.report_page import Section, chart, commands, page, table
from mlflow_opt.reports.report_text import as_html

if TYPE_CHECKING:
    from mlflow_opt.runs.proof import Proof

_LATENCY = "latency_p50_ms"
_ORDER = {Outcome.FAIL: 0, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 2}
_MEANING = {
    Outcome.PASS: "It may be promoted.",
    Outcome.FAIL: "It must not be promoted.",
    Outcome.INCONCLUSIVE: "What was measured does not decide: it is not promoted before it does.",
}


def recipe_page(closing: Closing, proved: Proof | None, policy: Policy) -> str:
    """Write the self-contained page of a run.

    Args:
        closing: what the recipe ends with.
        proved: the verdict on the chosen variant, None if nothing was judged.
        policy: what it was judged by.
    """
    parts = [
        Section("The verdict, criterion by criterion", _rules(proved, slices=False)),
        Section("The verdict on slices", _rules(proved, slices=True)),
        *(Section(one.title, one.figures + as_html(one.text)) for one in closing.exhibits),
        Section("What was tried", _figure(closing) + _variants(closing)),
        Section("What was left out, and why", _left_out(closing)),
        Section("What the figures mean", "".join(map(as_html, closing.findings))),
        Section("Do the probabilities mean what they say?", _calibration(closing)),
        Section("What to do next", commands(next_commands(closing, proved))),
        Section("Run it again", commands([("The exact command of this run:", closing.command)])),
        Section("Everything measured on the gate rows", _measured(proved), folded=True),
        Section("Where the figures come from", _provenance(closing, proved, policy), folded=True),
    ]
    return page(f"{closing.recipe}: {_word(proved)}", _header(closing, proved), parts)


def next_commands(closing: Closing, proved: Proof | None) -> list[tuple[str, str]]:
    """Say what to do with the result, the most likely first.

    Args:
        closing: what the recipe ends with.
        proved: the verdict, None if nothing was judged.

    Returns:
        What each command does, and the command.
    """
    name, version, data = closing.register_as, closing.version, shlex.quote(str(closing.params.get("data", "")))
    if version and proved and not proved.verdict.passed:
        return [
            (
                "Measure longer, or on more rows, before asking for the alias:",
                f"mlflow-opt gate --model models:/{name}/{version} --data {data} --budget_s 300",
            ),
            ("See what was asked of the model before, and what was answered:", f"mlflow-opt history --name {name}"),
        ]
    if version:
        asked = ", where the run itself was refused" if closing.params.get("promote") else ""
        return [
            (f"Ask the registry for the alias champion{asked}:", f"mlflow-opt promote --model models:/{name}/{version} --data {data}"),
            ("Serve the version:", f"mlflow-opt start_server --model models:/{name}/{version}"),
            ("Go back to the version that was champion before, without new evidence:", f"mlflow-opt rollback --name {name}"),
        ]
    if proved and proved.verdict.passed and not name:
        return [("Register it (the same again; it is measured anew):", f"{closing.command} -P register_as=NAME")]
    return [("Look at the variants side by side:", "mlflow ui")]


def rule(reason: Reason) -> str:
    """Write one line of a verdict: the outcome, the rule with what was measured, the interval beside its bound."""
    criterion, measured, word = reason.criterion, reason.measured, reason.outcome.value
    drawn = report_charts.span(measured, criterion) if criterion and measured and measured.usable else ""
    where = f"<small>rows: <code>{html.escape(criterion.slice_rows)}</code></small>" if criterion and criterion.slice_rows else ""
    return (
        f"<li class='{word}'><span class='word'>{word}</span><span class='why' style='color:var(--ink)'>{html.escape(reason.text)}{where}"
        f"</span><span>{drawn}</span></li>"
    )


def with_interval(name: str, measured: Quantity) -> str:
    """Write a quantity in the unit that its name implies, with its interval if it has one."""
    plain = name.rsplit("/", 1)[-1]
    if measured.hi <= measured.lo:
        return show(plain, measured.value)
    return f"{show(plain, measured.value)} <small>[{show(plain, measured.lo)}, {show(plain, measured.hi)}]</small>"


def _ends(name: str, measured: Quantity) -> str:
    return f"[{show(name, measured.lo)}, {show(name, measured.hi)}]<br>" if measured.hi > measured.lo else ""


def tile(value: str, label: str, detail: str = "") -> str:
    """Write one figure large; all three are HTML."""
    return f"<div class='tile'><span>{label}</span><b>{value}</b><span>{detail}</span></div>"


def _word(proved: Proof | None) -> str:
    return proved.verdict.outcome.value if proved else "nothing judged"


def _header(closing: Closing, proved: Proof | None) -> str:
    word = _word(proved)
    badge = f"<span class='badge {word if proved else 'NONE'}'>{word}</span>"
    facts = ", ".join(closing.facts[name] for name in ("model", "data", "task") if closing.facts.get(name))
    tiles = "".join(_tiles(closing, proved))
    return (
        f"<h1>{html.escape(closing.recipe)} {badge}</h1><p class='from'>{html.escape(facts)}</p>"
        f"<p class='lead'>{html.escape(_lead(closing, proved))}</p>" + (f"<div class='tiles'>{tiles}</div>" if tiles else "")
    )


def _lead(closing: Closing, proved: Proof | None) -> str:
    chosen = closing.chosen
    if chosen is None:
        return closing.findings[-1] if closing.findings else "Nothing was chosen, and nothing was registered."
    met = sum(1 for row in closing.rows if row.standing in ("chosen", "passes"))
    tried = len(closing.rows) - 1
    # Of a chain the last step, of columns the fewest: both are made last.
    best = {"latency": "the lowest latency", "quality": f"the best {closing.headline}", "last": "the last made"}.get(closing.aim, "")
    why = f"{chosen.name} was chosen: {best} of the {met} of {tried} variants that meet the policy on the selection rows."
    if closing.aim == "first" or not best:
        why = f"{chosen.name} was chosen. It is a first model: there was nothing to compare it with, so it was not judged."
    judged = (
        f" On the gate rows, which no choice has seen, the verdict is {_word(proved)}. {_MEANING[proved.verdict.outcome]}" if proved else ""
    )
    kept = f" It is {closing.register_as} version {closing.version}." if closing.version else " It was not registered." if proved else ""
    return f"{why}{judged}{kept}"


def _tiles(closing: Closing, proved: Proof | None) -> Iterable[str]:
    """Give the few figures that decide: from the gate rows where there was a verdict, else from the selection rows."""
    chosen, baseline = closing.chosen, closing.rows[0].metrics
    if chosen is None:
        return
    found = dict(proved.measured.quantities) if proved else {name: exact(value) for name, value in chosen.metrics.items()}
    before = {name: one.value for name, one in proved.reference.quantities.items()} if proved else dict(baseline)
    where = "gate rows" if proved else "selection rows"
    if "speedup" in found:
        times = f"one row {before.get(_LATENCY, math.nan):.3g} → {found[_LATENCY].value:.3g} ms" if _LATENCY in found else ""
        yield tile(show("speedup", found["speedup"].value), "as fast as before", f"{_ends('speedup', found['speedup'])}{times}")
    name = closing.headline
    if name in found:
        lost = found.get(f"drop_{name}")
        change = f"lost {show(f'drop_{name}', lost.value)} {_ends(f'drop_{name}', lost)}" if lost else ""
        yield tile(show(name, found[name].value), f"{name}, {where}", change)
    if "label_flips" in found and found["label_flips"].n > 1:
        flips = found["label_flips"]
        yield tile(show("label_flips", flips.value), "answers changed", f"of {flips.n} {where}")
    if "size_mb" in found:
        yield tile(f"{found['size_mb'].value:.3g} MB", "size", f"before {before.get('size_mb', math.nan):.3g} MB")


def _rules(proved: Proof | None, *, slices: bool) -> str:
    if not proved:
        return ""
    ranked = sorted(proved.verdict.reasons, key=lambda reason: _ORDER[reason.outcome])
    shown = [reason for reason in ranked if bool(reason.criterion and reason.criterion.slice_id) == slices]
    if not shown:
        return ""
    note = "" if slices else "<p>A criterion holds only if the whole interval is outside the shaded side.</p>"
    return f"{note}<ul class='rules'>{''.join(map(rule, shown))}</ul>"


def _figure(closing: Closing) -> str:
    name = closing.headline
    shown = [row for row in closing.rows if _LATENCY in row.metrics and name in row.metrics]
    if len(shown) < 2:
        return ""
    front = report.pareto_names(closing.rows, name)
    dots = [
        Dot(
            row.name,
            row.quantities.get(_LATENCY, exact(row.metrics[_LATENCY])),
            exact(row.metrics[name]),
            _kind(row),
            f"{row.metrics[_LATENCY]:.3g} ms, {name} {row.metrics[name]:.4f}<br>{html.escape(row.standing)}",
            row.name in front,
            row.standing in ("baseline", "chosen") or row.name in front,
        )
        for row in shown
    ]
    up = "up" if metrics.larger_is_better(name) else "down"
    drawn = report_charts.quality_over(dots, "median ms of one row", f"{name}, selection rows", better=f"{up} and to the left")
    return chart(drawn, f"{name} over latency of every variant; the table below has the numbers")


def _kind(row: Row) -> str:
    return row.standing if row.standing in ("baseline", "chosen", "passes") else "left out"


def _variants(closing: Closing) -> str:
    names = report.columns(closing.rows, closing.headline)
    body = [
        [html.escape(row.name), _kind(row), *(with_interval(n, _quantity(row, n)) if n in row.metrics else "-" for n in names)]
        for row in closing.rows
    ]
    return table(["variant", "standing", *map(html.escape, names)], body, [row.standing.split(":")[0] for row in closing.rows], (0, 1))


def _quantity(row: Row, name: str) -> Quantity:
    # Quality on the selection rows is a point value; only what was timed has an interval.
    found = row.quantities.get(name)
    return found if found and found.hi > found.lo else exact(row.metrics[name])


def _left_out(closing: Closing) -> str:
    reasons: dict[str, list[str]] = {}
    for row in closing.rows[1:]:
        if _kind(row) == "left out":
            reasons.setdefault(row.standing, []).append(row.name)
    lines = "".join(f"<li><b>{html.escape(', '.join(names))}</b>: {html.escape(why)}</li>" for why, names in reasons.items())
    return f"<ul class='plain'>{lines}</ul>" if lines else ""


def _calibration(closing: Closing) -> str:
    curves = {name: bins for name, scored in closing.scored.items() if (bins := reliability(scored)) and len(bins) > 1}
    if not curves:
        return ""
    task = next(iter(closing.scored.values())).task
    what = f"the answer {task.positive}" if task.kind == "binary" else "the answer given"
    errors = ", ".join(
        f"{html.escape(name)} {calibration_error(closing.scored[name].outputs, closing.scored[name].labels):.3f}" for name in curves
    )
    said = f"<p>Expected calibration error on the selection rows (0 is perfect): {errors}. Bars are 95% intervals of each bin.</p>"
    return said + chart(report_charts.calibration(curves, what), "share that came true over the probability that was given, with intervals")


def _measured(proved: Proof | None) -> str:
    if not proved:
        return ""
    before = proved.reference.quantities
    body = [
        [
            f"<code>{html.escape(name)}</code>",
            with_interval(name, found),
            with_interval(name, before[name]) if name in before else "-",
            str(found.n),
        ]
        for name, found in sorted(proved.measured.quantities.items())
    ]
    return table(["quantity", "candidate", "reference", "samples"], body)


def _provenance(closing: Closing, proved: Proof | None, policy: Policy) -> str:
    facts = [*closing.facts.items(), *(_binding(proved) if proved else [])]
    body = [[html.escape(name), f"<span style='overflow-wrap:anywhere'>{html.escape(value)}</span>"] for name, value in facts if value]
    return table(["", ""], body, text=(0, 1)) + f"<h3>Policy</h3><pre>{html.escape(policy_text(policy))}</pre>"


def _binding(proved: Proof) -> Sequence[tuple[str, str]]:
    bound = proved.binding
    return [
        ("logged model", bound.model_id),
        ("reference", bound.reference_model_id or "-"),
        ("digest of the model's files", bound.model_digest),
        ("digest of the gate rows", bound.data_digest),
        ("digest of the split", bound.split_digest),
        ("digest of the policy", bound.policy_digest),
        ("measured", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(bound.measured_at / 1000))),
        ("machine", bound.fingerprint),
        ("doubt", proved.measured.doubt),
    ]
