"""Keep only the columns that a table's model needs: seven rankings, every size judged on rows that no ranking saw.

Helps tables with many or redundant columns: the model trains in a fraction of the time, fewer columns must be computed,
delivered and watched, and one row is answered a little faster. Does not help where every column carries its own part, nor
latency by itself: one row of trees costs its trees, hardly its columns; the variant `runtime_only` says what the runtime
alone gives. A leak is kept if the target needs it, so it is named in a warning.

Every fold of the train rows ranks anew by mutual information, mRMR, recursive elimination, permutation, gain, SHAP and SHAP
against noise, trains the user's own model on each ranking's first columns, and compares it with all columns on its other
rows, as a paired difference with an interval. Chosen are the fewest columns whose interval meets the policy and whose loss is
half of what it allows at most, because the verdict adds the uncertainty of other rows. The folds' rankings are joined by mean
place, the model is trained again on all train rows, compared on the selection rows and judged on the gate rows. The variant still
takes the full table.

References: Guyon et al. 2002 (recursive elimination); Peng, Long & Ding 2005 (mRMR); Breiman 2001 (permutation); Lundberg &
Lee 2017 (SHAP); Verhaeghe et al. 2022, "Powershap"; Ambroise & McLachlan 2002 (why a ranking must not see the rows that
judge it); Nogueira, Sechidis & Brown 2018 (stability); Saeys, Abeel & Van de Peer 2008 (joined rankings).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mlflow_opt import baselines, session
from mlflow_opt.data import Split
from mlflow_opt.export import exporting
from mlflow_opt.features import feature_trials
from mlflow_opt.features.feature_ranking import METHODS
from mlflow_opt.features.feature_trials import Table, Trial
from mlflow_opt.measurement import pairing
from mlflow_opt.records import Param, Variant, Verdict
from mlflow_opt.runs.outcome import Row
from mlflow_opt.session import Session, Trainer
from mlflow_opt.signature import run
from mlflow_opt.tables import learners, table_audit
from mlflow_opt.tables.table_audit import Audit, listed
from mlflow_opt.workbench import feature_runs
from mlflow_opt.workbench.feature_runs import Found, Plan, Search

_logger = logging.getLogger(__name__)

RUNTIME, EVERY = "runtime_only", "all_columns"
# Below this a ranking depends more on the rows than on the columns (Nogueira et al. 2018).
POOR_STABILITY = 0.4
_ARRAYS = "select_features chooses columns of a table, the data are arrays; for networks see `prune` and `nas`."


def names_in(text: str, what: str, known: Sequence[str]) -> tuple[str, ...]:
    """Read names separated by commas.

    Example:
        >>> names_in("age, income", "keep", ["age", "income", "town"])
        ('age', 'income')

    Raises:
        ValueError: one is not known.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"{what} must name some of {listed(list(known))}, got {', '.join(wrong)}; check the spelling.")
    return names


def sizes_of(text: str, columns: int, least: int) -> tuple[int, ...]:
    """Read numbers of columns separated by commas, or choose some.

    Example:
        >>> sizes_of("2, 5", 10, 1), sizes_of("", 6, 2)
        ((5, 2), (4, 2))

    Raises:
        ValueError: there is nothing to leave out, or a size is no number from 1 to below the number of columns.
    """
    if columns <= max(1, least):
        raise ValueError(f"there must be more columns to choose from than must be kept, got {columns}; there is nothing to select.")
    if not text.strip():
        return tuple(sorted({max(size, least, 1) for size in feature_trials.sizes_for(columns)}, reverse=True))
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdigit() or not max(least, 1) <= int(word) < columns]
    if wrong:
        raise ValueError(
            f"sizes must be whole numbers from {max(least, 1)} to {columns - 1}, got {', '.join(wrong)}; leave it empty for a choice."
        )
    return tuple(sorted({int(word) for word in words}, reverse=True))


def check(methods: str, folds: int, bootstraps: int, time_budget_s: float) -> tuple[str, ...]:
    """Refuse what cannot be searched before a run is opened, and name the methods, cheap ones first.

    Raises:
        ValueError: the rule that is broken.
    """
    named = names_in(methods, "methods", list(METHODS)) if methods != "all" else tuple(METHODS)
    if folds < 2 or bootstraps < 0 or time_budget_s < 0 or not named:
        got = f"methods={methods!r}, folds={folds}, bootstraps={bootstraps}, time_budget_s={time_budget_s:g}"
        raise ValueError(f"it takes a method, folds >= 2, bootstraps >= 0 and time_budget_s >= 0 (0 for no limit), got {got}.")
    return tuple(method for method in METHODS if method in named)


def trainer_without(exclude: str) -> Trainer:
    """Train the default model without some columns, which the data may still hold."""

    def train(split: Split, folder: Path, seed: int) -> Path:
        rows = split.train.rows
        if not isinstance(rows, pd.DataFrame):
            raise TypeError(_ARRAYS)
        out = names_in(exclude, "exclude", list(map(str, rows.columns)))
        left = replace(split, train=replace(split.train, rows=rows.drop(columns=list(out))))
        return baselines.train_baseline(left, folder, seed)

    return train


def table_of(work: Session, exclude: str, keep: str) -> tuple[Table, Audit]:
    """Take the train rows and the columns that may be kept: not those that say nothing or are not wanted.

    Raises:
        ValueError: the data are arrays, or a name is none of the model's columns.
    """
    train, learner = work.split.train, learners.learner_of(work.model)
    if not isinstance(train.rows, pd.DataFrame):
        raise TypeError(_ARRAYS)
    names = [str(name) for name in learner.columns]
    out, always = names_in(exclude, "exclude", [*names, *map(str, train.rows.columns)]), names_in(keep, "keep", names)
    rows = train.rows[names].reset_index(drop=True)
    audit = table_audit.audit(rows.drop(columns=[name for name in out if name in names]), train.labels, work.task)
    for text in audit.warnings:
        _logger.warning("%s", text)
    columns = tuple(name for name in names if name not in out and (name not in audit.useless or name in always))
    return Table(learner, rows, train.labels, work.task, columns, always, work.seed), audit


def chosen_trials(found: Found, bounds: dict[str, float], headline: str) -> list[Trial]:
    """Choose what to train for good: the fewest columns that do, the fewest of the next larger kind, and what loses least.

    Without any that does: what loses least, so that the figures can be seen.
    """
    least = feature_trials.best(found.trials, headline)
    small = feature_trials.smallest(found.trials, bounds, headline)
    if small is None:
        return [least]
    safer = feature_trials.smallest([trial for trial in found.trials if trial.size >= 1.4 * small.size], bounds, headline)
    return list({trial.name: trial for trial in (small, safer, least) if trial}.values())


def add_variants(work: Session, table: Table, search: Search, trials: Sequence[Trial]) -> Trial:
    """Train the chosen sets on all train rows and add them, the smallest last: the last that meets the policy is what is chosen."""
    sets = feature_runs.finalists(table, [(trial, search.agreed(trial.method)) for trial in trials])
    given = bool(work.params["model"])
    work.expect(len(sets) + 1 + given)
    graph = exporting.to_onnx(learners.native_of(work.model), work.example, work.task)
    work.add(Variant(RUNTIME, work.dropin(RUNTIME, graph), {"features": len(table.learner.columns)}))
    if given:
        # What training again on these rows changes, apart from the columns.
        fitted = table.learner.fit(table.rows, table.labels)
        work.add(Variant(EVERY, work.refitted(EVERY, fitted), {"features": len(fitted.columns), "fit_seconds": round(fitted.seconds, 3)}))
    for trial, columns in sets:
        fitted = table.learner.fit(table.rows, table.labels, columns=columns)
        name = f"features_{len(columns)}_{trial.method}"
        told: dict[str, Param] = {"method": trial.method, "features": len(columns), "columns": ",".join(columns)}
        work.add(Variant(name, work.refitted(name, fitted), told | {"fit_seconds": round(fitted.seconds, 3)}))
    search.draw(trial, fitted)
    return trial


def advise(work: Session, search: Search, trial: Trial, rows: Sequence[Row]) -> list[str]:
    """Say what the figures mean: what was kept, what it lost on which rows, what training and the runtime gained, how stable it is."""
    headline, known = work.headline, {row.name: row for row in rows}
    drop, table = trial.drops[f"drop_{headline}"], search.table
    faster = trial.full_seconds / max(trial.seconds, 1e-9)
    told = [
        (
            f"{trial.size} of {len(table.columns)} columns by {trial.method}: {headline} lost in {len(search.folds)}-fold validation "
            f"{drop.value:+.4f} [{drop.lo:+.4f}, {drop.hi:+.4f}] on {drop.n} rows; "
            f"training takes 1/{faster:.1f} of the time."
        )
    ]
    chosen = next((row for row in rows if row.standing == "chosen"), None)
    if chosen and chosen.name not in (RUNTIME, EVERY):
        told += _of_chosen(work, chosen, known)
    elif chosen:
        told.append(
            "No smaller set of columns meets the policy: keep all columns. What is chosen differs from the model in its runtime alone."
        )
    index = search.stability_of(trial.method, trial.size)
    word = "poor: other rows would lead to other columns" if index < POOR_STABILITY else "much the same columns come back on other rows"
    if math.isfinite(index):
        told.append(f"Stability of {trial.method} at {trial.size} columns: {index:.2f} ({word}).")
    if not trial.within(search.plan.bounds):
        told.append("No size tried keeps its interval within the policy and its loss within half of it; the loss shown is the least found.")
    if search.found.skipped:
        told.append(f"No time was left for {listed(search.found.skipped)}; raise time_budget_s to try them.")
    if len(table.labels) > feature_trials.RANK_ROWS:
        told.append(
            f"Columns were ranked on {feature_trials.RANK_ROWS} rows and sets tried on {feature_trials.TRAIN_ROWS} at most; "
            "finalists train on all."
        )
    return told


def _of_chosen(work: Session, chosen: Row, known: dict[str, Row]) -> list[str]:
    candidate = next(one for one in work.candidates if one.variant.name == chosen.name)
    compared = pairing.compare_quality(candidate.scored, work.baseline.scored, level=work.policy.confidence, seed=work.seed)
    drop = compared[f"drop_{work.headline}"]
    told = [
        f"Kept: {chosen.params['columns']}.",
        (
            f"On {drop.n} selection rows it loses {drop.value:+.4f} {work.headline} [{drop.lo:+.4f}, {drop.hi:+.4f}] "
            "against the model as it was."
        ),
    ]
    alone, ours = known[RUNTIME].metrics.get("latency_p50_ms"), chosen.metrics.get("latency_p50_ms")
    if alone and ours and "speedup" in known[RUNTIME].metrics:
        told.append(
            f"One row: the runtime alone is {known[RUNTIME].metrics['speedup']:.1f}x as fast as the model's own call; "
            f"fewer columns add {alone / ours:.2f}x to that."
        )
    return told


def select_features(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    methods: str = "all",
    sizes: str = "",
    keep: str = "",
    exclude: str = "",
    folds: int = 3,
    bootstraps: int = 5,
    time_budget_s: float = 120.0,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Find the fewest columns that a table's model needs, and register it trained on these, taking the full table as before.

    Helps tables with many or redundant columns: less training time, fewer columns to compute and watch. Does not help where
    every column carries its own part, and hardly the latency of one row; both are said with figures.

    Example:
        mlflow run . -e select_features -P model=models:/churn/3 -P data=customers.parquet -P register_as=churn

    Args:
        model: MLflow model URI (scikit-learn, LightGBM, XGBoost, or a variant made of one); empty trains the default model.
        data: parquet, csv, folder, MLflow URI or a bundled name.
        target: name of the target column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        methods: `all`, or some of gain, mutual_information, shap, mrmr, permutation, shap_test, rfe, separated by commas.
        sizes: numbers of columns to try, separated by commas; empty for a choice.
        keep: columns that must stay, separated by commas.
        exclude: columns that must go, such as what is known only after the fact, separated by commas.
        folds: of the train rows; each ranks anew on its own.
        bootstraps: resamples of the rows that say how stable a ranking is.
        time_budget_s: seconds that the search may take, cheap methods first; 0 for no limit.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model cannot be trained again, a name is unknown, or there is nothing to leave out.

    References:
        Guyon et al. 2002; Peng et al. 2005; Lundberg & Lee 2017; Verhaeghe et al. 2022; Nogueira et al. 2018.
    """
    check(methods, folds, bootstraps, time_budget_s)
    with session.start("select_features", locals(), aim="last", train=trainer_without(exclude)) as work:
        table, audit = table_of(work, exclude, keep)
        work.findings += audit.findings()
        bounds = feature_trials.bounds_of(work.policy, work.headline)
        named, counts = check(methods, folds, bootstraps, time_budget_s), sizes_of(sizes, len(table.columns), len(table.always))
        search = Search(work, table, Plan(named, counts, folds, bootstraps, time_budget_s, bounds, work.policy.confidence))
        found = search.run()
        trial = add_variants(work, table, search, chosen_trials(found, bounds, work.headline))
        return work.conclude(lambda rows: advise(work, search, trial, rows))


if __name__ == "__main__":
    run(select_features)
