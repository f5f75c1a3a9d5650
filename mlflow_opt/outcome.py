"""Close a run for the people who read it: description, metrics, plots, page, and the closing table in the terminal."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_opt import evidence, proof, report, tracking
from mlflow_opt.parameter import to_text
from mlflow_opt.records import Policy
from mlflow_opt.report import Row, verdict_lines

__all__ = ["Closing", "Row", "publish", "verdict_lines"]

_logger = logging.getLogger(__name__)


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
    """

    recipe: str
    params: Mapping[str, Any]
    rows: Sequence[Row]
    headline: str
    findings: tuple[str, ...]
    register_as: str
    version: str

    @property
    def command(self) -> str:
        """Return the exact command to run it again."""
        given = [f"-P {shlex.quote(f'{key}={to_text(value)}')}" for key, value in self.params.items() if value != ""]
        return f"mlflow run . -e {self.recipe} {' '.join(given)}".rstrip()

    @property
    def chosen(self) -> Row | None:
        """Return the chosen row, None if nothing was chosen."""
        return next((row for row in self.rows if row.standing == "chosen"), None)


def publish(run_id: str, closing: Closing, proved: proof.Proof | None, policy: Policy) -> None:
    """Write a run's closing metrics, description and artifacts, and print the table and the next command."""
    tracking.log_values(run_id, _metrics(closing, proved, policy), {MLFLOW_RUN_NOTE: describe(closing, proved)})
    with tempfile.TemporaryDirectory(prefix="mlflow-opt-report-") as name:
        folder = Path(name)
        if any("latency_p50_ms" in row.metrics for row in closing.rows):
            report.save_pareto(closing.rows, closing.headline, folder / "pareto.png")
        verdict = proved.verdict if proved else None
        page = report.page(f"{closing.recipe}: what was tried", closing.rows, closing.headline, verdict, closing.findings, closing.command)
        (folder / "report.html").write_text(page, encoding="utf-8")
        if proved:
            (folder / "verdict.json").write_text(proof.verdict_document(proved, policy), encoding="utf-8")
        for path in sorted(folder.iterdir()):
            tracking.log_file(run_id, path)
    front = report.pareto_names(closing.rows, closing.headline)
    for row in closing.rows:
        if row.run_id:
            tracking.log_tags(row.run_id, {"pareto": str(row.name in front).lower(), "mlflow_opt.standing": row.standing[:5000]})
    _logger.info("\n%s\n", describe(closing, proved, plain=True))


def describe(closing: Closing, proved: proof.Proof | None, *, plain: bool = False) -> str:
    """Write the run's description: table, verdict with reasons, findings, the commands that come next."""
    parts = [report.markdown_table(closing.rows, closing.headline)]
    if proved:
        lines = verdict_lines(proved.verdict)
        parts.append(
            f"Verdict on the gate rows: {proved.verdict.outcome.value}\n"
            + "\n".join(f"  {line}" if plain else f"- {line}" for line in lines)
        )
    parts += list(closing.findings)
    if closing.version:
        parts.append(f"Registered as {closing.register_as} version {closing.version}.")
    parts.append(f"Next: {_next(closing, proved)}" if plain else f"Next: `{_next(closing, proved)}`")
    if not plain:
        parts.append(f"Run it again: `{closing.command}`")
    return "\n\n".join(parts)


def _next(closing: Closing, proved: proof.Proof | None) -> str:
    if closing.version:
        return (
            f"mlflow-opt promote --model models:/{closing.register_as}/{closing.version} --data {shlex.quote(str(closing.params['data']))}"
        )
    if proved and proved.verdict.passed and not closing.register_as:
        return f"{closing.command} -P register_as=NAME"
    return "mlflow ui"


def _metrics(closing: Closing, proved: proof.Proof | None, policy: Policy) -> dict[str, float]:
    """Gather the parent's metrics: the winner's under their own names, the baseline's with a prefix, and the gate's."""
    baseline = {f"baseline_{name}": value for name, value in closing.rows[0].metrics.items()}
    chosen = dict(closing.chosen.metrics) if closing.chosen else {}
    gate = evidence.to_metrics(proved.measured, policy, proved.verdict) if proved else {evidence.PASSED: 0.0}
    return baseline | chosen | gate
