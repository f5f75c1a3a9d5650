"""Search a network's shape for this CPU: quality against measured latency, by many short trainings that inherit weights.

Helps where the network was designed for other hardware or another task: general designs such as MobileNetV2 spend most of
their time on this CPU in layers that small pictures do not need. Does not help where a small network is already as good as
the data allow, or where the budget holds fewer than about twenty trials; then random search is as good, and the recipe says so.

Every trial is timed in ONNX Runtime in turns with the model to beat, then trained in rungs, of which only the better half by
Pareto rank goes on, from the weights of the trial it has most in common with. Because a search flatters itself, the most
accurate trials of the Pareto front that are faster than the model are trained afresh on all train rows and judged on rows that
no trial saw, and the gap is reported. The search begins with the smallest network of its space and the one in its middle. Random
search gets the same budget and no such start, `mobilenetv2` (where a model was given) the same training, `runtime_only` tells
the runtime's share.

A one-shot supernet was left out: inherited weights give trials that are worth ranking after one epoch, and train what is served.

References: Tan et al. 2019, "MnasNet: platform-aware neural architecture search for mobile" (measured latency); Li et al. 2018,
"Hyperband"; Schmucker et al. 2021, "Multi-objective asynchronous successive halving"; Real et al. 2017, "Large-scale evolution of
image classifiers" (inheritance); Sandler et al. 2018, "MobileNetV2"; Li & Talwalkar 2020, "Random search and reproducibility for
neural architecture search".
"""

from __future__ import annotations

from typing import Literal

from mlflow_opt import session
from mlflow_opt.records import Verdict
from mlflow_opt.search import executors
from mlflow_opt.search.searching import Budget
from mlflow_opt.signature import run
from mlflow_opt.workbench import network_search, search_findings

Executor = Literal["local", "dask", "ray"]


def check(epochs: int, search_epochs: int, finalists: int) -> None:
    """Refuse lengths that train nothing.

    Raises:
        ValueError: one of them is below 1.
    """
    for name, value in {"epochs": epochs, "search_epochs": search_epochs, "finalists": finalists}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; nothing would be trained.")


def nas(
    *,
    model: str = "",
    data: str = "fashion_mnist",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    trials: int = 40,
    time_budget_s: float = 600.0,
    sampler: Literal["tpe", "nsga2"] = "tpe",
    space: str = "",
    epochs: int = 12,
    search_epochs: int = 4,
    finalists: int = 3,
    rival: bool = True,
    prune: bool = False,
    executor: Executor = "local",
    workers: int = 1,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Search depth, width, kernels, expansion and skips of a network for quality and measured latency on this CPU (Optuna).

    Helps where the network was not designed for this task and this CPU. Does not help where a small network is already as
    good as the data allow. Run the same command again to go on with a search that was killed.

    Example:
        mlflow run . -e nas -P data=pictures.npz -P time_budget_s=900 -P register_as=pictures

    Args:
        model: MLflow model URI to replace; empty trains MobileNetV2 on pictures, else the default network of the data.
        data: npz with one array: pictures, numbers, token ids or series; folder, MLflow URI or a bundled name.
        target: name of the target array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it; another seed is another search.
        trials: how many trials each study has in the end, those of a killed run included.
        time_budget_s: seconds that each study may take; 0 for no limit. The first trial runs to its end in any case.
        sampler: Optuna's way to propose: `tpe` or `nsga2`.
        space: own search space, `path.py:function` with (trial, shape, outputs) -> torch module; empty for the built-in ones.
        epochs: of the full training of what was found.
        search_epochs: of a trial that is not stopped.
        finalists: most accurate trials of the Pareto front, of those faster than the model, that are trained in full.
        rival: compare with random search, which takes the same budget again, and with MobileNetV2.
        prune: remove half of the best finalist's multiplications afterwards; finalists are then trained with an L1 term, which
            makes them lose less by it.
        executor: `local` processes, or a `dask` cluster on this machine; `ray` comes later.
        workers: trials at the same time.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: no space fits the data, or the first trials all fail.

    References:
        Tan et al. 2019; Li et al. 2018; Schmucker et al. 2021; Real et al. 2017; Sandler et al. 2018.
    """
    executors.check(executor, workers)
    check(epochs, search_epochs, finalists)
    budget = Budget(trials, time_budget_s)
    with session.start("nas", locals(), train=network_search.train_first) as work:
        with (
            network_search.start(work, space, epochs, search_epochs, prunable=prune) as hunt,
            executors.pool(executor, workers) as crew,
        ):
            plans = [hunt.plan(kind, workers) for kind in ((sampler, "random") if rival else (sampler,))]
            found, *others = [hunt.search(plan, budget, crew) for plan in plans]
            searched = {}
            for place, one in enumerate(search_findings.finalists(found, finalists), 1):
                searched[f"searched_{place}"] = (one, hunt.train(f"searched_{place}", hunt.build(one), hunt.told(one)))
            if rival and model:
                network_search.add_rival(hunt)
            if prune:
                network_search.add_pruned(hunt, searched["searched_1"][1])
        scores = {name: one.values[0] for name, (one, _) in searched.items()}
        volumes = search_findings.compared(found, others[0]) if others else {}
        return work.conclude(lambda rows: search_findings.advise(work, rows, scores, volumes))


if __name__ == "__main__":
    run(nas)
