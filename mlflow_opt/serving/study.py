"""One run of the recipe `serve`: the model, the requests, a child run per setting, the choice, what is stored and shown."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_opt import data
from mlflow_opt.data import Split
from mlflow_opt.flavours import model_files
from mlflow_opt.runs import aftermath, tracking
from mlflow_opt.runs.progress import Progress
from mlflow_opt.serving import settings as options
from mlflow_opt.serving import study_report, versions
from mlflow_opt.serving.contender import Found, Objective, find_rate, free_port, mlflow_command, our_command, running
from mlflow_opt.serving.load import request_bytes, zipf_order
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.study_page import study_page

logger = logging.getLogger(__name__)

BASELINE = "baseline"
_SENT = 20_000


@dataclass(frozen=True)
class Tried:
    """One setting and what it sustains; `settings` is None for `mlflow models serve`."""

    name: str
    settings: Settings | None
    found: Found
    hit_rate: float = 0.0


class Study:
    """A run that is under way; `start` makes it."""

    def __init__(self, params: Mapping[str, Any], parent: tracking.Parent, folder: Path) -> None:
        """Read the data, find the model, and write the requests.

        Args:
            params: the recipe's parameters.
            parent: the parent run.
            folder: scratch folder, gone when the study ends.

        """
        self.params, self.parent, self.folder = params, parent, folder
        self.objective = Objective(params["p95_ms"], params["seconds"], params["connections"], seed=params["seed"])
        split = data.split(data.read(params["data"], params["target"]))
        self.model, self.model_id = self._model(split)
        order = zipf_order(params["keys"], _SENT, params["key_exponent"], params["seed"])
        rows = [request_bytes(body) for body in bodies(split.selection.rows, params["keys"])]
        self._requests = [rows[key % len(rows)] for key in order]
        self.tried: list[Tried] = []
        self.findings: list[str] = []
        self._progress = Progress("serve")
        self._begun = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Return what is left of the time budget, infinite if there is none."""
        budget = float(self.params["time_budget_s"])
        return budget - (time.monotonic() - self._begun) if budget else float("inf")

    def expect(self, settings: int) -> None:
        """Say how many settings will be tried."""
        self._progress.total = settings

    def measure_baseline(self) -> Tried:
        """Measure `mlflow models serve` on the same model, with the same requests."""
        port = free_port()
        with running(mlflow_command(str(self.model), port), port, self.folder / "baseline.log") as process:
            found = find_rate(process, port, self._requests, self.objective)
        return self._keep(Tried(BASELINE, None, found))

    def measure(self, name: str, settings: Settings) -> Tried:
        """Measure our server with some settings, as a child run."""
        port = free_port()
        with running(our_command(str(self.model), settings, port), port, self.folder / f"{name}.log") as process:
            found = find_rate(process, port, self._requests, self.objective)
            hits = study_report.hit_rate(port)
            self.fast_path, self.batches = study_report.served_how(port)
        return self._keep(Tried(name, settings, found, hits))

    def conclude(self, chosen: Tried | None, findings: Sequence[str]) -> None:
        """Store the chosen settings with the model, and write the parent's metrics, description, curves."""
        lines = [*findings, self._store(chosen)]
        price = float(self.params["price_per_core_hour"])
        baseline = {f"baseline_{key}": value for key, value in study_report.metrics(self.tried[0].found, 0.0, price).items()}
        best = study_report.metrics(chosen.found, chosen.hit_rate, price) if chosen else {}
        note = study_report.description(self.tried, chosen, lines, self.objective, price)
        tracking.log_values(self.parent.run_id, baseline | best, {MLFLOW_RUN_NOTE: note})
        path = self.folder / "curves.png"
        study_report.save_curves(self.tried, self.objective.p95_ms, path)
        tracking.log_file(self.parent.run_id, path)
        tracking.log_text(self.parent.run_id, "report.html", study_page(self.tried, chosen, lines, self.objective, self.params))
        logger.info("\n%s\n", note)

    def _keep(self, tried: Tried) -> Tried:
        values = study_report.metrics(tried.found, tried.hit_rate, float(self.params["price_per_core_hour"]))
        how = asdict(tried.settings) if tried.settings else {}
        params = {"variant": tried.name, **{name: how[name] for name in options.TUNED if name in how}}
        tags = {"mlflow_opt.recipe": "serve", "mlflow_opt.variant": tried.name}
        run_id = tracking.log_finished_child(self.parent, tried.name, values, params, tags)
        tracking.log_text(run_id, "curve.json", json.dumps([asdict(load) for load in tried.found.curve], indent=1))
        self.tried.append(tried)
        shown = f"{tried.found.sustained:.0f} requests/s within {self.objective.p95_ms:g} ms ({tried.found.capacity:.0f} at full load)"
        self._progress.step(f"{tried.name}: {shown}")
        return tried

    def _model(self, split: Split) -> tuple[Path, str]:
        if self.params["model"]:
            version = versions.resolve(self.params["model"])
            source = model_files.locate(version.pinned)
            return source.path, version.model_id or source.model_id
        logger.info("No model was given: training the default one on %s and compiling it.", split.dataset.name)
        from mlflow_opt import baselines, models
        from mlflow_opt.export import dropin, exporting

        trained = models.load(str(baselines.train_baseline(split, self.folder / "trained", int(self.params["seed"]))))
        example = data.take(split.calibration.rows, slice(0, 64))
        graph = exporting.to_onnx(trained, example, split.task)
        made = dropin.save_dropin(graph, trained, self.folder / "model", session=dropin.SessionOptions(threads=1), example=example)
        return made.path, ""

    def _store(self, chosen: Tried | None) -> str:
        if chosen is None or chosen.settings is None:
            return "No setting met the objective: nothing was stored. Ask for a larger p95_ms, or compile the model first."
        said = options.tuned(chosen.settings)
        if not self.params["store"]:
            return f"Not stored, as asked: {said}"
        if not self.model_id:
            return f"Not stored, because the model is no logged model of this tracking server: {said}"
        tracking.tag_model(self.model_id, {options.SETTINGS_TAG: said})
        return f"Stored with {self.model_id} and used whenever it is served: {said}"


@contextmanager
def start(recipe: str, params: Mapping[str, Any]) -> Iterator[Study]:
    """Open the run of the recipe, and end it properly however the recipe ends.

    Args:
        recipe: its name.
        params: all of its parameters: `locals()` as the recipe's first statement.

    Raises:
        ConnectionError: the tracking server does not answer.

    """
    tracking.require_store()
    given = dict(params)
    parent = tracking.open_parent(recipe, given, {"mlflow_opt.recipe": recipe})
    with tempfile.TemporaryDirectory(prefix=f"mlflow-opt-{recipe}-") as folder:
        try:
            yield Study(given, parent, Path(folder))
        except BaseException as error:
            aftermath.end_badly(parent, None, error)
            raise
    tracking.close(parent.run_id, "FINISHED")


def bodies(rows: Any, most: int) -> list[bytes]:
    """Write rows as requests of one row each.

    Args:
        rows: a table, or arrays by input name.
        most: how many.

    """
    if isinstance(rows, pd.DataFrame):
        named = json.loads(rows.head(most).to_json(orient="split", double_precision=15))
        return [json.dumps({"dataframe_split": {"columns": named["columns"], "data": [row]}}).encode() for row in named["data"]]
    arrays = {name: array[:most] for name, array in rows.items()}
    count = len(next(iter(arrays.values())))
    if len(arrays) == 1:
        (only,) = arrays.values()
        return [json.dumps({"inputs": only[index : index + 1].tolist()}).encode() for index in range(count)]
    return [json.dumps({"inputs": {n: a[index : index + 1].tolist() for n, a in arrays.items()}}).encode() for index in range(count)]
