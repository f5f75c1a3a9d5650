"""Train with several learning-rate schedules, each to its end and with early stopping, and count what stopping saved.

Helps where training is long against what the data can teach: the validation loss is at its best well before the schedule
ends, and the epochs after it cost time and overfit. Does not help schedules that end low by design (cosine, one-cycle): their
best epochs are the last ones, so that stopping saves little or loses quality, which the figures then show. Early stopping
needs validation rows that are like the ones to come; the calibration rows serve for it here, and no other rows are looked at.

Both trainings of a schedule are one: the full one goes on from where patience ran out, so comparing them costs no epoch twice.
Trees stop by rounds: LightGBM and XGBoost with their own learning rate and with a third of it.

References: Prechelt 1998, "Early stopping - but when?"; Loshchilov, Hutter 2017, "SGDR: stochastic gradient descent with warm
restarts"; Smith, Topin 2019, "Super-convergence".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from mlflow_opt import session
from mlflow_opt.networks.schedules import Schedule
from mlflow_opt.records import Variant, Verdict
from mlflow_opt.rows.batches import as_table
from mlflow_opt.runs import candidates
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.tables import learners
from mlflow_opt.workbench import curves, retraining

if TYPE_CHECKING:
    from mlflow_opt.networks.training import Epoch, Fitted

logger = logging.getLogger(__name__)

Choice = Literal["all", "constant", "step", "cosine", "cosine_restarts", "one_cycle", "plateau"]
Start = Literal["fresh", "given"]
# A lower rate takes more rounds for the same loss, and stops at a better one.
RATES = {"own_rate": 1.0, "third_rate": 1 / 3}
_PARENT_METRICS = ("epochs_saved", "seconds_saved")


def wanted_schedules(choice: Choice) -> tuple[Schedule, ...]:
    """List the schedules to train with.

    Example:
        >>> wanted_schedules("cosine"), len(wanted_schedules("all"))
        (('cosine',), 6)
    """
    schedules: tuple[Schedule, ...] = get_args(Schedule)
    return schedules if choice == "all" else (choice,)


def savings(stopped: Fitted, full: Fitted, limit: int) -> dict[str, float]:
    """Say what stopping saved against the full training that it is the beginning of.

    Args:
        stopped: the training until patience ran out.
        full: the same training until its end.
        limit: the most epochs it could have had.

    Returns:
        Shares of epochs and seconds in [0, 1), and the share of the epochs at which the best weights were found.
    """
    saved = 1 - stopped.seconds / full.seconds if full.seconds else 0.0
    return {"epochs_saved": 1 - len(stopped.history) / limit, "seconds_saved": saved, "best_share": stopped.best / limit}


def rounds_of(fitted: learners.Fitted) -> tuple[int, int]:
    """Give the rounds that a boosting model was trained for and the round it keeps: its best one."""
    last = fitted.last
    best = int(getattr(last, "best_iteration_", 0) or getattr(last, "best_iteration", -1) + 1)
    return int(getattr(last, "n_estimators_", 0) or last.get_params()["n_estimators"]), best


def fit_rounds(learner: learners.Learner, work: session.Session, params: Mapping[str, Any], patience: int) -> learners.Fitted:
    """Train a boosting model on the train rows; the calibration rows stop it if patience is positive."""
    split = work.split
    valid = (as_table(split.calibration.rows), split.calibration.labels) if patience else None
    return learner.fit(as_table(split.train.rows), split.train.labels, params=params, valid=valid, patience=patience)


def advise(rows: Sequence[Row], headline: str, limit: int) -> list[str]:
    """Say for each pair what stopping saved and cost, which pair is best, and whether the limit was too low to say anything."""
    named = {row.name: row for row in rows}
    found = []
    for row in rows:
        other = named.get(row.name.removesuffix("_stopped") + "_full")
        if not row.name.endswith("_stopped") or other is None:
            continue
        saved, seconds = (100 * row.metrics.get(name, 0.0) for name in _PARENT_METRICS)
        cost = row.metrics[f"drop_{headline}"] - other.metrics[f"drop_{headline}"]
        found.append(
            f"{row.name}: {saved:.0f}% of the epochs and {seconds:.0f}% of the seconds saved, {cost:+.4f} {headline} lost against the "
            f"full schedule; best at {100 * row.metrics['best_share']:.0f}% of {limit} epochs."
        )
    stopped = [row for row in rows if row.name.endswith("_stopped")]
    if stopped and all(row.metrics["epochs_saved"] <= 0 for row in stopped):
        found.append(f"Nothing stopped before the limit of {limit}: the schedules need all of it, or it is too low to tell; raise it.")
    return found


def early_stop(
    *,
    model: str = "",
    data: str = "fashion_mnist",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    schedule: Choice = "all",
    start: Start = "fresh",
    epochs: int = 15,
    patience: int = 5,
    least_gain: float = 0.002,
    rounds: int = 1000,
    patience_rounds: int = 50,
    learning_rate: float = 0.0,
    time_budget_s: float = 0.0,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Train a network or boosted trees with six learning-rate schedules, each with and without early stopping.

    Helps to find how many epochs or rounds a model needs, and with which schedule. Does not help models that are fitted
    in one go (linear models, forests), which it refuses, nor trainings that are shorter than their patience.

    Example:
        mlflow run . -e early_stop -P model=models:/digits/3 -P data=digits.npz -P epochs=40 -P patience=6

    Args:
        model: MLflow model URI (torch, or a variant that carries its network; LightGBM, XGBoost); empty trains the default model.
        data: npz, table, folder, MLflow URI or a bundled name.
        target: name of the target array or column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the best to; empty registers nothing.
        seed: every random choice derives from it.
        schedule: of the learning rate; `all` compares the six.
        start: `fresh` draws new weights, so that schedules start alike; `given` goes on from the model's own.
        epochs: most passes of a network over the train rows.
        patience: epochs without a better validation loss after which a network stops.
        least_gain: relative improvement of the loss below which an epoch does not count as better.
        rounds: most trees of a boosting model.
        patience_rounds: rounds without a better validation loss after which a boosting model stops.
        learning_rate: the highest; 0 takes 0.002 for a network and the model's own for trees.
        time_budget_s: no further schedule is begun after so many seconds; 0 is no limit.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model is not trained step by step, holds nothing to train, or the data does not fit it.

    References:
        Prechelt 1998; Loshchilov, Hutter 2017; Smith, Topin 2019.
    """
    _check_positive(epochs=epochs, patience=patience, rounds=rounds, patience_rounds=patience_rounds)
    with session.start("early_stop", locals(), aim="quality") as work:
        ends = time.monotonic() + (time_budget_s or float("inf"))
        if isinstance(work.example, pd.DataFrame):
            _compare_rounds(work, (rounds, patience_rounds), learning_rate)
        else:
            _compare_schedules(work, wanted_schedules(schedule), (epochs, patience, least_gain), (start, learning_rate), ends)
        limit = rounds if isinstance(work.example, pd.DataFrame) else epochs
        return work.conclude(lambda rows: advise(rows, work.headline, limit))


def _check_positive(**lengths: int) -> None:
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; nothing can be trained or stopped otherwise.")


def _compare_schedules(
    work: session.Session, schedules: Sequence[Schedule], lengths: tuple[int, int, float], begin: tuple[Start, float], ends: float
) -> None:
    from mlflow_opt.networks.network_learners import usual_settings
    from mlflow_opt.networks.training import DivergedError

    epochs, patience, least_gain = lengths
    with retraining.start(work) as course:
        work.expect(2 * len(schedules))
        settings = usual_settings(len(course.train.targets), epochs, begin[1], work.seed)
        module = course.learner.fresh(work.seed, course.train) if begin[0] == "fresh" else course.learner.module
        shown: dict[str, tuple[Sequence[Epoch], int]] = {}
        for schedule in schedules:
            if time.monotonic() > ends:
                work.findings.append(f"The time budget was used up before {schedule}: it and what follows were not trained.")
                break
            how = replace(settings, schedule=schedule)
            try:
                stopped = course.fit(schedule, module, replace(how, patience=patience, least_gain=least_gain))
                full = course.fit(schedule, module, how)
            except DivergedError as why:
                work.findings.append(f"{schedule} was left out: {why}")
                continue
            shown[schedule] = (full.history, len(stopped.history) if len(stopped.history) < epochs else 0)
            _add_pair(course, schedule, stopped, full, epochs)
        if not shown:
            raise ValueError(f"no schedule could be trained: {' '.join(work.findings)}")
        curves.publish(work.parent.run_id, shown)


def _add_pair(course: retraining.Course, schedule: Schedule, stopped: Fitted, full: Fitted, epochs: int) -> None:
    saved, none = savings(stopped, full, epochs), savings(full, full, epochs)
    model = course.work.retrained(schedule, full.module)
    # Patience that ran out after the best epoch keeps the very weights of the full training.
    early = model if stopped.best == full.best else course.work.retrained(f"{schedule}_stopped", stopped.module)
    course.add_model(f"{schedule}_full", model, full, {"schedule": schedule, "early_stopping": False}, none)
    course.add_model(f"{schedule}_stopped", early, stopped, {"schedule": schedule, "early_stopping": True}, saved)


def _compare_rounds(work: session.Session, lengths: tuple[int, int], learning_rate: float) -> None:
    learner = learners.learner_of(work.model)
    if not learner.is_boosting:
        raise ValueError(
            f"early stopping needs a model that is trained step by step, {learner.kind} is fitted in one go; "
            "give a LightGBM or XGBoost model, or a network."
        )
    rounds, patience = lengths
    work.expect(2 * len(RATES))
    own = learning_rate or float(learner.params().get("learning_rate") or 0.1)
    for name, factor in RATES.items():
        given = {"n_estimators": rounds, "learning_rate": own * factor}
        full, stopped = fit_rounds(learner, work, given, 0), fit_rounds(learner, work, given, patience)
        best = rounds_of(stopped)[1]
        # A stopped training had run for its patience when it stopped.
        ran = min(rounds, best + patience)
        pairs = {"full": (full, rounds, rounds), "stopped": (stopped, ran, best)}
        for kind, (fitted, epochs, kept) in pairs.items():
            work.add(Variant(f"{name}_{kind}", work.refitted(name, fitted), {**given, "early_stopping": kind == "stopped"}))
            figures = {"epochs_run": float(epochs), "best_epoch": float(kept), "train_seconds": fitted.seconds}
            figures |= {
                "epochs_saved": 1 - epochs / rounds,
                "seconds_saved": 1 - fitted.seconds / full.seconds,
                "best_share": kept / rounds,
            }
            candidates.note(work.candidates[-1], figures)


if __name__ == "__main__":
    run(early_stop)
