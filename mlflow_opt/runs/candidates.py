"""A variant on its way through a session, and the timing of all of them in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlflow_opt import measure, metrics
from mlflow_opt.data import Batch, n_rows
from mlflow_opt.measurement.sequential import default_batch
from mlflow_opt.models import Model
from mlflow_opt.records import Measurement, Variant
from mlflow_opt.reports.report import Row
from mlflow_opt.runs import tracking

# Fresh processes for choosing; the verdict has a protocol of its own.
SESSIONS = 3


@dataclass
class Candidate:
    """A variant with its child run and what is known of it so far; `refused` says why it cannot be chosen."""

    variant: Variant
    model: Model
    run_id: str
    scored: measure.Scored
    measured: Measurement
    refused: str = ""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, float]:
        """Return every metric of it as a plain value; the share lost only of metrics without a scale of their own, such as rmse."""
        shown = {name: one.value for name, one in self.measured.quantities.items() if not _says_nothing_new(name)}
        return shown | self.extra

    def row(self, standing: str) -> Row:
        """Return it as a line of the comparison."""
        found = self.measured.quantities
        return Row(self.variant.name, self.plain, self.variant.params, self.run_id, self.model.model_id, standing, found)


def _says_nothing_new(name: str) -> bool:
    return name.startswith("rel_drop_") and metrics.larger_is_better(name.removeprefix("rel_drop_"))


def require_answers(model: Model, rows: Batch) -> None:
    """Insist that a model takes the data before anything is written about it."""
    try:
        model.predict(rows)
    except Exception as error:
        features = rows.keys() if isinstance(rows, dict) else rows.columns
        raise ValueError(
            f"the model must take the data's rows ({', '.join(map(str, list(features)[:20]))}) and refuses them: {error}; "
            "give data with the features that it was trained on."
        ) from error


def time_in_turns(baseline: Candidate, group: Sequence[Candidate], rows: Batch, threads: int, *, keep_baseline: bool) -> None:
    """Time a baseline and variants in turns, keep what was found on each, and write it to its run.

    Args:
        baseline: what the ratios compare with.
        group: variants that use this many threads.
        rows: to answer.
        threads: for one call, of every model here.
        keep_baseline: whether this timing is the baseline's own; with other threads it only serves the ratios.
    """
    everyone = [baseline, *group]
    models = [candidate.model for candidate in everyone]
    batch = min(default_batch(rows), n_rows(rows))
    timings = measure.time_models(models, rows, sessions=SESSIONS, threads=threads, batches=(1, batch))
    for index, candidate in enumerate(everyone):
        if index == 0 and not keep_baseline:
            continue
        found = measure.cost_of(timings, index) | (measure.ratios_of(timings, index, 0) if index else {})
        candidate.measured = replace(candidate.measured, quantities={**candidate.measured.quantities, **found})
        values = {name: quantity.value for name, quantity in found.items()}
        tracking.log_values(candidate.run_id, values, {"mlflow_opt.threads": str(threads)}, model_id=candidate.model.model_id)


def note(candidate: Candidate, values: Mapping[str, float]) -> None:
    """Write more values of a variant, of the training that made it or of the errors it makes, beside what was measured."""
    candidate.extra |= values
    tracking.log_values(candidate.run_id, values, model_id=candidate.model.model_id)
