"""A student of a seventh of the teacher's widths, taught by its answers and by the labels alone, over several seeds.

Run with `python -m benchmarks.distill_networks`. Teacher: the recipe's default, the small ResNet on Fashion-MNIST; student: the
narrower copy that the recipe finds, drawn anew for each seed. As in the recipe, a taught student sees every picture, a moved copy and
blends with other pictures, which only a teacher can answer; a student on labels sees as many moved copies, and one that is taught by
answers on the very same rows tells what the softened answers by themselves bring. All take as many steps.
Bounds: at least 5x as fast as the teacher in the same runtime, at least 98% of its accuracy, and better than the student on
labels alone outside the noise of the seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results_file import ends, interval, save
from mlflow_opt import baselines, data, models
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.stopwatch import time_models
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.network_distillation import blended, lesson_of, multiplied, narrower, soft_loss
from mlflow_opt.networks.network_learners import fresh, learner_for
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.records import Quantity

SHARE, TEMPERATURE, MIX, COPIES, EPOCHS, SEEDS = 0.15, 4.0, 0.1, 6, 6, (0, 1, 2, 3, 4)
# The last epoch counts, for all: which one of them has the best loss on the few validation rows is mostly chance.
STUDENT = TrainSettings(EPOCHS, 128, 3e-3, "one_cycle", weight_decay=0.01, clip_norm=1.0, monitor="last")


def main() -> None:
    """Measure and write results/distill_networks.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    split = data.split(data.read("fashion_mnist"))
    with tempfile.TemporaryDirectory() as name:
        learner = learner_for(models.load(str(baselines.train_baseline(split, Path(name), 0))), split)
    teacher, gate = learner.module, learner.arrays(split.gate)
    train, valid = learner.arrays(split.train), learner.arrays(split.calibration)
    teacher_accuracy = _accuracy(teacher, gate, split)
    print("teacher", teacher_accuracy, flush=True)

    def teach(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(scores_of(teacher, inputs).numpy())

    small = narrower(teacher, valid, SHARE)
    labelled = multiplied(train, COPIES, 0)
    lessons = {
        "soft": lesson_of(multiplied(train, 1, 0), teach, blended(train, COPIES - 1, 0)),
        "same rows": lesson_of(labelled, teach, {}),
    }
    accuracies: dict[str, list[float]] = {"soft": [], "same rows": [], "hard": []}
    for seed in SEEDS:
        student, settings = fresh(small, seed), replace(STUDENT, seed=seed)
        for name, lesson in lessons.items():
            taught = fit(student, lesson.rows, valid, settings, soft_loss(lesson, TEMPERATURE, MIX)).module
            accuracies[name].append(_accuracy(taught, gate, split))
        accuracies["hard"].append(_accuracy(fit(student, labelled, valid, settings).module, gate, split))
        print(seed, {name: found[-1] for name, found in accuracies.items()}, flush=True)
    gain, plain = (_paired(np.array(accuracies[name]) - np.array(accuracies["hard"])) for name in ("soft", "same rows"))
    figures = {
        "teacher": teacher_accuracy,
        "weights": [sum(one.numel() for one in module.parameters()) for module in (teacher, small)],
        "speedup": ends(_speedup(teacher, small, gate)),
        "kept": _paired(np.array(accuracies["soft"]) / teacher_accuracy),
        "gain": gain,
        "plain": plain,
        **accuracies,
    }
    save("distill_networks", figures, _lines(figures))


def _lines(found: Mapping[str, Any]) -> list[str]:
    larger, smaller = found["weights"]
    return [
        f"Teacher: {larger:,} weights, accuracy {found['teacher']:.4f}; student: {smaller:,}; {len(SEEDS)} seeds, 10,000 rows.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
        f"| student over teacher, one row, same runtime | {interval(found['speedup'])} | >= 5 |",
        f"| share of the teacher's accuracy | {interval(found['kept'], '{:.4f}')} | >= 0.98 |",
        f"| points that distillation itself brought | {_points(found['gain'])} | > 0, the interval's lower end too |",
        f"| the same without blended pictures | {_points(found['plain'])} | - |",
        f"| accuracy taught by answers / by labels | {np.mean(found['soft']):.4f} / {np.mean(found['hard']):.4f} | - |",
    ]


def _points(values: Sequence[float]) -> str:
    return interval([100 * value for value in values])


def _accuracy(module: nn.Module, rows: Arrays, split: data.Split) -> float:
    return float(scoring.score(split.task, split.gate.labels, scores_of(module, rows.inputs).numpy()).values["accuracy"])


def _speedup(teacher: nn.Module, student: nn.Module, rows: Arrays) -> Quantity:
    with tempfile.TemporaryDirectory() as name:
        files = []
        for at, module in enumerate((student, teacher)):
            files.append(Path(name) / f"{at}.onnx")
            proto: Any = export_module(module.eval(), {key: array[:3] for key, array in rows.inputs.items()})
            files[-1].write_bytes(proto.SerializeToString())
        loaded = [models.load(str(file)) for file in files]
        batch = {key: array[:256] for key, array in rows.inputs.items()}
        return time_models(loaded, batch, sessions=5, threads=1).speedup(0, 1)


def _paired(values: np.ndarray) -> list[float]:
    """Give the mean over seeds with Student's interval."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return [float(values.mean()), float(values.mean()) - half, float(values.mean()) + half]


if __name__ == "__main__":
    main()
