"""A student of an eighth of the teacher's widths, taught by its answers and by the labels alone, over several seeds.

Run with `python -m benchmarks.distill_networks [few] [all]`; what is not named keeps the figures that it has. Teacher: the small ResNet on
Fashion-MNIST; student: the narrower copy that the recipe finds, drawn anew for each seed. `few`: only 1,000 pictures have a label, the
teacher learns from these, and answers the other 4,840 too. `all`: every picture has one. As in the recipe, a taught student sees the
pictures, a moved copy of those with a label, and blends of two pictures, which only a teacher can answer; a student on labels
sees moved copies of what has a label. Both take as many steps.
Bounds: at least 5x as fast as the teacher in the same runtime, at least 98% of its accuracy, and better than the student on
labels alone outside the noise of the seeds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results_file import FOLDER, ends, interval, save
from mlflow_opt import baselines, data, models
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.stopwatch import time_models
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.network_distillation import blended, lesson_of, multiplied, narrower, repeated, soft_loss
from mlflow_opt.networks.network_learners import fresh, learner_for
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.records import Quantity

SHARE, TEMPERATURE, MIX, COPIES, SEEDS = 0.12, 4.0, 0.1, 6, (0, 1, 2, 3, 4)
# Pictures with a label.
SETTINGS = {"few": 1000, "all": 0}
# The last epoch counts, for both: which one of them has the best loss on the few validation rows is mostly chance.
STUDENT = TrainSettings(6, 128, 3e-3, "one_cycle", weight_decay=0.01, clip_norm=1.0, monitor="last")
TEACHER = replace(STUDENT, epochs=8)


def main() -> None:
    """Measure and write results/distill_networks.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    path = FOLDER / "distill_networks.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {name: known[name] for name in SETTINGS if name in known}
    for name in sys.argv[1:] or SETTINGS:
        found[name] = measured(data.split(data.read("fashion_mnist")), SETTINGS[name])
        save("distill_networks", found, _lines({one: found[one] for one in SETTINGS if one in found}))


def measured(split: data.Split, labelled: int) -> dict[str, Any]:
    """Train a teacher on the pictures with a label, and students by both ways with each seed."""
    count = labelled or len(split.train.labels)
    few, others = _parted(split.train, count)
    with tempfile.TemporaryDirectory() as name:
        learner = learner_for(models.load(str(baselines.train_baseline(replace(split, train=few), Path(name), 0))), split)
    train, valid, gate = (learner.arrays(part) for part in (few, split.calibration, split.gate))
    teacher = fit(learner.module, multiplied(train, COPIES, 1), valid, TEACHER).module
    more, small = learner.inputs(others.rows) if labelled else {}, narrower(teacher, valid, SHARE)
    # Blends of all pictures, with and without a label.
    everything = learner.arrays(split.train)
    unlabelled = _joined(more, blended(everything, COPIES - 1 if not labelled else 2, 0))
    lesson = lesson_of(multiplied(train, 1, 0), lambda inputs: np.asarray(scores_of(teacher, inputs).numpy()), unlabelled)
    alone = repeated(multiplied(train, COPIES, 0), len(lesson.labelled))
    accuracies: dict[str, list[float]] = {"soft": [], "hard": []}
    for seed in SEEDS:
        student, settings = fresh(small, seed), replace(STUDENT, seed=seed)
        taught = fit(student, lesson.rows, valid, settings, soft_loss(lesson, TEMPERATURE, MIX)).module
        accuracies["soft"].append(_accuracy(taught, gate, split))
        accuracies["hard"].append(_accuracy(fit(student, alone, valid, settings).module, gate, split))
        print(count, seed, {name: found[-1] for name, found in accuracies.items()}, flush=True)
    accuracy = _accuracy(teacher, gate, split)
    return {
        "labels": count,
        "teacher": accuracy,
        "weights": [sum(one.numel() for one in module.parameters()) for module in (teacher, small)],
        "speedup": ends(_speedup(teacher, small, gate)),
        "kept": _paired(np.array(accuracies["soft"]) / accuracy),
        "gain": _paired(np.array(accuracies["soft"]) - np.array(accuracies["hard"])),
        **accuracies,
    }


def _parted(part: data.Part, count: int) -> list[data.Part]:
    """Draw which pictures have a label, and which have none."""
    order = np.random.default_rng(0).permutation(len(part.labels))
    drawn = (np.sort(order[:count]), np.sort(order[count:]))
    return [replace(part, rows=data.take(part.rows, at), labels=part.labels[at]) for at in drawn]


def _joined(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([one[name], array]) if one else array for name, array in other.items()}


def _lines(found: Mapping[str, Any]) -> list[str]:
    larger, smaller = next(iter(found.values()))["weights"]
    names = [f"{one['labels']:,} labels" for one in found.values()]
    cells = {
        "student over teacher, one row, same runtime": ([interval(one["speedup"]) for one in found.values()], ">= 5"),
        "share of the teacher's accuracy": ([interval(one["kept"], "{:.4f}") for one in found.values()], ">= 0.98"),
        "points that distillation itself brought": (
            [interval([100 * value for value in one["gain"]]) for one in found.values()],
            "> 0, the interval's lower end too",
        ),
        "accuracy of the teacher": ([f"{one['teacher']:.4f}" for one in found.values()], "-"),
        "accuracy taught by answers / by labels": (
            [f"{np.mean(one['soft']):.4f} / {np.mean(one['hard']):.4f}" for one in found.values()],
            "-",
        ),
    }
    return [
        f"Teacher: {larger:,} weights; student: {smaller:,}; {len(SEEDS)} seeds, 10,000 gate rows.",
        "",
        f"| what, measured [95%] | {' | '.join(names)} | bound |",
        "|---" * (len(names) + 2) + "|",
        *(f"| {what} | {' | '.join(values)} | {bound} |" for what, (values, bound) in cells.items()),
    ]


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
