"""Close a run for the people who read it: description, metrics, plots, page, and the closing table in the terminal."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_opt.data import Split, n_rows
from mlflow_opt.measurement.fingerprint import fingerprint
from mlflow_opt.models import Model
from mlflow_opt.records import Policy
from mlflow_opt.reports import report, report_sections
from mlflow_opt.reports.report import Closing, Row, verdict_lines
from mlflow_opt.reports.report_text import without_links
from mlflow_opt.runs import proof, tracking
from mlflow_opt.verdicts import evidence

__all__ = ["Closing", "Row", "describe", "facts", "publish", "verdict_lines"]

_logger = logging.getLogger(__name__)
# MLflow cuts a description at 8,000 characters.
_MOST_LINES = 25
# The baseline has a child run with all of its metrics.
_BASELINE = ("latency_p50_ms", "size_mb")


def publish(run_id: str, closing: Closing, proved: proof.Proof | None, policy: Policy) -> None:
    """Write a run's closing metrics, description and artifacts, and print the table and the next command."""
    tracking.log_values(run_id, _metrics(closing, proved, policy), {MLFLOW_RUN_NOTE: describe(closing, proved)})
    with tempfile.TemporaryDirectory(prefix="mlflow-opt-report-") as name:
        folder = Path(name)
        if any("latency_p50_ms" in row.metrics for row in closing.rows):
            report.save_pareto(closing.rows, closing.headline, folder / "pareto.png")
        (folder / "report.html").write_text(report_sections.recipe_page(closing, proved, policy), encoding="utf-8")
        if proved:
            (folder / "verdict.json").write_text(proof.verdict_document(proved, policy), encoding="utf-8")
        for path in sorted(folder.iterdir()):
            tracking.log_file(run_id, path)
    front = report.pareto_names(closing.rows, closing.headline)
    for row in closing.rows:
        if row.run_id:
            tracking.log_tags(row.run_id, {"pareto": str(row.name in front).lower(), "mlflow_opt.standing": row.standing[:5000]})
    _logger.info("\n%s\n", describe(closing, proved, plain=True))


def facts(split: Split, model: Model, given: str, threads: int) -> dict[str, str]:
    """Say where a run's figures come from.

    Args:
        split: the rows.
        model: that was optimised.
        given: how the user named it, `""` if the recipe trained it.
        threads: of one prediction.
    """
    parts = (split.train, split.calibration, split.selection, split.gate)
    rows = ", ".join(f"{part.name} {n_rows(part.rows):,}" for part in parts)
    kind = {"binary": "two classes", "multiclass": f"{len(split.task.classes)} classes", "regression": "regression"}[split.task.kind]
    return {
        "model": f"{given} ({model.flavour})" if given else f"a default {model.flavour} model that this run trained",
        "data": f"{split.dataset.name} ({n_rows(split.dataset.rows):,} rows)",
        "task": kind,
        "rows": rows,
        "source": split.dataset.source,
        "target": split.dataset.target,
        "logged model of the baseline": model.model_id,
        "threads of one prediction": str(threads),
        "where it ran": fingerprint(threads),
    }


def describe(closing: Closing, proved: proof.Proof | None, *, plain: bool = False) -> str:
    """Write the run's description: table, verdict with reasons, findings, the commands that come next."""
    shown = closing.rows if plain else _worth_describing(closing.rows)
    # MLflow's page folds a description after a few lines: what was decided comes first there, and last in a terminal.
    parts = [] if plain else [_headline(closing, proved)]
    parts.append(report.markdown_table(shown, closing.headline))
    if len(shown) < len(closing.rows):
        parts.append(f"{len(closing.rows) - len(shown)} more variants are in report.html.")
    if proved:
        lines = verdict_lines(proved.verdict)
        parts.append(
            f"Verdict on the gate rows: {proved.verdict.outcome.value}\n"
            + "\n".join(f"  {line}" if plain else f"- {line}" for line in lines)
        )
    told = [*(one.text for one in closing.exhibits), *closing.findings]
    parts += map(without_links, told) if plain else told
    if closing.version:
        parts.append(f"Registered as {closing.register_as} version {closing.version}.")
    command = report_sections.next_commands(closing, proved)[0][1]
    parts.append(f"Next: {command}" if plain else f"Next: `{command}`")
    if not plain:
        parts.append(f"Run it again: `{closing.command}`")
    return "\n\n".join(parts)


def _headline(closing: Closing, proved: proof.Proof | None) -> str:
    """Say in one line what came out."""
    chosen = closing.chosen
    if chosen is None:
        return "**Nothing chosen.** " + (closing.findings[-1] if closing.findings else "")
    word = proved.verdict.outcome.value if proved else "not judged"
    found = proved.measured.quantities if proved else {}
    told = [
        f"{report.show('speedup', one.value)} [{report.show('speedup', one.lo)}, {report.show('speedup', one.hi)}] as fast"
        for name, one in found.items()
        if name == "speedup"
    ]
    drop = f"drop_{closing.headline}"
    told += [
        f"{closing.headline} lost {report.show(drop, one.value)} [{report.show(drop, one.lo)}, {report.show(drop, one.hi)}]"
        for name, one in found.items()
        if name == drop
    ]
    kept = f", registered as {closing.register_as} version {closing.version}" if closing.version else ""
    return f"**{word}**: {', '.join([chosen.name, *told])}{kept}. The whole story is in report.html."


def _worth_describing(rows: Sequence[Row]) -> list[Row]:
    """Keep what a description has room for: baseline and choice, then what passes, in the order made."""
    rank = {"baseline": 0, "chosen": 0, "passes": 1}
    kept = sorted(rows, key=lambda row: rank.get(row.standing, 2))[:_MOST_LINES]
    return [row for row in rows if row in kept]


def _metrics(closing: Closing, proved: proof.Proof | None, policy: Policy) -> dict[str, float]:
    """Gather the parent's metrics: the gate's, the winner's under their own names, and of the baseline what says how far it was."""
    gate = evidence.to_metrics(proved.measured, policy, proved.verdict) if proved else {evidence.PASSED: 0.0}
    chosen = dict(closing.chosen.metrics) if closing.chosen else {}
    before = closing.rows[0].metrics
    baseline = {f"baseline_{name}": before[name] for name in (closing.headline, *_BASELINE) if name in before}
    return gate | chosen | baseline
