"""Draw a study: how it went, which parameters mattered, how they go together, and what the objectives cost each other.

Pictures for a glance in the tracking UI, and one page, `search.html`, where every point tells its trial.

Reference: Hutter, Hoos & Leyton-Brown 2014, "An efficient approach for assessing hyperparameter importance" (fANOVA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Importance is a forest's analysis of variance: with fewer trials it is noise, with more than these it takes minutes.
FEWEST, MOST = 8, 500
# Lines in a parallel-coordinate plot: more are a grey wall.
LINES = 300
PAGE = "search.html"
_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}}</style>
<h1>{title}</h1>"""


def save(study: Study, objectives: Sequence[str], folder: Path) -> list[Path]:
    """Write the plots that the study has trials enough for.

    Args:
        study: with finished trials.
        objectives: name of each objective.
        folder: where to.

    Returns:
        The files: `search_history.png`, `search_importance.png`, `search_parallel.png`, `search_pareto.png`, `search.html`.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not trials:
        return []
    maximise = [direction.name == "MAXIMIZE" for direction in study.directions]
    drawn = {"search_history.png": _history(trials, objectives, maximise[0])}
    ranked = importances(study, trials)
    if ranked:
        drawn["search_importance.png"] = _bars(ranked, objectives[0])
    if len(trials) > 1:
        drawn["search_parallel.png"] = _parallel(trials, objectives[0], maximise[0])
    if len(objectives) > 1:
        drawn["search_pareto.png"] = _pareto(trials, study.best_trials, objectives)
    for name, figure in drawn.items():
        figure.savefig(folder / name)
    (folder / PAGE).write_text(_page(study, objectives, ranked), encoding="utf-8")
    return [folder / name for name in (*drawn, PAGE)]


def importances(study: Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Give the share of the first objective's variance that each parameter explains, largest first.

    Args:
        study: whose trials they are.
        trials: complete ones.

    Returns:
        parameter -> share; empty where there are too few trials or all have one value.
    """
    import optuna

    values = [trial.values[0] for trial in trials]
    if len(trials) < FEWEST or len(set(values)) < 2:
        return {}
    shown = optuna.create_study(direction=study.directions[0])
    shown.add_trials([_first_objective(trial) for trial in trials[-MOST:]])
    shared = set.intersection(*(set(trial.params) for trial in trials[-MOST:]))
    varied = [name for name in sorted(shared) if len({str(trial.params[name]) for trial in trials[-MOST:]}) > 1]
    if not varied:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    return dict(optuna.importance.get_param_importances(shown, evaluator=evaluator, params=varied))


def _first_objective(trial: FrozenTrial) -> FrozenTrial:
    import optuna

    return optuna.trial.create_trial(value=trial.values[0], params=dict(trial.params), distributions=dict(trial.distributions))


def _history(trials: Sequence[FrozenTrial], objectives: Sequence[str], maximise: bool) -> Any:
    figure, axes = _axes()
    numbers, values = [trial.number for trial in trials], [trial.values[0] for trial in trials]
    best = np.maximum.accumulate(values) if maximise else np.minimum.accumulate(values)
    axes.scatter(numbers, values, s=14, color="#1f77b4", label="trial")
    axes.step(numbers, best, where="post", color="#2ca02c", label="best so far")
    axes.set(xlabel="trial", ylabel=objectives[0], title=f"{len(trials)} complete trials")
    axes.legend()
    return figure


def _bars(ranked: dict[str, float], objective: str) -> Any:
    figure, axes = _axes()
    names = list(ranked)[::-1]
    axes.barh(names, [ranked[name] for name in names], color="#1f77b4")
    axes.set(xlabel=f"share of the variance of {objective} explained (fANOVA)", title="Importance of parameters")
    return figure


def _parallel(trials: Sequence[FrozenTrial], objective: str, maximise: bool) -> Any:
    from matplotlib import colormaps

    figure, axes = _axes()
    sign = 1 if maximise else -1
    # The best are drawn last, on top.
    shown = sorted(trials, key=lambda trial: sign * trial.values[0])[-LINES:]
    names = sorted({name for trial in shown for name in trial.params})
    columns = [_places([trial.params.get(name) for trial in shown]) for name in names]
    columns.append(_places([trial.values[0] for trial in shown]))
    for place, trial in enumerate(shown):
        colour = colormaps["viridis"](place / max(len(shown) - 1, 1))
        axes.plot(range(len(columns)), [column[place] for column in columns], color=colour, alpha=0.5, linewidth=1)
        _ = trial
    axes.set_xticks(range(len(columns)), [*names, objective], rotation=30, ha="right", fontsize=8)
    axes.set(yticks=[], title="Each line is a trial, its best in yellow; each axis from its smallest value to its largest")
    return figure


def _places(values: Sequence[Any]) -> np.ndarray:
    """Place values on an axis from 0 to 1, by size or by name; a parameter that a trial does not have lies below."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        numbers = np.array([math.nan if value is None else float(value) for value in values])
        if np.nanmin(numbers) > 0 and np.nanmax(numbers) > 20 * np.nanmin(numbers):
            numbers = np.log(numbers)
        spread = np.nanmax(numbers) - np.nanmin(numbers)
        placed = (numbers - np.nanmin(numbers)) / spread if spread > 0 else np.full(len(numbers), 0.5)
        return np.where(np.isnan(placed), -0.1, placed)
    names = sorted({str(value) for value in values})
    return np.array([names.index(str(value)) / max(len(names) - 1, 1) for value in values])


def _pareto(trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial], objectives: Sequence[str]) -> Any:
    figure, axes = _axes()
    axes.scatter([trial.values[1] for trial in trials], [trial.values[0] for trial in trials], s=14, color="#9aa7b1", label="trial")
    best = sorted((trial.values[1], trial.values[0]) for trial in front)
    axes.plot([one[0] for one in best], [one[1] for one in best], "o-", color="#2ca02c", label="Pareto front")
    axes.set(xlabel=objectives[1], ylabel=objectives[0], title="No trial is better in both than one on the front")
    axes.legend()
    return figure


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=110, layout="tight")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _page(study: Study, objectives: Sequence[str], ranked: dict[str, float]) -> str:
    import plotly.graph_objects as go
    from optuna import visualization

    def first(trial: FrozenTrial) -> float:
        return float(trial.values[0])

    # Optuna takes a target where there are several objectives, and names it only then.
    aimed: dict[str, Any] = {"target": first} if len(objectives) > 1 else {}
    figures = [
        visualization.plot_optimization_history(study, target_name=objectives[0], **aimed),
        visualization.plot_parallel_coordinate(study, target_name=objectives[0], **aimed),
    ]
    if ranked:
        bars = go.Figure(go.Bar(x=list(ranked.values())[::-1], y=list(ranked)[::-1], orientation="h"))
        figures.append(bars.update_layout(title=f"Share of the variance of {objectives[0]} explained (fANOVA)"))
    if len(objectives) > 1:
        figures.append(visualization.plot_pareto_front(study, target_names=list(objectives)))
    parts = [str(one.to_html(full_html=False, include_plotlyjs=place == 0)) for place, one in enumerate(figures)]
    return _HEAD.format(title=f"Search {study.study_name}") + "".join(parts) + "</html>"
