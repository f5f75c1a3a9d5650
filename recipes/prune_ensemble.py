"""Keep few members of an ensemble, weighed by whole numbers, as one smaller model that answers in one call.

Helps ensembles that were put together for quality alone: some members cost more than they bring, and an average of the right
three is often better than that of all seven. Does not help where every member is cheap beside the columns' preparation, nor
a random forest or boosted trees, which are one model: `prune` makes those smaller.

Members are compared on rows that they were not trained on: others like them are trained on folds of the train rows, or, where
that cannot be done, they answer the calibration rows. Their costs are measured, in the runtime that serves them. Equal
preparation of columns, which every member brings, is computed once, in the whole ensemble as in the small one, so that the
gain shown is that of choosing.

References: Caruana et al. 2004, "Ensemble selection from libraries of models"; Martinez-Munoz and Suarez 2006, "Pruning in
ordered bagging ensembles"; Hernandez-Lobato et al. 2006, "Pruning in ordered regression bagging ensembles".
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow_opt import session
from mlflow_opt.ensembles import ensemble_selection
from mlflow_opt.ensembles.ensemble_bench import Bench, figures
from mlflow_opt.ensembles.ensemble_plots import Point, save_members
from mlflow_opt.ensembles.ensemble_selection import Budget, Weights
from mlflow_opt.records import Param, Variant, Verdict
from mlflow_opt.runs import tracking
from mlflow_opt.runs.outcome import Row
from mlflow_opt.session import Session
from mlflow_opt.signature import run
from mlflow_opt.workbench.ensemble_workbench import MOST_TIMED, Workbench, pool_for, trainer

# Of many selections the best are drawn: scoring each takes longer than finding it.
_DRAWN = 150
# Of the whole ensemble's latency: selections that differ by less cost the same, and the better one is taken.
_SAME = 0.05


def selections(bench: Bench, keep: int, latency_share: float, lost: float, seed: int) -> dict[str, Weights]:
    """Choose by every method: the cheapest that loses next to nothing, the best within a latency budget, greedily, by margin.

    Args:
        bench: what is known of the members.
        keep: most members.
        latency_share: of the whole ensemble's latency that a selection may take.
        lost: most quality that the cheapest may lose on the rows held out.
        seed: of the bags.

    Returns:
        Method -> weights; a method that finds what another has found already is left out.
    """
    free = Budget(keep, bench.costs)
    tight = Budget(keep, bench.costs, latency_share * bench.whole - bench.fixed)
    every = ensemble_selection.subsets(bench.holds, free)
    within = ensemble_selection.subsets(bench.holds, tight)
    # By what they cost, the better of equals first: `every` is ordered by loss, and sorting keeps that.
    cheap = next(
        (w for w in sorted(every, key=lambda w: round(bench.latency(w) / (_SAME * bench.whole))) if bench.lost(w) <= lost), every[0]
    )
    found = {"cheapest": cheap} | ({"within_budget": within[0]} if within else {})
    found |= {
        "best": every[0],
        "greedy": ensemble_selection.greedy(bench.holds, free),
        "by_margin": ensemble_selection.by_margin(bench.holds, free),
    }
    if bench.holds.members > MOST_TIMED:
        # Of seven unlike members bagging finds what is found without; of fifty alike it finds better ones.
        found["bagged"] = ensemble_selection.bagged_greedy(bench.holds, free, bags=20, seed=seed)
    first: dict[Weights, str] = {}
    for name, weights in found.items():
        first.setdefault(weights, name)
    return {name: weights for weights, name in first.items()}


def advise(rows: Sequence[Row], headline: str) -> list[str]:
    """Say what the runtime brought, what choosing members brought, and what it cost."""
    timed = {row.name: row.metrics for row in rows if "latency_p50_ms" in row.metrics}
    chosen = next((row for row in rows if row.standing == "chosen"), None)
    whole = timed.get("runtime_only", timed.get("baseline"))
    if whole is None:
        return []
    found = []
    if "runtime_only" in timed:
        found.append(
            f"The runtime alone, with every member, answers one row {timed['runtime_only']['speedup']:.2f}x as fast as the baseline."
        )
    for row in rows:
        if row.name in timed and row.name not in ("baseline", "runtime_only"):
            gain, drop = whole["latency_p50_ms"] / row.metrics["latency_p50_ms"], row.metrics.get(f"drop_{headline}", float("nan"))
            found.append(f"{row.name} ({row.params.get('members', '')}): {gain:.2f}x by choosing, {drop:+.4f} {headline} lost.")
    if chosen is None or chosen.name == "runtime_only":
        found.append("No selection of members pays for this ensemble here; its quality rests on all of them, or they cost next to nothing.")
    return found


def prune_ensemble(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    members: str = "",
    keep: int = 3,
    latency_share: float = 0.4,
    lost: float = 0.001,
    folds: int = 3,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Keep the few members of an ensemble that earn their latency, weighed by whole numbers, as one drop-in.

    Helps voting, stacking and bagging ensembles, and sets of registered versions that could be averaged. Does not help
    forests and boosted trees (see `prune`), nor ensembles whose members cost less than preparing the columns.

    Example:
        mlflow run . -e prune_ensemble -P members=models:/churn/3,models:/churn/5,models:/churn_linear/1 -P keep=2

    Args:
        model: MLflow model URI of a Voting, Stacking or Bagging ensemble; empty trains one of seven members on the data.
        data: a table: parquet, csv, folder, MLflow URI or a bundled name.
        target: name of the target column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        members: registered versions to choose among, by commas, instead of model; the baseline is then the average of all.
        keep: most members that stay.
        latency_share: share of the whole ensemble's latency, in the same runtime, that a selection may take.
        lost: most of the headline metric that the cheapest selection may lose on rows held out.
        folds: on which members are trained again to be compared; 0 compares them on the calibration rows.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model is no ensemble, a member has no ONNX form, or the data are no table.

    References:
        Caruana et al. 2004; Martinez-Munoz and Suarez 2006; Hernandez-Lobato et al. 2006.
    """
    _check(keep, latency_share, lost, folds)
    with session.start("prune_ensemble", locals(), train=trainer(model, members, threads)) as work:
        table = Workbench(work, pool_for(work, members))
        names, everything = table.pool.names, table.whole()
        if table.pool.kind != "versions":
            work.add(Variant("runtime_only", work.dropin("runtime_only", everything), {"members": "all", "size": len(names)}))
        bench = table.bench(folds, everything)
        found = selections(bench, keep, latency_share, lost, seed)
        for name, weights in found.items():
            work.add(Variant(name, table.dropin(name, weights), _said(names, bench, weights)))
        _show(work, names, bench, found, keep)
        return work.conclude(lambda rows: advise(rows, work.headline))


def _check(keep: int, latency_share: float, lost: float, folds: int) -> None:
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}; 3 is usual.")
    if not 0 < latency_share <= 1:
        raise ValueError(f"latency_share must lie in (0, 1], got {latency_share:g}; 0.4 allows two fifths of the whole ensemble's latency.")
    if lost < 0:
        raise ValueError(f"lost must not be negative, got {lost:g}; 0.001 is a tenth of a point.")
    if folds < 0 or folds == 1:
        raise ValueError(f"folds must be 0 (calibration rows only) or at least 2, got {folds}; 3 is usual.")


def _said(names: Sequence[str], bench: Bench, weights: Weights) -> dict[str, Param]:
    shown = " ".join(f"{name}:{weight}" for name, weight in zip(names, weights, strict=True) if weight)
    return {"members": shown, "size": len(ensemble_selection.inside(weights)), "held_out_loss": round(bench.holds.loss(weights), 6)}


def _show(work: Session, names: Sequence[str], bench: Bench, found: dict[str, Weights], keep: int) -> None:
    """Write the greedy path as trials, and draw all selections."""
    by_weights = {weights: name for name, weights in found.items()}
    looked_at = ensemble_selection.subsets(bench.holds, Budget(keep, bench.costs))[:_DRAWN]
    path = [ensemble_selection.greedy(bench.holds, Budget(size, bench.costs)) for size in range(1, min(len(names), MOST_TIMED) + 1)]
    for size, weights in enumerate(path, 1):
        work.trial(f"greedy_{size}", _said(names, bench, weights), figures(bench, weights))

    def point(weights: Sequence[float], name: str = "") -> Point:
        return Point(len(ensemble_selection.inside(weights)), bench.quality(weights)[bench.headline], bench.latency(weights), name)

    points = [point(weights, by_weights.pop(weights, "")) for weights in looked_at]
    points += [point(weights, name) for weights, name in by_weights.items()] + [point(bench.full, "whole")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "members.png"
        save_members(points, [point(weights) for weights in path], bench.headline, file)
        tracking.log_file(work.parent.run_id, file)


if __name__ == "__main__":
    run(prune_ensemble)
