"""Take a table, arrays or a registered model through the eight steps, and keep of each only what passed its verdict.

1 baseline, 2 feature audit, 3 hyper-parameter search, 4 regularisation and architecture, 5 pruning and quantisation (for a
table: pruning and compiling), 6 distillation if the policy is still missed, 7 ensemble pruning where there are several
models, 8 settings of the server; just before step 8, of two classes, the threshold from which the rarer one is answered. Every step
is an ordinary run of its recipe on the best model so far, so that it can be looked at and repeated alone. A step whose verdict
is no PASS changes nothing. Run again after it was killed, the same pipeline finds its finished steps and goes on with the next.

Helps to get from data to a version that is ready to be promoted, and to see which step brought what. Does not help where
one technique is wanted: run that recipe, it takes less time and all of its own parameters.

The gate rows are halved once and for all. Steps are judged on one half, and the end of the chain on the other, which no
step has seen: eight verdicts on the same rows would flatter the last one (Dwork et al. 2015). A step is asked for what the
policy says about losses, against the model before it; absolute bounds and the whole gain are asked of the end.

The model is compiled first of all, although that belongs to step 5: from then on every gain is that of its technique,
measured in one runtime.

References: Dwork et al. 2015, "The reusable holdout: preserving validity in adaptive data analysis".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from mlflow_opt import models, session
from mlflow_opt.flavours import model_files
from mlflow_opt.records import Param, Variant, Verdict
from mlflow_opt.runs import chain_limits, chain_story, chaining, registering, step_runs
from mlflow_opt.runs.chain_start import Beginning, begin
from mlflow_opt.runs.chain_story import Served
from mlflow_opt.runs.chaining import Step
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run

logger = logging.getLogger(__name__)

# In this order, with the share of the time that each gets of those that still come.
STEPS = {
    "baseline": 2.0,
    "compile": 2.0,
    "select_features": 2.0,
    "tune": 4.0,
    "regularize": 3.0,
    "nas": 5.0,
    "prune": 3.0,
    "quantize": 3.0,
    "distill": 3.0,
    "prune_ensemble": 2.0,
    "threshold": 1.0,
    "serve": 2.0,
}
TABLES_ONLY = ("baseline", "select_features", "tune", "prune_ensemble", "threshold")
NETWORKS_ONLY = ("nas", "quantize")
ENSEMBLES = ("Voting", "Stacking", "Bagging")
TREES = ("LGBM", "XGB", "RandomForest", "ExtraTrees", "GradientBoosting", "HistGradientBoosting", "DecisionTree", "Voting", "Stacking")
# What a step may take of what is left, as a multiple of its share, or in seconds if that is more: shares are guesses, a step that is
# cut off brings nothing, and measuring alone takes a minute where the model's own libraries are slow to load.
MOST, LEAST_S = 2.0, 150.0
# Seconds that are kept for steps at the end, which cost little and bring much; and without which no step is begun.
KEPT_FOR = {"threshold": 50.0, "serve": 70.0}
TOO_FEW_S = 40.0
# The end's own verdict, timing and served latency.
END_S = 120.0
# Of the default network of pictures.
FIRST_EPOCHS = 10


@dataclass
class Chain:
    """A chain on its way: the session, what the user wants, the logged model that the next step starts from, the steps so far."""

    work: session.Session
    names: Sequence[str]
    until: float
    start: str
    steps: list[Step] = field(default_factory=list)
    epoch_s: float = 0.0

    @property
    def best(self) -> models.Model:
        """Return the model that the next step starts from."""
        return self.work.candidates[-1].model if self.work.candidates else self.work.model

    @property
    def digest(self) -> str:
        """Return the digest of the files that the next step starts from: ids change from run to run, files do not."""
        return model_files.folder_digest(model_files.locate(f"models:/{self.start}").path)

    @property
    def left(self) -> float:
        """Return the seconds that steps may still take."""
        return max(0.0, self.until - time.monotonic())

    def share(self, recipe: str) -> float:
        """Give a step its share of the time that is left, among those that may still run."""
        wanted = [name for name in self.names[self.names.index(recipe) :] if name == recipe or not never(name, self)]
        return self.left * STEPS[recipe] / sum(STEPS[name] for name in wanted)

    def allowance(self, recipe: str) -> float:
        """Return the seconds after which a step is stopped."""
        kept = sum(KEPT_FOR.get(name, 0.0) for name in self.names[self.names.index(recipe) + 1 :] if not never(name, self))
        return min(self.left - kept, max(LEAST_S, MOST * self.share(recipe)))


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


def never(recipe: str, chain: Chain) -> str:
    """Say why a step cannot apply to this data and model, whatever the steps before it bring; `""` if it may."""
    is_table = isinstance(chain.work.example, pd.DataFrame)
    if recipe in TABLES_ONLY and not is_table:
        return "it is for tables, the data are arrays"
    if recipe in NETWORKS_ONLY and is_table:
        return "it is for networks, the data are a table"
    if recipe == "threshold" and chain.work.task.kind != "binary":
        return "it is for two classes"
    if recipe == "prune_ensemble" and not last_named(chain.work.model).startswith(ENSEMBLES):
        return "the model is no ensemble of several models"
    return ""


def why_not(recipe: str, chain: Chain) -> str:
    """Say why a step is not taken now, `""` if it is."""
    if reason := never(recipe, chain):
        return reason
    if recipe == "compile" and chain.best.is_variant:
        return "the model is a compiled variant already"
    is_table = isinstance(chain.work.example, pd.DataFrame)
    if recipe == "prune" and is_table and not last_named(chain.best).startswith(TREES):
        return f"there are no trees to prune, the model is a {last_named(chain.best) or chain.best.flavour}"
    if recipe == "distill" and chain.work.candidates and not chain.work.missed():
        return "the policy is met without it"
    if chain_limits.too_short(recipe, MOST * chain.share(recipe), chain.epoch_s):
        return "its share of the time is too short to train a network"
    return "" if chain.allowance(recipe) >= TOO_FEW_S else "the time that is left is kept for what follows, or spent"


def last_named(model: models.Model) -> str:
    """Name the class of what predicts in a table's model, or in what a variant carries; `""` if there is no such thing."""
    carried = model.path / model_files.TRAINABLE
    native = models.load(str(carried), model.threads) if (carried / model_files.MLMODEL).is_file() else model
    if native.flavour not in ("sklearn", "lightgbm", "xgboost"):
        return ""
    last: object = getattr(native.runtime, "core", native.native)
    while hasattr(last, "steps"):
        last = last.steps[-1][1]
    name = type(last).__name__
    return "LGBMBooster" if (native.flavour, name) == ("lightgbm", "Booster") else name


def take(chain: Chain, recipe: str) -> None:
    """Run a step on the best model so far, keep its result if it passed, and write it down either way."""
    reason, params = why_not(recipe, chain), chain.work.params
    if reason:
        record(chain, Step(recipe, "skipped", reason))
        return
    path, digest = chain_story.policy_file(recipe, chain.work)
    asked: dict[str, Param] = {name: params[name] for name in ("target", "seed", "threads", "metric")}
    asked |= {"data": f"{params['data']}#steps", "whole_time": params["time_budget_s"], "digest": chain.digest, "asked": digest}
    seconds, share = chain.allowance(recipe), MOST * chain.share(recipe)
    # The kind of a model that the user gave is the user's choice.
    aside: dict[str, Param] = {"model": f"models:/{chain.start}", "policy": path, "families": "own" if params["model"] else "all"}
    network = not isinstance(chain.work.example, pd.DataFrame)
    aside |= chain_limits.limits(recipe, min(seconds, share), chain.epoch_s, network=network)
    record(chain, chaining.run_step(recipe, asked, aside, seconds, chain.work.parent.run_id))


def record(chain: Chain, step: Step) -> None:
    """Write down what became of a step; a new model of it is what the next one starts from."""
    if step.standing == "kept" and step.variant in chaining.UNCHANGED and chain.best.is_variant:
        step = replace(step, standing="not kept", reason="nothing that it tried was better than the model as it was")
    chain.steps.append(step)
    logger.info("Step %s: %s (%s).", step.recipe, step.standing, step.reason)
    work = chain.work
    if step.standing == "kept" and step.model_id and step.model_id != chain.start and step.recipe != "serve":
        # Logged again as this run's own: what it is compared with, here and by the registry, is the model at the beginning.
        made = replace(models.load(f"models:/{step.model_id}", work.threads), model_id="", uri="")
        work.add(Variant(step.recipe, made, {"step_run": step.run_id}))
        chain.start = step.model_id
    else:
        work.trial(f"step_{step.recipe}", {"standing": step.standing, "reason": step.reason, "step_run": step.run_id}, {})


def served(chain: Chain) -> Served | None:
    """Measure what a client sees: the first model under `mlflow models serve` and under this server, and the last under this one."""
    if not any(step.recipe == "serve" and step.standing == "kept" for step in chain.steps):
        return None
    from mlflow_opt.serving import served_latency

    chain_story.hand_on_settings(chain.start, chain.best.model_id)
    found = served_latency.compare(
        chain.work.model.path, chain.best.path, chain.work.split.selection.rows, served_latency.settings_of(chain.best.model_id)
    )
    return Served(found.before, found.server, found.after, found.saved)


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
    promote: bool = True,
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
        time_budget_s: for everything, the last verdict included; a step that takes far longer than its share is stopped and brings nothing.
        promote: ask for the alias champion where `register_as` is given and the verdict is PASS; a gated server decides.
        threads: threads that one prediction may use.
        budget_s: seconds that timing for the final verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: a step is unknown, or the data cannot be used.

    References:
        Dwork et al. 2015.
    """
    given, names, first = dict(locals()), chosen_steps(steps), Beginning()
    until = time.monotonic() + time_budget_s - END_S
    key = chaining.key_of("pipeline", {name: given[name] for name in ("data", "target", "seed", "time_budget_s")})
    with session.start("pipeline", given, aim="last", train=begin(first, names, given, key), half="final") as work:
        step_runs.mark_first(work.baseline.run_id, key, first.seconds)
        epoch_s = 0.0 if isinstance(work.example, pd.DataFrame) else first.seconds / FIRST_EPOCHS
        chain = Chain(work, names, until, work.model.model_id, first.steps, epoch_s)
        for recipe in names:
            if recipe == "baseline" and (first.steps or model):
                chain_story.begun(work, first.steps)
            else:
                take(chain, recipe)

        def advise(_: Sequence[Row]) -> list[str]:
            chain_story.tell(work, chain.steps, served(chain))
            return []

        verdict = work.conclude(advise)
        if promote and register_as and verdict and verdict.passed:
            step_runs.add_note(work.parent.run_id, registering.ask_for_champion(register_as))
        return verdict


if __name__ == "__main__":
    run(pipeline)
