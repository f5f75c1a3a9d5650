"""What each regularisation technique does to the generalisation gap, the quality and the calibration of models that overfit.

Run with `python -m benchmarks.regularize`. A plain CNN without normalisation on 2,000 Fashion-MNIST images: each technique of
the recipe and the best of them together, found by the recipe's own search on the selection rows, three seeds each. LightGBM with
its defaults on churn and houses: L1, L2 and both in the recipe's strengths. All figures are of the gate rows.
Bound: a smaller gap with the upper end of what is lost within half a point (accuracy, ROC-AUC, or R2 on the scale of 0 to 1),
or better quality; for at least one technique of each model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.real_data import real_data
from benchmarks.results_file import interval, save
from mlflow_opt import data, metrics
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.regularisers import mixup_loss, taken_off, with_batch_norm, with_dropout, zero_share
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.records import Quantity
from mlflow_opt.rows.batches import as_table
from mlflow_opt.tables.learners import Learner
from mlflow_opt.tables.penalties import penalties_for
from recipes.regularize import CONTROL, Techniques, best_together, figures_of, techniques_for

ROWS, EPOCHS, SEEDS, TRIALS = 2000, 30, (0, 1, 2), 3
SETTINGS = TrainSettings(epochs=EPOCHS, batch_size=64, learning_rate=2e-3, clip_norm=1.0)
HALF_A_POINT = 0.005


class Plain(nn.Module):
    """Three convolutions and two linear layers, with nothing that keeps them from learning their rows by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> Tensor:
        """Answer (n, 10)."""
        scores: Tensor = self.head(self.features(image.unsqueeze(1).float() / 255))
        return scores


@dataclass(frozen=True)
class Trained:
    """What one training came to: scores of the gate rows, what was lost on the selection rows, and the recipe's figures."""

    scored: Scored
    selection_drop: float
    figures: Mapping[str, float]


@dataclass
class Scene:
    """The CNN's rows, and what was trained on them so far: name -> one a seed."""

    split: data.Split
    train: Arrays
    found: dict[str, list[Trained]] = field(default_factory=dict)

    def try_out(self, name: str, how: Techniques) -> float:
        """Train with techniques, once a seed; gives the error rate on the selection rows."""
        self.found[name] = [self._one(how, seed) for seed in SEEDS]
        print(name, [(one.scored.values["accuracy"], dict(one.figures)) for one in self.found[name]], flush=True)
        return float(np.mean([one.selection_drop for one in self.found[name]]))

    def _one(self, how: Techniques, seed: int) -> Trained:
        torch.manual_seed(seed)
        module = Plain()
        valid, held, gate = (_arrays(self.split, part) for part in (self.split.calibration, self.split.selection, self.split.gate))
        dressed = with_dropout(module, self.train.inputs, how.dropout) if how.dropout else module
        dressed = with_batch_norm(dressed, self.train.inputs) if how.batch_norm else dressed
        settings = replace(SETTINGS, seed=seed, l1=how.l1, weight_decay=how.weight_decay, label_smoothing=how.label_smoothing)
        fitted = fit(dressed, self.train, valid, settings, mixup_loss(how.mixup, how.label_smoothing) if how.mixup else None)
        plain = taken_off(fitted.module, module)
        answers = [scores_of(plain, rows.inputs).numpy() for rows in (self.train, held, gate)]
        classes = np.array(self.split.task.classes)
        figures = figures_of(self.split.task, (classes[self.train.targets], answers[0]), (self.split.gate.labels, answers[2]))
        held_score = score(self.split.task, self.split.selection.labels, answers[1]).values["accuracy"]
        known = {"zero_share": zero_share(plain), "best_epoch": float(fitted.best)}
        return Trained(score(self.split.task, self.split.gate.labels, answers[2]), 1 - held_score, {**figures, **known})


def main() -> None:
    """Measure and write results/regularize.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    head = ["model", "technique", "points lost [95%]", "gap, points", "calibration error", "zeros", "best epoch", "bound met"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    figures: dict[str, Any] = {}
    for model, quality, found in (_network(), *_trees()):
        lines.append(f"| {model} | without: {quality} {np.mean([one.scored.values[quality] for one in found[CONTROL]]):.4f} | | | | | | |")
        for name, runs in found.items():
            lost, means = _lost(runs, found[CONTROL], quality), _means(runs)
            lines.append(f"| {model} | {name} | {' | '.join(_cells(name, lost, means, _means(found[CONTROL])))} |")
            figures[f"{model}, {name}"] = {"lost": [lost.value, lost.lo, lost.hi, lost.n], **means}
    said = f"CNN: {ROWS} train rows, {EPOCHS} epochs, {len(SEEDS)} seeds; LightGBM: 300 rounds."
    save("regularize", figures, [said, "", *lines])


def _network() -> tuple[str, str, dict[str, list[Trained]]]:
    split = data.split(data.read("fashion_mnist"))
    rows = _arrays(split, split.train)
    scene = Scene(split, Arrays({name: array[:ROWS] for name, array in rows.inputs.items()}, rows.targets[:ROWS]))
    singles = techniques_for(split.task, mixable=True)
    drops = {name: scene.try_out(name, how) for name, how in {CONTROL: Techniques(), **singles}.items()}
    print("best together:", best_together(singles, drops, scene.try_out, TRIALS), flush=True)
    return "CNN, Fashion-MNIST", "accuracy", scene.found


def _trees() -> Iterator[tuple[str, str, dict[str, list[Trained]]]]:
    from lightgbm import LGBMClassifier, LGBMRegressor

    for name, kind in (("telco_churn", LGBMClassifier), ("california.parquet", LGBMRegressor)):
        split = data.split(data.read(str(real_data(name)) if "." in name else name))
        rows, others = as_table(split.train.rows), as_table(split.gate.rows)
        texts = [column for column in rows if rows[column].dtype.kind not in "fiub"]
        categories = {str(column): tuple(sorted(rows[column].dropna().unique())) for column in texts}
        learner = Learner(kind(n_estimators=300, n_jobs=1, verbose=-1, random_state=0), tuple(map(str, rows.columns)), categories)
        found = {}
        for setting, params in {CONTROL: dict[str, Any](), **penalties_for(learner, len(rows))}.items():
            fitted = learner.fit(rows, split.train.labels, params=params)
            answers = fitted.scores(rows), fitted.scores(others)
            figures = figures_of(split.task, (split.train.labels, answers[0]), (split.gate.labels, answers[1]))
            found[setting] = [Trained(score(split.task, split.gate.labels, answers[1]), 0.0, figures)]
        yield f"LightGBM, {name.split('.')[0]}", metrics.QUALITY[split.task.kind][0], found


def _cells(name: str, lost: Quantity, means: Mapping[str, float], control: Mapping[str, float]) -> list[str]:
    smaller = means["generalisation_gap"] < control["generalisation_gap"] and lost.hi <= HALF_A_POINT
    met = "-" if name == CONTROL else "yes" if smaller or lost.hi < 0 else "no"
    shown = [interval([100 * value for value in (lost.value, lost.lo, lost.hi)]), f"{100 * means['generalisation_gap']:.2f}"]
    shown.append(f"{means['calibration_error']:.3f}" if "calibration_error" in means else "-")
    shown.append(f"{100 * means['zero_share']:.0f}%" if "zero_share" in means else "-")
    return [*shown, f"{means['best_epoch']:.1f}" if "best_epoch" in means else "-", met]


def _means(runs: list[Trained]) -> dict[str, float]:
    return {name: float(np.mean([one.figures[name] for one in runs])) for name in runs[0].figures}


def _lost(ours: list[Trained], theirs: list[Trained], quality: str) -> Quantity:
    """Average what is lost over seeds: rows and seeds both make noise, so the wider of the two intervals is shown."""
    each = [compare_quality(one.scored, other.scored)[f"drop_{quality}"] for one, other in zip(ours, theirs, strict=True)]
    if len(each) == 1:
        return each[0]
    from scipy import stats

    values = np.array([one.value for one in each])
    mean = float(values.mean())
    wrong = [[one.scored.outputs.argmax(axis=1) != one.scored.labels for one in runs] for runs in (ours, theirs)]
    by_rows = 1.96 * float((np.mean(wrong[0], axis=0) - np.mean(wrong[1], axis=0)).std()) / each[0].n ** 0.5
    by_seeds = float(stats.t.ppf(0.975, len(each) - 1) * values.std(ddof=1)) / len(each) ** 0.5
    half = max(by_rows, by_seeds)
    return Quantity(mean, mean - half, mean + half, each[0].n)


def _arrays(split: data.Split, part: data.Part) -> Arrays:
    assert isinstance(part.rows, dict)
    return Arrays(part.rows, np.searchsorted(np.array(split.task.classes), part.labels))


if __name__ == "__main__":
    main()
