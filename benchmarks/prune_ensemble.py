"""Seven members against three and fewer, on real tables: latency in one runtime, quality lost, and AutoGluon's rule beside ours.

Run with `python -m benchmarks.prune_ensemble [TABLE ...]`. All models are ONNX in ONNX Runtime; what the runtime itself brought is a
column of its own. The rival is AutoGluon's: members leave in reverse order of their validation score until the budget holds
(its `_filter_base_models_via_infer_limit`), then 100 greedy picks by the headline metric, the first best iteration kept (its
`EnsembleSelection`); it gets the same answers on the same held-out rows, the same costs and the same budget.
Bounds: at least 2.3x lower latency at no more than 0.1 point lost, and no worse than the rival by more than noise.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.ensemble_scene import Scene, scenes
from benchmarks.results_file import ends, interval, save
from mlflow_opt import measure, metrics
from mlflow_opt.ensembles.ensemble_bench import Bench
from mlflow_opt.ensembles.ensemble_selection import inside, reduced
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.records import Quantity
from mlflow_opt.workbench.ensemble_workbench import Workbench, pool_for
from recipes.prune_ensemble import selections

KEEP, SHARE, LOST, FOLDS, PICKS = 3, 0.4, 0.001, 3, 100
CHOSEN = ("cheapest", "within_budget")


@dataclass(frozen=True)
class Line:
    """One selection on one table: its members, gain over the whole ensemble in the same runtime, headline lost on the gate rows."""

    table: str
    method: str
    members: str
    metric: str
    whole: float
    gain: Quantity
    lost: Quantity
    behind_rival: Quantity | None
    runtime: Quantity


def main() -> None:
    """Measure and write results/prune_ensemble.*."""
    lines: list[Line] = []
    for name, shop in scenes(sys.argv[1:]):
        lines += measured(name, shop)
        _write(lines)


def measured(name: str, shop: Scene) -> list[Line]:
    """Choose by our methods and by the rival's on one table, then time all of them in turns and score them on the gate rows."""
    table = Workbench(shop, pool_for(shop, ""))
    everything = table.whole()
    bench = table.bench(FOLDS, everything)
    found = {"autogluon": rival(bench)} | selections(bench, KEEP, SHARE, LOST, 0)
    saved = {"whole": shop.dropin("whole", everything)} | {key: shop.dropin(key, table.graph(weights)) for key, weights in found.items()}
    names = list(saved)
    timings = measure.time_models(list(saved.values()), shop.split.gate.rows, sessions=5, calls=400)
    runtime = shop.gain_of_runtime(saved["whole"])
    whole, theirs = shop.gate(saved["whole"]), shop.gate(saved["autogluon"])
    lines = []
    for key, weights in found.items():
        said = " ".join(f"{table.pool.names[at]}:{weights[at]}" for at in inside(weights))
        behind = None if key == "autogluon" else compare_quality(shop.gate(saved[key]), theirs)[f"drop_{shop.headline}"]
        gain, lost = timings.speedup(names.index(key), 0), shop.lost(saved[key], whole)
        lines.append(Line(name, key, said, shop.headline, whole.values[shop.headline], gain, lost, behind, runtime))
    return lines


def rival(bench: Bench) -> tuple[int, ...]:
    """Choose as AutoGluon does under an inference limit."""
    sign = 1 if metrics.larger_is_better(bench.headline) else -1
    count = bench.holds.members

    def worse(counts: np.ndarray) -> float:
        return round(-sign * bench.quality(counts.tolist())[bench.headline], 6)

    order = sorted(range(count), key=lambda at: worse(np.eye(count)[at]))
    while len(order) > 1 and (len(order) > KEEP or bench.fixed + bench.costs[order].sum() > SHARE * bench.whole):
        order.pop()
    counts, path = np.zeros(count), []
    for _ in range(PICKS if len(order) > 1 else 1):
        tried = [counts + np.eye(count)[at] for at in order]
        losses = [worse(one) for one in tried]
        # Of equals one that is already in.
        at = min(range(len(order)), key=lambda i: (losses[i], not counts[order[i]]))
        counts = tried[at]
        path.append((losses[at], counts))
    return reduced(min(path, key=lambda step: step[0])[1])


def _write(lines: list[Line]) -> None:
    shown = [
        f"Seven members; selections of at most {KEEP}; the rival's and within_budget in {SHARE:g} of its latency. One thread, one row.",
        "Gain: over all seven in the same runtime. Lost, and behind the rival: headline metric on the gate rows, positive is worse.",
        "",
        "| table | metric, all seven | method | members | gain by choosing | lost | behind the rival | the runtime's own gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        behind = interval(ends(one.behind_rival), "{:+.4f}") if one.behind_rival else "-"
        shown.append(
            f"| {one.table} | {one.metric} {one.whole:.4f} | {one.method} | {one.members} | {interval(ends(one.gain))}x "
            f"| {interval(ends(one.lost), '{:+.4f}')} | {behind} | {interval(ends(one.runtime), '{:.0f}')}x |"
        )
    ours = [one for one in lines if one.method in CHOSEN]
    shown += ["", *(_verdict(name, [one for one in ours if one.method == name]) for name in CHOSEN)]
    save("prune_ensemble", {"lines": [asdict(one) for one in lines]}, shown)


def _verdict(name: str, ours: list[Line]) -> str:
    fast = sum(one.gain.value >= 2.3 for one in ours)
    close = sum(one.lost.value <= 0.001 for one in ours)
    worse = sum(one.behind_rival is not None and one.behind_rival.lo > 0 for one in ours)
    return (
        f"{name}: at least 2.3x on {fast} of {len(ours)} tables, at most 0.1 point lost on {close}, "
        f"worse than the rival by more than noise on {worse}."
    )


if __name__ == "__main__":
    main()
