"""Take a table, arrays or a registered model through the eight steps, and keep of each only what passed its verdict.

1 baseline, 2 feature audit, 3 hyper-parameter search, 4 regularisation and architecture, 5 pruning and quantisation (for a
table: pruning and compiling), 6 distillation if the policy is still missed, 7 ensemble pruning where there are several
models, 8 settings of the server. Every step is an ordinary run of its recipe on the best model so far, so that it can be
looked at and repeated alone. A step whose verdict is no PASS changes nothing.

Helps to get from data to a version that is ready to be promoted, and to see which step brought what. Does not help where
one technique is wanted: run that recipe, it takes less time and all of its own parameters.

The gate rows are halved once and for all. Steps are judged on one half, and the end of the chain on the other, which no
step has seen: eight verdicts on the same rows would flatter the last one (Dwork et al. 2015).

A table's model is compiled first of all, although that belongs to step 5: from then on every gain is that of its
technique, measured in one runtime.

References: Dwork et al. 2015, "The reusable holdout: preserving validity in adaptive data analysis".
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mlflow_opt import measure, models, session
from mlflow_opt.records import Variant, Verdict
from mlflow_opt.reports import waterfall
from mlflow_opt.runs import tracking
from mlflow_opt.runs.chaining import Step, run_step
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run

logger = logging.getLogger(__name__)

# In this order, with the share of the time that each gets of those that still come.
STEPS = {
    "baseline": 1.0,
    "compile": 1.0,
    "select_features": 2.0,
    "tune": 4.0,
    "regularize": 3.0,
    "nas": 5.0,
    "prune": 3.0,
    "quantize": 2.0,
    "distill": 3.0,
    "prune_ensemble": 2.0,
    "serve": 2.0,
}
TABLES_ONLY = ("baseline", "compile", "select_features", "tune", "prune_ensemble")
NETWORKS_ONLY = ("nas", "quantize")
ENSEMBLES = ("Voting", "Stacking", "Bagging")


@dataclass
class Chain:
    """A chain on its way: the session, what the user wants, the steps so far."""

    work: session.Session
    names: Sequence[str]
    until: float
    steps: list[Step] = field(default_factory=list)

    @property
    def best(self) -> models.Model:
        """Return the model that the next step starts from."""
        return self.work.candidates[-1].model if self.work.candidates else self.work.model

    def seconds_for(self, recipe: str) -> float:
        """Give a step its share of the time that is left."""
        left = [STEPS[name] for name in self.names[self.names.index(recipe) :]]
        return max(0.0, self.until - time.monotonic()) * STEPS[recipe] / sum(left)


def chosen_steps(steps: str) -> list[str]:
    """Read which steps are wanted.

    Example:
        >>> chosen_steps("serve, tune")
        ['tune', 'serve']

    Raises:
        ValueError: one of them is no step.
    """
    wanted = [name.strip() for name in steps.split(",") if name.strip()] or list(STEPS)
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        raise ValueError(f"steps must be among {', '.join(STEPS)}, got {', '.join(unknown)}; leave steps empty for all of them.")
    return [name for name in STEPS if name in wanted]


def why_not(recipe: str, chain: Chain) -> str:
    """Say why a step does not apply to this data and model, `""` if it does."""
    is_table = isinstance(chain.work.example, pd.DataFrame)
    if recipe in TABLES_ONLY and not is_table:
        return "it is for tables, the data are arrays"
    if recipe in NETWORKS_ONLY and is_table:
        return "it is for networks, the data are a table"
    if recipe == "baseline" and chain.work.params["model"]:
        return "a model was given"
    if recipe == "compile" and chain.best.is_variant:
        return "the model is a compiled variant already"
    if recipe == "prune_ensemble" and not is_ensemble(chain.work.model):
        return "the model is no ensemble of several models"
    if recipe == "distill" and chain.work.candidates and not chain.work.missed():
        return "the policy is met without it"
    return "" if chain.seconds_for(recipe) >= 1 else "the time budget is spent"


def is_ensemble(model: models.Model) -> bool:
    """Tell whether a model votes, stacks or bags several others."""
    last: object = model.native if model.flavour == "sklearn" else None
    while hasattr(last, "steps"):
        last = last.steps[-1][1]
    return type(last).__name__.startswith(ENSEMBLES)


def take(chain: Chain, recipe: str) -> None:
    """Run a step on the best model so far, keep its result if it passed, and write it down either way."""
    reason = why_not(recipe, chain)
    params = chain.work.params
    given = {name: params[name] for name in ("target", "policy", "seed", "threads", "metric")}
    if chain.best.model_id and recipe != "baseline":
        given["model"] = f"models:/{chain.best.model_id}"
    seconds = chain.seconds_for(recipe)
    given |= {"data": f"{params['data']}#steps", "time_budget_s": float(int(seconds * 0.6)), "budget_s": 20.0}
    step = Step(recipe, "skipped", reason) if reason else run_step(recipe, given, seconds, chain.work.parent.run_id)
    chain.steps.append(step)
    logger.info("Step %s: %s (%s).", recipe, step.standing, step.reason)
    if step.standing == "kept" and step.model_id and step.model_id != chain.best.model_id:
        model = models.load(f"models:/{step.model_id}", chain.work.threads)
        chain.work.add(Variant(recipe, model, {"step_run": step.run_id}))
    else:
        chain.work.trial(f"step_{recipe}", {"standing": step.standing, "reason": step.reason, "step_run": step.run_id}, {})


def levels(chain: Chain, metric: str) -> list[waterfall.Level]:
    """Give latency and quality after each step that was kept; quality on the final rows, from which nothing is chosen."""
    found = []
    for one in (chain.work.baseline, *chain.work.candidates):
        scored = measure.quality(one.model, chain.work.split.gate, chain.work.task, chain.work.own)
        latency = one.plain.get("latency_p50_ms", float("nan"))
        found.append(waterfall.Level(one.variant.name, latency, scored.values.get(metric, float("nan"))))
    return found


def show(chain: Chain) -> list[str]:
    """Write the waterfall, and say in words what became of each step."""
    metric = "f1" if chain.work.task.kind == "binary" else chain.work.headline
    stairs = levels(chain, metric)
    with tempfile.TemporaryDirectory() as folder:
        waterfall.save(stairs, metric, Path(folder) / "waterfall.png")
        tracking.log_file(chain.work.parent.run_id, Path(folder) / "waterfall.png")
    said = [
        f"- {step.recipe}: {step.standing}, {step.reason}" + (f" ({step.seconds:.0f} s)" if step.seconds else "") for step in chain.steps
    ]
    return [
        f"After each step, {metric} on rows that no step has seen:\n\n{waterfall.table(stairs, metric)}",
        "Steps:\n\n" + "\n".join(said),
    ]


def served(chain: Chain) -> list[str]:
    """Compare what a client sees: the model as it was under `mlflow models serve`, the best one under this server."""
    if "serve" not in chain.names or any(step.recipe == "serve" and step.standing != "kept" for step in chain.steps):
        return []
    from mlflow_opt.serving import served_latency
    from mlflow_opt.serving.settings import Settings

    found = served_latency.compare(chain.work.model.path, chain.best.path, chain.work.split.selection.rows, Settings())
    values = {"baseline_served_p50_ms": found.before.value, "served_p50_ms": found.after.value, "served_saved": found.saved.value}
    tracking.log_values(chain.work.parent.run_id, values)
    said = f"Served, one row over HTTP: {found.before.value:.2f} ms by `mlflow models serve` of the model as it was, "
    said += f"{found.after.value:.2f} ms by `mlflow-opt start_server` of the best one: {found.saved.value:.1%} less "
    return [f"{said}[{found.saved.lo:.1%}, {found.saved.hi:.1%}]."]


def pipeline(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    steps: str = "",
    time_budget_s: float = 540.0,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Take data or a model through every technique that applies, and register what is left with its proof.

    Helps to get from a table, images or a registered model to a version that is ready to be promoted. Does not help where
    one technique is wanted: its own recipe takes less time and more parameters.

    Example:
        mlflow run . -e pipeline -P data=churn.parquet -P register_as=churn

    Args:
        model: MLflow model URI; empty trains the default model on the data.
        data: parquet, csv, npz, folder, MLflow URI or a bundled name.
        target: name of the target column or array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the result to; empty registers nothing.
        seed: every random choice derives from it.
        steps: names of the steps to take, with commas between them; empty for all that apply.
        time_budget_s: for all steps together; a step that takes longer than its share is stopped and changes nothing.
        threads: threads that one prediction may use.
        budget_s: seconds that timing for the final verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: a step is unknown, or the data cannot be used.

    References:
        Dwork et al. 2015.
    """
    names = chosen_steps(steps)
    with session.start("pipeline", locals(), aim="last", half="final") as work:
        chain = Chain(work, names, time.monotonic() + time_budget_s)
        for recipe in names:
            take(chain, recipe)

        def advise(_: Sequence[Row]) -> list[str]:
            return [*show(chain), *served(chain)]

        return work.conclude(advise)


if __name__ == "__main__":
    run(pipeline)
