"""Find how a model is best served: batching, window, threads, workers and cache, tuned to a latency objective under real load.

Helps where many small requests come: Python's share of a request, not the model's, is then what most servers spend, and
the requests that wait can share a call. Does not help a model that has no fast path (compile it first), large requests,
which are batches already, or traffic so light that any server meets the objective. A cache helps where rows recur and the
model costs more than reading a request; for a few hundred trees it saves some tens of microseconds.

Load is open: requests arrive by a Poisson process whether or not the server keeps up, and a request's time counts from the
moment it was meant to be sent, so that no request is left out for having waited (Tene 2013, "How NOT to measure latency").
Rows recur by Zipf's law. What is sought is the highest rate at which 95% of the requests meet the objective.

References: Tene 2013, "How NOT to measure latency" (coordinated omission); Breslau et al. 1999, "Web caching and Zipf-like
distributions"; Crankshaw et al. 2017, "Clipper: a low-latency online prediction serving system" (adaptive batching).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_opt.serving import study
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.study import BASELINE, Tried
from mlflow_opt.signature import run

if TYPE_CHECKING:
    import optuna

_TOLD_APART = 0.1


def ladder(cores: int, *, exact: bool) -> dict[str, Settings]:
    """List the settings that show what each part brings, one part added at a time.

    Args:
        cores: of this machine.
        exact: whether answers must keep their last bits in a batch.

    Example:
        >>> list(ladder(2, exact=True))
        ['async', 'batching', 'cache', 'workers_2']
    """
    plain = Settings(batching="off")
    batched = replace(plain, batching="exact" if exact else "always")
    found = {"async": plain, "batching": batched, "cache": replace(batched, cache="memory")}
    if cores > 1:
        found[f"workers_{cores}"] = replace(batched, workers=cores)
    return found


def suggest(trial: optuna.Trial, cores: int, *, exact: bool, cache: bool) -> Settings:
    """Draw a setting: the window up to what a request can spare, batch sizes by powers of two, threads and workers within the cores."""
    workers = trial.suggest_int("workers", 1, cores)
    return Settings(
        batching="exact" if exact else "always",
        max_batch=2 ** trial.suggest_int("log2_max_batch", 2, 8),
        window_ms=trial.suggest_categorical("window_ms", [0.0, 0.5, 1.0, 2.0, 5.0]),
        threads=trial.suggest_int("threads", 1, max(1, cores // workers)),
        workers=workers,
        cache="memory" if cache else "off",
    )


def best_of(tried: Sequence[Tried], *, cache: bool) -> Tried | None:
    """Choose the setting that sustains most within the objective, the cache only where it was asked for; None if none does.

    Rates closer than a tenth are not told apart by stretches of a second or two: of those the first tried, the simplest, is taken.
    """
    ours = [one for one in tried if one.settings and one.found.met and (cache or one.settings.cache == "off")]
    most = max((one.found.sustained for one in ours), default=0.0)
    return next((one for one in ours if one.found.sustained >= most * (1 - _TOLD_APART)), None)


def advise(tried: Sequence[Tried], fast_path: str, batches: str) -> list[str]:
    """Say what the figures mean: what each part brought, and what kept the model from more."""
    rates = {one.name: one.found.capacity for one in tried}
    found = [f"Fast path: {fast_path}. Batching: {batches}."]
    if fast_path.startswith("pyfunc"):
        found.append("Requests go through pyfunc, which is most of their cost: `mlflow-opt compile` makes a variant that needs none of it.")
    if {"async", BASELINE} <= rates.keys():
        found.append(f"Without batching the server does {rates['async'] / rates[BASELINE]:.1f}x the requests of `mlflow models serve`.")
    if {"async", "batching"} <= rates.keys():
        batching, cache = rates["batching"] / rates["async"], rates["cache"] / rates["batching"]
        found.append(f"Batching brings {batching:.2f}x, a cache {cache:.2f}x on top, at full load.")
    return found


def serve(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    seed: int = 0,
    p95_ms: float = 20.0,
    trials: int = 6,
    time_budget_s: float = 0.0,
    seconds: float = 1.5,
    connections: int = 64,
    keys: int = 1000,
    key_exponent: float = 0.7,
    use_cache: bool = False,
    exact: bool = True,
    price_per_core_hour: float = 0.04,
    store: bool = True,
) -> None:
    """Find the server settings that sustain most requests within a latency objective, and store them with the model.

    Helps models with a fast path (drop-in variants, LightGBM on tables) under many small requests. Does not help others
    before they are compiled. This recipe measures; `mlflow-opt start_server` serves, with what was stored here.

    Example:
        mlflow run . -e serve -P model=models:/churn@champion -P data=holdout.parquet -P p95_ms=20

    Args:
        model: MLflow model URI; empty trains the default model on the data and compiles it.
        data: rows to ask with: parquet, csv, npz, folder, MLflow URI or a bundled name.
        target: name of the target column or array, which is left out of the requests.
        seed: of arrivals, recurring rows and the search.
        p95_ms: objective: 95 of 100 requests answered within so many milliseconds.
        trials: settings to try by search, after those that show what each part brings.
        time_budget_s: begin no further trial after so many seconds; 0 for no limit.
        seconds: length of each stretch of load.
        connections: of the clients.
        keys: how many different rows are asked.
        key_exponent: of Zipf's law by which they recur; 0 asks all alike often.
        use_cache: choose among settings with a cache; only where an answer may be as old as its time to live.
        exact: keep every answer's last bits in a batch; false lets matrix products and sigmoids differ in them.
        price_per_core_hour: for `cost_per_million`, processor time alone.
        store: write the settings to the logged model, where `start_server` finds them.

    Raises:
        ValueError: the model or the data cannot be used.

    References:
        Tene 2013; Breslau et al. 1999; Crankshaw et al. 2017.
    """
    with study.start("serve", locals()) as work:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cores = os.cpu_count() or 1
        steps = ladder(cores, exact=exact)
        work.expect(1 + len(steps) + trials)
        work.measure_baseline()
        for name, settings in steps.items():
            work.measure(name, settings)
        search = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for number in range(trials):
            if work.seconds_left <= 0:
                break
            trial = search.ask()
            tried = work.measure(f"trial_{number}", suggest(trial, cores, exact=exact, cache=use_cache))
            search.tell(trial, tried.found.sustained)
        work.conclude(best_of(work.tried, cache=use_cache), advise(work.tried, work.fast_path, work.batches))


if __name__ == "__main__":
    run(serve)
