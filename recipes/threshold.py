"""Move the probability from which a model of two classes answers the rarer one to where F1 is best; nothing else changes.

A classifier answers the class that is more probable than one half. Where a class is rare, few rows get there, and F1, which
counts what is found and what is found wrongly, is best at a lower probability. No ranking changes, and no probability: metrics
such as `roc_auc` and `log_loss` stay what they were, `f1` and `accuracy` are of what the model answers and move.

Helps where F1 decides and the classes are unequal: it is often worth more than a search of parameters, and costs no time at
all to serve. Does not help ranking metrics, nor a model that has its threshold already, nor where the cost of the two errors is
known: then that cost says where to cut, and no data are needed for it (Elkan 2001).

Where the model can be trained again, models like it are, on folds of the train rows, and each answers the rows that it was not
trained on: the threshold is the median of what is best on resamples of these answers. Else the model itself answers the
calibration rows, which it must not have been trained on. The selection rows show what is gained, the gate rows judge it.

References: Lipton, Elkan & Naryanaswamy 2014, "Optimal thresholding of classifiers to maximize F1 measure"; Elkan 2001, "The
foundations of cost-sensitive learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mlflow_opt import session
from mlflow_opt.data import Split
from mlflow_opt.export import exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.flavours.model_files import MLMODEL, TRAINABLE
from mlflow_opt.measurement import pairing
from mlflow_opt.models import Model
from mlflow_opt.records import Quantity, Variant, Verdict
from mlflow_opt.rows.batches import as_table
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.tables import learners, thresholds
from mlflow_opt.tables.cross_validation import fold_of
from mlflow_opt.tables.first_fits import HeldOut

RUNTIME, MOVED = "runtime_only", "best_f1"
# More rows move the threshold in its third digit.
MOST_ROWS = 20_000


def held_out(model: Model, split: Split, folds: int) -> HeldOut:
    """Answer rows by models that were not trained on them: others like this one, or this one on the calibration rows.

    Args:
        model: that gets the threshold.
        split: of the rows.
        folds: of the train rows; 0 asks the model itself, on calibration rows.
    """
    again = model.flavour in ("sklearn", "lightgbm", "xgboost") or (model.path / TRAINABLE / MLMODEL).is_file()
    if not folds or not again or not isinstance(split.train.rows, pd.DataFrame):
        part = split.calibration
        return HeldOut(part.labels, model.predict(part.rows), f"{len(part.labels)} calibration rows, by the model itself")
    learner, rows, labels = learners.learner_of(model), as_table(split.train.rows).head(MOST_ROWS), split.train.labels[:MOST_ROWS]
    fold = fold_of(rows, labels, split.task, folds)
    scores = np.zeros((len(rows), 2))
    for number in range(int(fold.max()) + 1):
        scores[fold == number] = learner.fit(rows[fold != number], labels[fold != number]).scores(rows[fold == number])
    return HeldOut(labels, scores, f"{len(rows)} train rows, each by a model that was not trained on it")


def moved(graph: OnnxGraph, threshold: float) -> OnnxGraph:
    """Give a graph's answers another threshold; what it computes stays the same.

    Raises:
        ValueError: its scores are no probabilities, or its labels come from elsewhere.
    """
    output = graph.binding.output
    if output.kind not in ("probabilities", "positive") or output.label:
        raise ValueError(
            f"a threshold needs probabilities that decide the answer, the model gives {output.kind}; calibrate it "
            "(scikit-learn's CalibratedClassifierCV) first."
        )
    return replace(graph, binding=replace(graph.binding, output=replace(output, threshold=threshold)))


def gained(work: session.Session, name: str) -> Quantity:
    """Give how much better F1 is with a variant than with the model as it was, on the selection rows, with its interval."""
    scored = next(one.scored for one in work.candidates if one.variant.name == name)
    drop = pairing.compare_quality(scored, work.baseline.scored, level=work.policy.confidence, seed=work.seed)["drop_f1"]
    return Quantity(-drop.value, -drop.hi, -drop.lo, drop.n)


def advise(rows: Sequence[Row], found: Quantity, held: HeldOut, moves: tuple[float, float]) -> list[str]:
    """Say what the figures mean: where the threshold went, chosen on what, and what F1 it gave on rows that had no part in it."""
    sure = "" if found.lo > 0 or found.hi < 0 else ", which these rows do not resolve"
    told = [
        f"The threshold went from {moves[0]:.3f} to {moves[1]:.3f}, chosen on {held.how}.",
        f"F1 changes by {found.value:+.4f} [{found.lo:+.4f}, {found.hi:+.4f}] on {found.n} selection rows{sure}.",
    ]
    flips = next((row.metrics.get("label_flips", 0.0) for row in rows if row.name == MOVED), 0.0)
    told.append(f"{flips:.0f} answers differ; no probability does, so that ranking metrics and calibration are what they were.")
    return told


def threshold(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    folds: int = 5,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Move the probability from which a model of two classes answers the rarer one to where F1 is best, and prove the gain.

    Helps where F1 decides and the classes are unequal. Does not help ranking metrics, or a model whose threshold was chosen
    already; the recipe says so with the figures.

    Example:
        mlflow run . -e threshold -P model=models:/churn/3 -P data=customers.parquet -P register_as=churn

    Args:
        model: MLflow model URI that gives probabilities of two classes; empty trains the default model on the data.
        data: parquet, csv, npz, folder, MLflow URI or a bundled name.
        target: name of the target column or array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        folds: of the train rows, on which models like this one are trained and asked; 0 asks the model itself, on calibration rows.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the data do not have two classes, or the model gives no probabilities.

    References:
        Lipton et al. 2014; Elkan 2001.
    """
    if folds == 1 or folds < 0:
        raise ValueError(f"folds must be at least 2, or 0 for calibration rows, got {folds}; 5 is usual.")
    with session.start("threshold", locals(), aim="quality") as work:
        if work.task.kind != "binary":
            raise ValueError(f"a threshold decides between two classes, the data are {work.task.kind}; answer the most probable class.")
        work.headline = "f1"
        graph = exporting.to_onnx(work.model, work.example, work.task)
        held = held_out(work.model, work.split, folds)
        found = thresholds.best_threshold(held.labels == work.task.positive, held.scores[:, 1], seed)
        work.add(Variant(RUNTIME, work.dropin(RUNTIME, graph), {"threshold": round(work.model.threshold, 6)}))
        work.add(Variant(MOVED, work.dropin(MOVED, moved(graph, found)), {"threshold": round(found, 6)}))
        moves = (work.model.threshold, found)
        return work.conclude(lambda rows: advise(rows, gained(work, MOVED), held, moves))


if __name__ == "__main__":
    run(threshold)
