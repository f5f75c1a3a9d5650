"""A student of a quarter of the teacher's widths, taught by its answers and by the labels alone, over several seeds.

Run with `python -m benchmarks.distill_networks`. Teacher: the recipe's default, the small ResNet on Fashion-MNIST; student: the narrower
copy that the recipe finds, drawn anew for each seed; both ways of teaching see the same rows, moved pictures included, for the same epochs.
Bounds: at least 5x as fast as the teacher in the same runtime, at least 98% of its accuracy, and better than the student on
labels alone outside the noise of the seeds.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results_file import interval, save
from mlflow_opt import baselines, data, models
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.stopwatch import time_models
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.network_distillation import lesson_of, multiplied, narrower, soft_loss
from mlflow_opt.networks.network_learners import fresh, learner_for
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.records import Quantity

SHARE, TEMPERATURE, MIX, COPIES, EPOCHS, SEEDS = 0.25, 4.0, 0.1, 1, 10, (0, 1, 2, 3, 4)
# The last epoch counts, for both ways: which one of them has the best loss on the few validation rows is mostly chance.
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
    small = narrower(teacher, valid, SHARE)
    rows = multiplied(train, COPIES, 0)
    lesson = lesson_of(rows, lambda inputs: scores_of(teacher, inputs).numpy(), {})
    accuracies: dict[str, list[float]] = {"soft": [], "hard": []}
    for seed in SEEDS:
        student = fresh(small, seed)
        for name, loss in (("soft", soft_loss(lesson, TEMPERATURE, MIX)), ("hard", None)):
            trained = fit(student, rows, valid, replace(STUDENT, seed=seed), loss).module
            accuracies[name].append(_accuracy(trained, gate, split))
        print(seed, {name: found[-1] for name, found in accuracies.items()}, flush=True)
    faster = _speedup(teacher, small, gate)
    gain = _paired(np.array(accuracies["soft"]) - np.array(accuracies["hard"]))
    kept = _paired(np.array(accuracies["soft"]) / teacher_accuracy)
    weights = [sum(one.numel() for one in module.parameters()) for module in (teacher, small)]
    lines = [
        f"Teacher: {weights[0]:,} weights, accuracy {teacher_accuracy:.4f}; student: {weights[1]:,}; {len(SEEDS)} seeds, 10,000 rows.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
        f"| student over teacher, one row, same runtime | {interval((faster.value, faster.lo, faster.hi))} | >= 5 |",
        f"| share of the teacher's accuracy | {interval(kept, '{:.4f}')} | >= 0.98 |",
        f"| points that distillation itself brought | {interval([100 * value for value in gain])} | > 0, the interval's lower end too |",
        f"| accuracy taught by answers / by labels | {np.mean(accuracies['soft']):.4f} / {np.mean(accuracies['hard']):.4f} | - |",
    ]
    figures = {"teacher": teacher_accuracy, "speedup": [faster.value, faster.lo, faster.hi], "kept": kept, "gain": gain, **accuracies}
    save("distill_networks", figures, lines)


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
