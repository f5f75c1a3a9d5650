"""One run of one recipe: baseline, variants, choice, verdict, registration; recipes write to tracking only through it.

A recipe opens a session, adds variants as it makes them and concludes. Everything is written as soon as it is known, so
that a run that dies keeps what it had measured; what the tracking server no longer took is written to a file and named.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_opt import data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.flavours.model_files import TRAINABLE
from mlflow_opt.models import Model
from mlflow_opt.networks import trainable
from mlflow_opt.records import Policy, Variant, Verdict
from mlflow_opt.reports.report import Exhibit
from mlflow_opt.runs import aftermath, candidates, choosing, interruption, outcome, proof, tracking
from mlflow_opt.runs.candidates import Candidate
from mlflow_opt.runs.choosing import Aim
from mlflow_opt.runs.outcome import Row
from mlflow_opt.runs.progress import Progress
from mlflow_opt.runs.registering import Target
from mlflow_opt.runs.workshop import Workshop
from mlflow_opt.tables import learner_files

_logger = logging.getLogger(__name__)

BASELINE = "baseline"
Trainer = Callable[[data.Split, Path, int], Path]
# What the default policy asks of a variant that is made for quality: at most 1.4 times as slow.
_SPEEDUP = {"latency": 1.05, "quality": 0.7, "first": 0.7, "last": 1.05}


class Session(Workshop):
    """A run that is under way; `start` makes it."""

    def __init__(
        self, recipe: str, params: Mapping[str, Any], parent: tracking.Parent, folder: Path, aim: Aim = "latency", half: str = ""
    ) -> None:
        """Read the data and find the policy.

        Args:
            recipe: name of the recipe.
            params: its parameters.
            parent: the parent run.
            folder: scratch folder, gone when the session ends.
            aim: what the recipe looks for.
            half: of the gate rows, all if empty.
        """
        split = data.split(data.read(f"{params['data']}{half and '#'}{half}", str(params["target"])))
        super().__init__(split, folder, int(params.get("threads", 1)), str(params.get("metric", "")))
        self.recipe, self.params, self.parent, self.aim, self.seed = recipe, params, parent, aim, int(params["seed"])
        self.target = Target(str(params.get("register_as", "")), recipe)
        self.policy = self._policy()
        self.candidates: list[Candidate] = []
        self.recorded: list[Candidate] = []
        self.findings: list[str] = []
        self.exhibits: list[Exhibit] = []
        self._inputs = proof.dataset_inputs(self.split)
        self._progress = Progress(recipe)
        self._open: set[str] = set()
        self._clock = time.monotonic()
        tracking.log_inputs(parent.run_id, list(self._inputs.values()))

    def measure_baseline(self, train: Trainer | None) -> None:
        """Load the model to optimise, or train one (the default of the data if no trainer is given), and measure it."""
        if self.params.get("model"):
            loaded = models.load(str(self.params["model"]), self.threads)
        else:
            from mlflow_opt import baselines

            _logger.info("No model was given: training the default one on %s.", self.split.dataset.name)
            trained = (train or baselines.train_baseline)(self.split, self.folder / BASELINE, self.seed)
            loaded = models.load(str(trained), self.threads)
        candidates.require_answers(loaded, self.example)
        proof.require_same_split(loaded, self.split)
        self.baseline = self._record(Variant(BASELINE, loaded, {"flavour": loaded.flavour}), loaded, None)
        self.reference = self._reference()
        self._progress.step(f"baseline ({loaded.flavour}): {self.headline} {self.baseline.plain.get(self.headline, float('nan')):.4f}")

    def expect(self, variants: int) -> None:
        """Say how many variants will come, so that progress can say how long it will take."""
        # A clock of its own: training a baseline says nothing about how long a variant takes.
        self._progress = Progress(self.recipe, variants)

    def trial(self, name: str, params: Mapping[str, Any], values: Mapping[str, float]) -> str:
        """Write a trial of a search, which has values and no model of its own, as a finished child run; returns its id."""
        tags = {"mlflow_opt.recipe": self.recipe, "mlflow_opt.trial": name}
        return tracking.log_finished_child(self.parent, name, values, {"variant": name, **params}, tags)

    def add(self, variant: Variant) -> float:
        """Score a variant on the selection rows, write its child run, give its headline drop; one that is no drop-in is only shown."""
        if not isinstance(variant.model, Model):
            raise TypeError(f"a variant's model must be a Model on disk, got {type(variant.model).__name__}; save it with `dropin` first.")
        candidate = self._record(variant, variant.model, self.baseline)
        candidate.refused = self._refusal(candidate.model)
        self.candidates.append(candidate)
        drop = measure.drop(candidate.scored, self.baseline.scored, self.headline)
        shown = f"{variant.name}: {self.headline} {candidate.plain[self.headline]:.4f} (drop {drop:+.4f}) {candidate.refused}"
        self._progress.step(shown.rstrip())
        return drop

    def missed(self) -> list[str]:
        """Time what was added last beside the baseline, and say which criteria of the policy it misses."""
        last, threads = self.candidates[-1], self.threads
        candidates.time_in_turns(self.baseline, [last], self.split.selection.rows, threads, keep_baseline=False)
        return choosing.misses(last.measured, self.policy)

    def conclude(self, advise: Callable[[Sequence[Row]], Sequence[str]] | None = None) -> Verdict | None:
        """Time all variants in turns, choose, judge the chosen one on the gate rows, register it and write the report.

        Args:
            advise: turns the finished rows into findings in words, such as "int8 does not pay on this CPU".

        Returns:
            the verdict on the chosen variant, None if none met the policy on the selection rows.

        """
        self._time_all()
        measured = {c.variant.name: c.measured for c in self.candidates if not c.refused}
        everyone = {BASELINE: self.baseline.measured, **measured} if self.aim == "first" else measured
        name = choosing.choice(self.aim, everyone, self.policy, self.headline)
        chosen = next((c for c in (*self.candidates, self.baseline) if c.variant.name == name), None)
        rows = self._rows(name)
        self.findings += list(advise(rows)) if advise else []
        if chosen is None:
            self.findings.append(choosing.nothing_chosen(measured, self.policy))
        proved = self._prove(chosen) if chosen and self.aim != "first" else None
        version = self._register(chosen, proved) if chosen else ""
        for run_id in sorted(self._open):
            self._close(run_id, "FINISHED")
        scored = {c.variant.name: c.scored for c in (self.baseline, chosen) if c}
        facts = outcome.facts(self.split, self.model, str(self.params.get("model", "")), self.threads)
        closing = outcome.Closing(
            self.recipe, self.params, rows, self.headline, tuple(self.findings), self.target.name, version, self.aim, facts, scored
        )
        closing = replace(closing, exhibits=tuple(self.exhibits))
        outcome.publish(self.parent.run_id, closing, proved, self.policy)
        if chosen:
            tracking.log_tags(self.parent.run_id, {tracking.CHOSEN: chosen.model.model_id, tracking.CHOSEN_RUN: chosen.run_id})
        return proved.verdict if proved else None

    def end_open_runs(self, status: str) -> None:
        """End child runs that are still open, when the recipe dies or is interrupted."""
        for run_id in sorted(self._open):
            self._close(run_id, status)

    def _record(self, variant: Variant, model: Model, base: Candidate | None) -> Candidate:
        tags = {"mlflow_opt.recipe": self.recipe, "mlflow_opt.variant": variant.name}
        # The flavour of every child, so that baseline and variants line up in MLflow's comparison.
        shown = {"variant": variant.name, "flavour": model.flavour, **variant.params}
        run_id = tracking.open_child(self.parent, variant.name, shown, tags)
        self._open.add(run_id)
        made_in = time.monotonic() - self._clock
        scored = measure.quality(model, self.split.selection, self.task, self.own)
        measured = measure.selection(scored, base.scored if base else None, self.split.selection)
        logged = model if model.model_id else self._log_model(variant, model, run_id, base)
        candidate = Candidate(variant, logged, run_id, scored, measured, extra=proof.sizes(model) | {"train_seconds": made_in})
        self.recorded.append(candidate)
        tracking.log_values(run_id, candidate.plain, model_id=logged.model_id)
        tracking.log_inputs(run_id, [self._inputs["selection"]])
        self._clock = time.monotonic()
        return candidate

    def _log_model(self, variant: Variant, model: Model, run_id: str, base: Candidate | None) -> Model:
        """Upload a model as a logged model of its run; a bare file becomes a drop-in folder first."""
        if model.path.is_file():
            graph = exporting.to_onnx(model, self.example, self.task)
            model = dropin.save_dropin(
                graph, model, self.scratch("bare"), session=dropin.SessionOptions(self.threads), example=self.example
            )
        lineage = proof.lineage(base.model.model_id if base else "", self.split, self.recipe, self.params)
        params = {"variant": variant.name, **variant.params}
        model_id = tracking.create_model(self.parent, run_id, f"{self.recipe}-{variant.name}", params, lineage)
        folder = proof.local_folder(model, self.folder / "upload" / model_id)
        dropin.stamp(folder, model_id, run_id)
        tracking.upload_model(model_id, folder)
        return replace(model, path=folder, model_id=model_id, uri=f"models:/{model_id}")

    def _reference(self) -> Model:
        """Find the model that the verdict compares with: today's champion of the target name, else the baseline."""
        champion = proof.model_behind(self.target.name)
        if champion in ("", self.model.model_id):
            return self.model
        _logger.info("The verdict's reference is the champion of %s (%s).", self.target.name, champion)
        return models.load(f"models:/{champion}", self.threads)

    def _refusal(self, model: Model) -> str:
        try:
            dropin.check_dropin(model, self.model, self.example)
        except ValueError as error:
            return f"no drop-in: {error}"
        return "" if model.threads in (0, self.threads) else f"uses {model.threads} threads, threads={self.threads} was asked for"

    def _time_all(self) -> None:
        """Time baseline and variants in turns, once for each number of threads that a variant uses."""
        for threads in sorted({c.model.threads or self.threads for c in self.candidates}):
            group = [c for c in self.candidates if (c.model.threads or self.threads) == threads]
            _logger.info("Timing %d models in turns, %d thread%s.", len(group) + 1, threads, "s" if threads > 1 else "")
            candidates.time_in_turns(self.baseline, group, self.split.selection.rows, threads, keep_baseline=threads == self.threads)
        for candidate in self.candidates:
            if candidate.refused:
                self._close(candidate.run_id, "FINISHED")

    def _rows(self, chosen: str) -> list[Row]:
        rows = [self.baseline.row("chosen" if chosen == BASELINE else BASELINE)]
        for candidate in self.candidates:
            name = candidate.variant.name
            where = candidate.refused or choosing.standing(name, chosen, candidate.measured, self.policy)
            rows.append(candidate.row(where))
        return rows

    def _prove(self, chosen: Candidate) -> proof.Proof:
        if self.target.create():
            self.policy = self._policy()
        self._carry_trainable(chosen)
        self.findings.append(proof.seen_before(self.split))
        _logger.info("Judging %s on %d gate rows that no choice has seen.", chosen.variant.name, data.n_rows(self.split.gate.rows))
        budget_s = float(self.params.get("budget_s", measure.Conditions.budget_s))
        conditions = measure.Conditions(self.threads, 0, budget_s, self.seed, self.own)
        proved = proof.prove(chosen.model, self.reference, self.split, self.policy, conditions)
        proof.write(proved, self.policy, chosen.run_id)
        tracking.log_inputs(chosen.run_id, [self._inputs["gate"]])
        tracking.log_text(chosen.run_id, "verdict.json", proof.verdict_document(proved, self.policy))
        self._close(chosen.run_id, "FINISHED")
        proof.point_to(chosen.model.model_id, chosen.run_id)
        return proved

    def _carry_trainable(self, chosen: Candidate) -> None:
        """Give the chosen variant what it was made from, so that later recipes can go on training it."""
        if (chosen.model.path / TRAINABLE).is_dir():
            return
        carry = learner_files.carry if isinstance(self.example, pd.DataFrame) else trainable.carry
        if carry(self.model, chosen.model.path):
            tracking.upload_part(chosen.model.model_id, chosen.model.path / TRAINABLE, TRAINABLE)
            chosen.model = replace(chosen.model)

    def _register(self, chosen: Candidate, proved: proof.Proof | None) -> str:
        if proved is None:
            return self.target.add_first(chosen)
        if self.target.name and proved.verdict.outcome.value == "FAIL":
            self.findings.append(f"{chosen.variant.name} met the policy on the selection rows but not on the gate rows: not registered.")
        return self.target.add(chosen, proved, self.baseline)

    def _policy(self) -> Policy:
        return proof.policy_for(self.target.name, str(self.params.get("policy", "")), self.task, _SPEEDUP[self.aim])

    def _close(self, run_id: str, status: str) -> None:
        if run_id in self._open:
            tracking.close(run_id, status)
            self._open.discard(run_id)


@contextmanager
def start(
    recipe: str, params: Mapping[str, Any], *, aim: Aim = "latency", train: Trainer | None = None, half: str = ""
) -> Iterator[Session]:
    """Open the run of a recipe, measure its baseline, and end every run properly however the recipe ends.

    Args:
        recipe: name of the recipe.
        params: all of its parameters: `locals()` as the recipe's first statement.
        aim: what to choose: the cheapest variant that meets the policy, the best one, or a first model, which is not judged.
        train: trains the baseline where no model was given; the default model of the data if there is no trainer.
        half: of the gate rows, `final` for a chain whose steps were judged on the other; all if empty.

    Raises:
        ConnectionError: the tracking server does not answer.

    """
    tracking.require_store()
    given = dict(params)
    parent = tracking.open_parent(recipe, given, {"mlflow_opt.recipe": recipe})
    session: Session | None = None
    with interruption.heeded(), tempfile.TemporaryDirectory(prefix=f"mlflow-opt-{recipe}-") as folder:
        try:
            session = Session(recipe, given, parent, Path(folder), aim, half)
            session.measure_baseline(train)
            yield session
        except BaseException as error:
            aftermath.end_badly(parent, session, error)
            raise
    tracking.close(parent.run_id, "FINISHED")
