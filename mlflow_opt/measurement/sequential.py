"""Timing for a verdict: one candidate against one reference, for as many fresh processes as the decision needs and no more.

Looking at an interval again and again until it happens to decide is peeking: it turns a 2.5% error into 10% and more. Here
the looks and the error that each may spend are fixed before the first ratio is seen (Lan & DeMets 1983), so that the
interval at any look holds together with all others at the policy's confidence, however the decision to stop was taken.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflow_opt.measurement.intervals import look_levels
from mlflow_opt.measurement.noise import doubt_of
from mlflow_opt.measurement.own_metrics import OwnMetric
from mlflow_opt.measurement.stopwatch import Bench, Entry, Located, Sitting, Timings, as_entry
from mlflow_opt.measurement.timing_session import Phase
from mlflow_opt.records import Criterion, Policy, Quantity

logger = logging.getLogger(__name__)

# What a core costs an hour in a large cloud (November 2026, on demand, general purpose): a unit of account, not a bill.
PRICE_CORE_HOUR_USD = 0.04
# With three sessions one disturbed process leaves an interval that says nothing; with four it seldom does.
FEWEST_SESSIONS, FIRST_LOOK, MOST_SESSIONS, GROWTH = 4, 4, 24, 1.4
QUANTILES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
TAILS = frozenset({"latency_p95_ms", "latency_p99_ms"})
RATIOS = frozenset({"speedup", "throughput_ratio"})
TIMED = frozenset({*QUANTILES, *RATIOS, "throughput_rows_per_s", "cost_per_million"})


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a model is measured; they are recorded with the result.

    Args:
        threads: threads that one call may use, at least 1.
        batch_size: rows a call for throughput; 0 chooses 1,000 for flat rows and 32 for images and sequences, 1 skips the extra timing.
        budget_s: seconds that timing may take.
        seed: of row order, turn order and resampling.
        own: the user's own quality metric.
    """

    threads: int = 1
    batch_size: int = 0
    budget_s: float = 60.0
    seed: int = 0
    own: OwnMetric | None = None


@dataclass(frozen=True)
class PairTimings:
    """What timing for a verdict found; model 0 of `timings` is the candidate, model 1 the reference.

    Args:
        timings: all sessions, with the level adjusted for the looks taken.
        looks: sessions in hand at each look.
        planned: sessions that the plan allowed for.
        doubt: why the machine was too noisy, `""` if it was not.
    """

    timings: Timings
    looks: tuple[int, ...]
    planned: int
    doubt: str

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Return the candidate's cost and its ratios to the reference."""
        return cost_of(self.timings, 0) | ratios_of(self.timings, 0, 1)


def time_pair(candidate: Located | Entry, reference: Located | Entry, rows: Any, policy: Policy, conditions: Conditions) -> PairTimings:
    """Time a candidate against its reference until the policy's timing criteria are decided or the budget is spent.

    Use it for a verdict. For choosing among many variants `time_models` is cheaper; time the one chosen with this.
    At least four sessions run even if the budget is smaller: fewer say too little about the spread between processes.

    Args:
        candidate: the model to be judged.
        reference: the model that it would replace.
        rows: distinct rows to answer.
        policy: its timing criteria are what must be decided, its confidence is kept over all looks together.
        conditions: threads, batch size, budget, seed.

    """
    entries = [as_entry(candidate), as_entry(reference)]
    criteria = [criterion for criterion in policy.criteria if criterion.quantity in TIMED]
    began = time.perf_counter()
    with Bench(rows, conditions.threads) as bench:
        tails = any(criterion.quantity in TAILS for criterion in criteria)
        phases = plan_phases(rows, bench.rows, conditions, tails=tails)
        sittings = [bench.sit(entries, phases, conditions.seed * 1000)]
        planned = _affordable(sittings[0], conditions.budget_s)
        batches = tuple(phase.batch for phase in phases)
        looks: list[int] = []
        for target in plan_looks(planned):
            while len(sittings) < target and not _late(began, sittings, conditions.budget_s):
                sittings.append(bench.sit(entries, phases, conditions.seed * 1000 + len(sittings)))
            late = len(sittings) < target
            looks.append(len(sittings))
            timings = Timings(tuple(sittings), batches, conditions.threads, _level(looks, planned, policy.confidence, final=late))
            if late or decided(criteria, cost_of(timings, 0) | ratios_of(timings, 0, 1)):
                break
    logger.debug("timed %d of %d planned sessions in %.1f s", len(sittings), planned, time.perf_counter() - began)
    judged: Literal["ratio", "latency"] = "latency" if any(c.quantity not in RATIOS for c in criteria) else "ratio"
    doubt = doubt_of([sitting.readings[0] for sitting in sittings], timings.log_ratios(0, 1), judged)
    return PairTimings(timings, tuple(looks), planned, doubt)


def plan_phases(rows: Any, total: int, conditions: Conditions, *, tails: bool = False) -> list[Phase]:
    """Plan what one session times: single rows, then a batch for throughput; `tails` gives slow models time for their quantiles."""
    share = conditions.budget_s / (6 if tails else 10)
    single = Phase(batch=1, min_calls=100, max_calls=2000, seconds=min(0.4, share / 4), limit_s=max(share, 0.2), distinct=256)
    size = min(conditions.batch_size or default_batch(rows), total)
    if size == 1:
        return [single]
    return [single, Phase(batch=size, min_calls=8, max_calls=100, seconds=min(0.3, share / 4), limit_s=max(share / 2, 0.2), distinct=8)]


def default_batch(rows: Any) -> int:
    """Choose the batch for throughput: 1,000 flat rows, 32 images or sequences."""
    shaped = isinstance(rows, Mapping) and any(values.ndim > 2 for values in rows.values())
    return 32 if shaped else 1000


def plan_looks(planned: int) -> list[int]:
    """Plan after how many sessions to look, from the number of sessions that the budget allows.

    Example:
        >>> plan_looks(24), plan_looks(3)
        ([4, 6, 9, 13, 19, 24], [3])
    """
    looks, at = [], float(FIRST_LOOK)
    while at < planned:
        looks.append(math.ceil(at))
        at = math.ceil(at) * GROWTH
    # A look just before the last one would spend error for nothing.
    if looks and planned - looks[-1] < 2:
        looks.pop()
    return [*looks, planned]


def decided(criteria: Sequence[Criterion], quantities: Mapping[str, Quantity]) -> bool:
    """Tell whether every criterion's interval lies on one side of its bound."""
    return all(_decides(quantities.get(criterion.quantity), criterion) for criterion in criteria)


def cost_of(timings: Timings, model: int) -> dict[str, Quantity]:
    """Give one model's latencies, throughput and cost; what lacks samples, as under a small budget, is left out."""
    found: dict[str, Quantity] = {}
    for name, share in QUANTILES.items():
        if timings.resolves(model, share):
            found[name] = timings.latency(model, share)
    last = len(timings.batches) - 1
    if not timings.resolves(model, 0.5, last):
        return found
    rate = timings.throughput(model, last)
    found["throughput_rows_per_s"] = rate
    dollars = max(timings.threads, 1) * PRICE_CORE_HOUR_USD / 3600 * 1e6
    found["cost_per_million"] = Quantity(dollars / rate.value, dollars / rate.hi, dollars / rate.lo, rate.n)
    return found


def ratios_of(timings: Timings, candidate: int, reference: int) -> dict[str, Quantity]:
    """Give how the candidate's median latency and throughput relate to the reference's."""
    last = len(timings.batches) - 1
    return {"speedup": timings.speedup(candidate, reference), "throughput_ratio": timings.speedup(candidate, reference, last)}


def _affordable(first: Sitting, budget_s: float) -> int:
    # Fixed from the first session's length alone, which says nothing about who is faster.
    return max(FEWEST_SESSIONS, min(MOST_SESSIONS, math.floor(budget_s / first.seconds)))


def _late(began: float, sittings: Sequence[Sitting], budget_s: float) -> bool:
    typical = sum(sitting.seconds for sitting in sittings) / len(sittings)
    return len(sittings) >= FEWEST_SESSIONS and time.perf_counter() - began + typical > budget_s


def _level(looks: Iterable[int], planned: int, confidence: float, *, final: bool) -> float:
    # Time may run out right after a look: the last one then sees the same sessions again and takes its place, because the wider
    # of two intervals on the same data decides nothing that the narrower one does not.
    counts = list(dict.fromkeys(looks))
    fractions = [count / planned for count in counts]
    if final:
        # Out of time before out of sessions: this is the last look, so it spends what is left.
        fractions[-1] = 1.0
    return look_levels(counts, fractions, confidence)[-1]


def _decides(quantity: Quantity | None, criterion: Criterion) -> bool:
    return quantity is not None and (quantity.lo >= criterion.bound or quantity.hi <= criterion.bound)
