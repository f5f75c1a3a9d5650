"""Runs of recipes as they lie in the tracking store: what each variant brought, on which rows, and what it took to get it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from mlflow_opt import metrics
from mlflow_opt.metrics import QUALITY
from mlflow_opt.records import Measurement, Quantity
from mlflow_opt.runs import tracking
from mlflow_opt.verdicts import evidence

VARIANT, RECIPE, STANDING = "mlflow_opt.variant", "mlflow_opt.recipe", "mlflow_opt.standing"
# As the run-context plugin writes it.
HARDWARE = "mlflow_opt.hardware"
BASELINE = "baseline"
PARETO = "pareto"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_PAGE = 1000


@dataclass(frozen=True)
class Result:
    """One variant of one stored run.

    Args:
        recipe: that made it.
        name: of the variant.
        run_id: its child run.
        parent_id: the recipe's run.
        standing: where the recipe left it: `chosen`, `passes`, `misses: ...`, `baseline`.
        task: `binary`, `multiclass` or `regression`.
        rows: name and digest of the rows that it was scored on; only equal ones compare.
        machine: hardware and runtimes.
        values: its metrics on the selection rows.
        judged: what was measured for its verdict, with intervals; empty if it was not judged.
        verdict: of its run, `""` if it was not judged.
        minutes: how long the recipe's run took.
        cores: of the machine.
        model_id: its logged model, `""` if it has none.
    """

    recipe: str
    name: str
    run_id: str
    parent_id: str
    standing: str
    task: str
    rows: str
    machine: str
    values: Mapping[str, float]
    judged: Measurement = field(default_factory=lambda: Measurement({}))
    verdict: str = ""
    minutes: float = 0.0
    cores: int = 1
    model_id: str = ""

    @property
    def headline(self) -> str:
        """Name the metric that stands for quality."""
        return QUALITY[self.task][0]

    @property
    def core_hours(self) -> float:
        """Give the most that the run can have used: all cores, all the time."""
        return self.minutes / 60 * self.cores

    def quantity(self, name: str) -> Quantity | None:
        """Give a quantity: with its interval from the gate rows where it was judged, else the value on the selection rows."""
        if name in self.judged.quantities:
            return self.judged.quantities[name]
        value = self.values.get(name)
        return None if value is None else Quantity(value, value, value, 1)


@dataclass(frozen=True)
class Found:
    """What a selection of runs holds: results that can be compared, and what was left out with the reason."""

    results: tuple[Result, ...]
    left_out: tuple[str, ...]


def find(runs: str) -> Found:
    """Find the variants that a selection of runs is about.

    Args:
        runs: ids of runs (a recipe's run stands for its variants), names or ids of experiments, with commas between;
            `""` is the experiment that runs go to now.

    Raises:
        ValueError: a part of the selection names nothing in this tracking store.
    """
    wanted = [part.strip() for part in runs.split(",") if part.strip()] or [tracking.experiment()]
    given = {run.info.run_id: run for part in wanted for run in _named(part)}
    parents = {run_id: run for run_id, run in given.items() if MLFLOW_PARENT_RUN_ID not in run.data.tags}
    for run in list(given.values()):
        parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID, "")
        if parent and parent not in parents:
            parents[parent] = tracking.client().get_run(parent)
    children = {run.info.run_id: run for run in given.values() if run.info.run_id not in parents}
    for parent_id in [run_id for run_id in given if run_id in parents]:
        children |= {child.info.run_id: child for child in _search(parents[parent_id].info.experiment_id, _child_of(parent_id))}
    return _results(parents, children.values(), named={part for part in wanted if _RUN_ID.fullmatch(part)})


def tag_front(results: Iterable[Result], front: set[str]) -> None:
    """Tag the runs: `pareto` is true on those whose ids are in the front, false on the others."""
    for one in results:
        tracking.log_tags(one.run_id, {PARETO: str(one.run_id in front).lower()})


def publish(parent: tracking.Parent, note: str, figures: Mapping[str, float], files: Iterable[Path]) -> None:
    """Write the comparison on its own run: description, a few figures, files."""
    tracking.log_values(parent.run_id, figures, {MLFLOW_RUN_NOTE: note})
    for path in files:
        tracking.log_file(parent.run_id, path)


def _named(part: str) -> list[Run]:
    client = tracking.client()
    if _RUN_ID.fullmatch(part):
        try:
            return [client.get_run(part)]
        except mlflow.MlflowException as error:
            raise ValueError(f"runs must name runs of this tracking store, got '{part}', which it does not have ({error}).") from None
    experiment = client.get_experiment_by_name(part)
    if experiment is None and part.isdigit():
        experiment = next((one for one in client.search_experiments() if one.experiment_id == part), None)
    if experiment is None:
        names = ", ".join(sorted(f"'{one.name}'" for one in client.search_experiments()))
        raise ValueError(f"runs must be run ids or experiments, with commas between, got '{part}'; this store has {names}.")
    return _search(experiment.experiment_id, "")


def _search(experiment_id: str, condition: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = tracking.client().search_runs([experiment_id], condition, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _child_of(parent_id: str) -> str:
    return f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_id}'"


def _results(parents: Mapping[str, Run], children: Iterable[Run], named: set[str]) -> Found:
    results: list[Result] = []
    left_out: dict[str, None] = {}
    made = set()
    for child in children:
        parent = parents.get(child.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
        # A trial of a search has values and no model; the variants made of the best ones are there too.
        if parent is None or VARIANT not in child.data.tags:
            continue
        made.add(parent.info.run_id)
        read = _result(child, parent)
        if isinstance(read, str):
            left_out[f"{parent.info.run_name}: {read}"] = None
        else:
            results.append(read)
    for run_id, run in parents.items():
        recipe = run.data.tags.get(RECIPE, "")
        if run_id not in made and recipe != "compare" and (recipe or run_id in named):
            left_out[f"{run.info.run_name}: it has no variants."] = None
    return Found(tuple(results), tuple(left_out))


def _result(child: Run, parent: Run) -> Result | str:
    """Read a variant's run; gives the reason as text where it cannot be compared."""
    values, tags = dict(child.data.metrics), child.data.tags
    if parent.info.status != "FINISHED":
        return f"it ended {parent.info.status}, so that its variants may be incomplete."
    if tags[VARIANT] != BASELINE and "latency_p50_ms" not in values:
        return "a variant was not timed."
    task = tags.get("mlflow_opt.task") or _task(values)
    if not task:
        return "it compares no models (it has no quality metric)."
    rows = next((f"{one.dataset.name} {one.dataset.digest}" for one in _datasets(child) if one.dataset.name.endswith(".selection")), "")
    if not rows:
        return "it does not say which rows it was scored on."
    machine = parent.data.tags.get(HARDWARE, "")
    cores = re.search(r"\bcores=(\d+)", machine)
    return Result(
        recipe=tags.get(RECIPE, ""),
        name=tags[VARIANT],
        run_id=child.info.run_id,
        parent_id=parent.info.run_id,
        standing=tags.get(STANDING, ""),
        task=task,
        rows=rows,
        machine=machine,
        values=values,
        judged=evidence.from_metrics(values, tags),
        verdict=tags.get(evidence.VERDICT, ""),
        minutes=((parent.info.end_time or 0) - parent.info.start_time) / 60_000,
        cores=int(cores[1]) if cores else 1,
        model_id=next((one.model_id for one in child.outputs.model_outputs), "") if child.outputs else "",
    )


def _datasets(run: Run) -> list[mlflow.entities.DatasetInput]:
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _task(values: Mapping[str, float]) -> str:
    """Tell the task by its metrics: each has some that the others lack."""
    if "r2" in values:
        return "regression"
    if "average_precision" in values:
        return "binary"
    return "multiclass" if metrics.QUALITY["multiclass"][0] in values else ""
