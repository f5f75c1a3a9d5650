"""Train a table's first models, honestly: a linear model and boosted trees, the better one registered as version 1.

Helps at the start: it says what a table gives without any work, names what is wrong with its columns (constant, empty,
copied, infinite, suspected of holding the target) and leaves a registered model that every later recipe takes and is
compared with. Does not help a team that has a model: optimise that one (`tune`, `select_features`, `compile`).

Trees get missing values as they are, texts as codes and texts with many values as cross-fitted target means; the linear
model gets filled, scaled and one-hot columns. Where boosting stops, and where F1 decides the probability from which the
later class is answered, is learnt on rows that trained neither; what the model gains and what the threshold gains are
reported apart, on selection rows that had no part in it.

References: Ke et al. 2017, "LightGBM"; Micci-Barreca 2001 (target means of categories); Lipton, Elkan & Naryanaswamy 2014
(thresholds for F1); Kaufman et al. 2012, "Leakage in data mining".
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pandas as pd

from mlflow_opt import metrics, session
from mlflow_opt.data import Split
from mlflow_opt.measurement import pairing, scoring
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.records import Param, Quantity, Variant
from mlflow_opt.runs import tracking
from mlflow_opt.session import Session, Trainer
from mlflow_opt.signature import run
from mlflow_opt.tables import first_fits, learner_files, table_audit, thresholds
from mlflow_opt.tables.first_fits import First
from mlflow_opt.tables.learners import Fitted
from mlflow_opt.tables.table_audit import Audit, listed

_logger = logging.getLogger(__name__)

ChooseBy = Literal["headline", "f1"]
CONSTANT, LINEAR, TREES, LINEAR_F1, TREES_F1 = "constant", "baseline", "lightgbm", "linear_threshold", "lightgbm_threshold"


def without(rows: object, exclude: str) -> pd.DataFrame:
    """Take a table's rows without the columns named.

    Raises:
        TypeError: the data are arrays.
        ValueError: a name is no column, or none would be left.
    """
    if not isinstance(rows, pd.DataFrame):
        raise TypeError("baseline trains models of tables, the data are arrays; give a table, or a network as model= to another recipe.")
    names = [name.strip() for name in exclude.split(",") if name.strip()]
    wrong = [name for name in names if name not in rows.columns]
    if wrong:
        raise ValueError(f"exclude must name columns of the data, got {', '.join(wrong)}; it has {listed(list(map(str, rows.columns)))}.")
    left = rows.drop(columns=names)
    if left.shape[1] == 0:
        raise ValueError("exclude must leave a column to learn from, got all of them; name fewer.")
    return left


def audited(split: Split, exclude: str) -> tuple[pd.DataFrame, Audit]:
    """Look over the train rows, without the columns that are not wanted.

    Raises:
        ValueError: no column says anything.
    """
    rows = without(split.train.rows, exclude)
    audit = table_audit.audit(rows, split.train.labels, split.task)
    if not set(map(str, rows.columns)) - audit.useless - set(audit.dates):
        raise ValueError(
            f"a model needs a column that varies, got only {listed([*audit.useless, *audit.dates])}; derive columns, numbers from dates."
        )
    return rows, audit


def linear_trainer(exclude: str, time_budget_s: float) -> Trainer:
    """Make the trainer of the first row: a linear model."""

    def train(split: Split, folder: Path, seed: int) -> Path:
        rows, audit = audited(split, exclude)
        learner = first_fits.linear_learner(rows, split.task, audit)
        first = first_fits.fit_linear(learner, split.train, split.task, seed, held=False, time_budget_s=time_budget_s)
        return learner_files.save(first.fitted, rows, folder).path

    return train


def add_models(work: Session, exclude: str, choose_by: ChooseBy, time_budget_s: float) -> dict[str, First]:
    """Train the trees, and where F1 decides between two classes give both models a threshold; add them as variants."""
    rows, audit = audited(work.split, exclude)
    by_f1 = choose_by == "f1" and work.task.kind == "binary"
    work.expect(3 if by_f1 else 1)
    learner = first_fits.tree_learner(rows, work.task, audit, work.seed)
    made = {TREES: first_fits.fit_trees(learner, work.split.train, work.split.calibration, work.task, work.seed, time_budget_s)}
    _add(work, TREES, made[TREES].fitted, rows)
    if by_f1:
        linear = first_fits.linear_learner(rows, work.task, audit)
        made[LINEAR] = first_fits.fit_linear(linear, work.split.train, work.task, work.seed, held=True, time_budget_s=time_budget_s)
        for name, source in ((LINEAR_F1, LINEAR), (TREES_F1, TREES)):
            _add(work, name, first_fits.thresholded(made[source], work.task, work.seed), rows)
    return made


def _add(work: Session, name: str, fitted: Fitted, rows: pd.DataFrame) -> None:
    told: dict[str, Param] = {
        "estimator": type(fitted.last).__name__,
        "threshold": round(fitted.threshold, 6),
        "fit_seconds": round(fitted.seconds, 3),
    }
    if name in (TREES, TREES_F1):
        told["rounds"] = int(getattr(fitted.last, "best_iteration_", 0) or fitted.last.get_params(deep=False).get("n_estimators", 0))
    work.add(Variant(name, learner_files.save(fitted, rows, work.scratch(name)), told))


def gain(ours: Scored, theirs: Scored, metric: str, seed: int) -> Quantity:
    """Give how much better one model's answers are than another's on the same rows; positive is better.

    Args:
        ours: answers.
        theirs: to the same rows.
        metric: a quality metric.
        seed: of the resampling.
    """
    drop = pairing.compare_quality(ours, theirs, seed=seed)[f"drop_{metric}"]
    return Quantity(-drop.value, -drop.hi, -drop.lo, drop.n)


def advise(work: Session, made: dict[str, First]) -> list[str]:
    """Say what the figures mean: the trees' gain over the linear model, the threshold's gain, and what to do next."""
    trees = next(one.scored for one in work.candidates if one.variant.name == TREES)
    linear = work.baseline.scored
    headline = metrics.QUALITY[work.task.kind][0]
    told = [f"Trees over the linear model: {_said(gain(trees, linear, headline, work.seed), headline)}."]
    told += _of_threshold(work, made[TREES], trees, linear) if work.task.kind == "binary" else []
    least = float(work.baseline.plain.get(headline, float("nan")))
    nothing = constant_values(work)[headline]
    best = max if metrics.larger_is_better(headline) else min
    found = best(least, float(trees.values[headline]))
    told.append(f"Answering every row alike has a {headline} of {nothing:.4f}; the better model has {found:.4f}.")
    if work.target.name and not tracking.is_registered(work.target.name):
        told.append(f"To go on: mlflow run . -e tune -P model=models:/{work.target.name}/1 -P data={work.params['data']}")
    return told


def _of_threshold(work: Session, first: First, trees: Scored, linear: Scored) -> list[str]:
    if first.held is None:
        return []
    threshold = first_fits.thresholded(first, work.task, work.seed).threshold
    moved = scoring.score(work.task, trees.raw_labels, trees.outputs, threshold=threshold)
    told = [f"F1 at one half, trees over the linear model: {_said(gain(trees, linear, 'f1', work.seed), 'f1')}."]
    held = thresholds.f1_at(first.held.labels == work.task.positive, first.held.scores[:, 1], threshold)
    told.append(
        f"The threshold's own gain, same trees, {threshold:.3f} in place of 0.5 (chosen on {first.held.how}, F1 there {held:.4f}): "
        f"{_said(gain(moved, trees, 'f1', work.seed), 'f1')}."
    )
    if work.headline != "f1":
        told.append("choose_by=f1 registers a model that answers from such a threshold; ranking metrics do not know it.")
    return told


def _said(found: Quantity, metric: str) -> str:
    sure = "" if found.lo > 0 or found.hi < 0 else ", which these rows do not resolve"
    return f"{found.value:+.4f} {metric} [{found.lo:+.4f}, {found.hi:+.4f}] on {found.n} selection rows{sure}"


def constant_values(work: Session) -> dict[str, float]:
    """Score the answer that is the same for every row, on the selection rows."""
    part = work.split.selection
    answers = first_fits.constant_scores(work.split.train.labels, work.task, len(part.labels))
    return dict(scoring.score(work.task, part.labels, answers).values)


def baseline(
    *,
    data: str = "telco_churn",
    target: str = "target",
    register_as: str = "",
    seed: int = 0,
    choose_by: ChooseBy = "headline",
    exclude: str = "",
    time_budget_s: float = 0.0,
    threads: int = 1,
    metric: str = "",
) -> None:
    """Train a linear model and boosted trees on a table, say what is odd about it, and register the better one as version 1.

    Helps at the start of work on a table, for two classes, several, or a number. Does not help where there is a model already:
    give that one to the other recipes. Nothing is judged, for there is nothing to compare with yet.

    Example:
        mlflow run . -e baseline -P data=customers.parquet -P register_as=churn -P choose_by=f1

    Args:
        data: parquet, csv, folder, MLflow URI or a bundled name.
        target: name of the target column.
        register_as: registered model to make, with the better model as its version 1; empty registers nothing.
        seed: every random choice derives from it.
        choose_by: `headline` (roc_auc, accuracy or r2 by task), or `f1`; of two classes f1 also sets the decision threshold.
        exclude: columns that must not be used, such as what is known only after the fact, separated by commas.
        time_budget_s: seconds that training the trees may take; 0 for no limit.
        threads: threads that one prediction may use.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, shown beside the others; empty for none.

    Raises:
        ValueError: no column says anything, or the data cannot be split.

    References:
        Ke et al. 2017; Lipton et al. 2014; Kaufman et al. 2012.
    """
    with session.start("baseline", locals(), aim="first", train=linear_trainer(exclude, time_budget_s)) as work:
        if choose_by == "f1" and work.task.kind == "regression":
            raise ValueError("choose_by=f1 needs a target of classes, got numbers; use headline, or cast the target to string.")
        work.headline = "f1" if choose_by == "f1" else work.headline
        rows, audit = audited(work.split, exclude)
        work.findings += audit.findings()
        for text in audit.warnings:
            _logger.warning("%s", text)
        new = first_fits.unseen(rows, without(work.split.selection.rows, exclude))
        work.findings += [f"{count} selection rows have a value of {name!r} that training has not seen." for name, count in new.items()]
        work.trial(CONSTANT, {"answers": "the shares of the classes, or the mean"}, constant_values(work))
        made = add_models(work, exclude, choose_by, time_budget_s)
        work.conclude(lambda _: advise(work, made))


if __name__ == "__main__":
    run(baseline)
