"""What each regularisation technique does to the generalisation gap, the quality and the calibration of a small CNN with few rows.

Run with `python -m benchmarks.regularize`. A small ResNet without batch statistics' help of many rows: 2,000 Fashion-MNIST
images, the same training for each technique, three seeds; all figures on the 10,000 gate rows. Bound: for at least one
technique a smaller gap with the upper end of the accuracy lost within half a point, or better accuracy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.results_file import interval, save
from mlflow_opt import data
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.reliability import calibration_error
from mlflow_opt.measurement.scoring import Scored
from mlflow_opt.networks.losses import Arrays, evaluate, scores_of
from mlflow_opt.networks.networks import ResNet
from mlflow_opt.networks.regularisers import mixup_loss, taken_off, with_dropout, zero_share
from mlflow_opt.networks.training import Fitted, TrainSettings, fit
from mlflow_opt.records import Quantity
from recipes.regularize import CONTROL, Techniques, techniques_for

ROWS, EPOCHS, SEEDS = 2000, 16, (0, 1, 2)
SETTINGS = TrainSettings(epochs=EPOCHS, batch_size=64, learning_rate=3e-3, clip_norm=1.0, schedule="one_cycle")


def main() -> None:
    """Measure and write results/regularize.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    split = data.split(data.read("fashion_mnist"))
    train, valid, gate = (_arrays(split, part) for part in (split.train, split.calibration, split.gate))
    train = Arrays({name: array[:ROWS] for name, array in train.inputs.items()}, train.targets[:ROWS])
    singles = techniques_for(split.task, mixable=True)
    # The network has batch normalisation everywhere already.
    del singles["batch_norm"]
    joined = singles["mixup"].joined(singles["weight_decay"])
    tried = {
        CONTROL: Techniques(),
        **singles,
        "mixup+weight_decay": joined,
        "mixup+weight_decay+dropout": joined.joined(singles["dropout"]),
    }
    found: dict[str, list[tuple[Scored, list[float]]]] = {}
    for name, how in tried.items():
        found[name] = [_one(how, train, valid, gate, split, seed) for seed in SEEDS]
        print(name, [figures for _, figures in found[name]], flush=True)
    head = ["technique", "accuracy lost, points [95%]", "gap, points", "calibration error", "zeros", "best epoch", "bound met"]
    control, lines, figures = found[CONTROL], ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"], {}
    gap = float(np.mean([values[0] for _, values in control]))
    for name, runs in found.items():
        lost = _lost([scored for scored, _ in runs], [scored for scored, _ in control])
        means = np.mean([values for _, values in runs], axis=0)
        better = means[0] < gap and lost.hi <= 0.005
        met = "-" if name == CONTROL else "yes" if better or lost.hi < 0 else "no"
        cells = [name, interval([100 * value for value in (lost.value, lost.lo, lost.hi)]), f"{100 * means[0]:.2f}", f"{means[1]:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{100 * means[2]:.0f}%", f"{means[3]:.1f}", met]) + " |")
        figures[name] = {"lost": [lost.value, lost.lo, lost.hi, lost.n], "gap_ece_zeros_epoch": means.tolist()}
    accuracy = float(np.mean([scored.values["accuracy"] for scored, _ in control]))
    save("regularize", figures, [f"{ROWS} train rows, {EPOCHS} epochs, {len(SEEDS)} seeds; accuracy without {accuracy:.4f}.", "", *lines])


def _one(how: Techniques, train: Arrays, valid: Arrays, gate: Arrays, split: data.Split, seed: int) -> tuple[Scored, list[float]]:
    torch.manual_seed(seed)
    module = ResNet(1, 10, "hw", width=8)
    settings = replace(SETTINGS, seed=seed, l1=how.l1, weight_decay=how.weight_decay, label_smoothing=how.label_smoothing)
    dressed = with_dropout(module, train.inputs, how.dropout) if how.dropout else module
    fitted: Fitted = fit(dressed, train, valid, settings, mixup_loss(how.mixup, how.label_smoothing) if how.mixup else None)
    plain = taken_off(fitted.module, module)
    scored = scoring.score(split.task, split.gate.labels, scores_of(plain, gate.inputs).numpy())
    gap = evaluate(plain, train)[1] - scored.values["accuracy"]
    return scored, [gap, calibration_error(scored.outputs, scored.labels), zero_share(plain), float(fitted.best)]


def _lost(ours: list[Scored], theirs: list[Scored]) -> Quantity:
    """Average what is lost over seeds: rows and seeds both make noise, so the wider of the two intervals is shown."""
    each = [compare_quality(one, other)["drop_accuracy"] for one, other in zip(ours, theirs, strict=True)]
    values = np.array([one.value for one in each])
    mean = float(values.mean())
    by_rows = float(np.mean([one.hi - one.value for one in each])) / len(each) ** 0.5
    # Student's t for three seeds.
    by_seeds = 4.30 * float(values.std(ddof=1)) / len(each) ** 0.5
    half = max(by_rows, by_seeds)
    return Quantity(mean, mean - half, mean + half, each[0].n)


def _arrays(split: data.Split, part: data.Part) -> Arrays:
    assert isinstance(part.rows, dict)
    return Arrays(part.rows, np.searchsorted(np.array(split.task.classes), part.labels))


if __name__ == "__main__":
    main()
