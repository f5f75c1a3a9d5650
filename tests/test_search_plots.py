from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from mlflow_opt.search import search_plots


def study_of(trials: int, *, goals: int = 1, pruned: bool = False) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goals_of = [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    study = optuna.create_study(directions=goals_of[:goals], sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float | tuple[float, ...]:
        strong, _ = trial.suggest_float("strong", 0.001, 10, log=True), trial.suggest_float("weak", 0, 1)
        depth = trial.suggest_categorical("depth", [None, 6, 10])
        if depth == 6:
            trial.suggest_int("only_sometimes", 1, 5)
        if pruned and trial.number % 2:
            raise optuna.TrialPruned
        return strong if goals == 1 else (strong, strong**2)

    study.optimize(objective, n_trials=trials)
    return study


def test_importances_name_the_parameter_that_matters_when_trials_are_many() -> None:
    study = study_of(40)
    found = search_plots.importances(study, study.trials)
    assert next(iter(found)) == "strong"
    assert found["strong"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert "only_sometimes" not in found


def test_importances_are_left_out_when_they_would_be_noise() -> None:
    study = study_of(4)
    assert search_plots.importances(study, study.trials) == {}


@pytest.mark.parametrize(
    ("trials", "goals", "names"),
    [
        (12, 1, {"search_history.png", "search_importance.png", "search_parallel.png", "search.html"}),
        (12, 2, {"search_history.png", "search_importance.png", "search_parallel.png", "search_pareto.png", "search.html"}),
        (1, 1, {"search_history.png", "search.html"}),
        (0, 1, set()),
    ],
    ids=["one_goal", "two_goals", "one_trial", "none"],
)
def test_plots_are_those_that_the_trials_allow_when_saved(trials: int, goals: int, names: set[str], tmp_path: Path) -> None:
    made = search_plots.save(study_of(trials, goals=goals), ["roc_auc", "relative_latency"][:goals], tmp_path)
    assert {path.name for path in made} == names
    assert all(path.stat().st_size > 1000 for path in made)


def test_page_needs_nothing_from_elsewhere_when_opened(tmp_path: Path) -> None:
    search_plots.save(study_of(24, pruned=True), ["roc_auc"], tmp_path)
    page = (tmp_path / "search.html").read_text()
    assert "<script src=" not in page
    assert page.count("plotly-graph-div") >= 3
