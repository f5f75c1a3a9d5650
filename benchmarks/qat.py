"""What training with rounding recovers of what rounding after training lost, where it lost something.

Run with `python -m benchmarks.qat`. Networks for which integers are hard: a depthwise network with one scale per tensor, and
a small ResNet with 4-bit weights (stored in 8). All are trained on Fashion-MNIST, quantised after training by the recipe's own
functions with and without corrected biases, and trained on with rounding as in the recipe; accuracy on the 10,000 gate rows,
paired with float.
Bound: training recovers at least half of what was lost wherever that is more than 0.3 point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results_file import interval, save
from mlflow_opt import data
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.network_distillation import lesson_of, soft_loss
from mlflow_opt.networks.networks import ResNet
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.precision.fake_quantisation import folded, grids_of, rounded, taken_apart
from mlflow_opt.precision.quantisation import Scheme, batches_of, outputs_of, prepared, quantised, schemes_for
from mlflow_opt.precision.quantisation_loss import bias_corrected
from mlflow_opt.records import Quantity

EPOCHS, MORE = 8, 3
# As in the recipe.
TEMPERATURE, MIX = 2.0, 0.3
FLOAT = TrainSettings(epochs=EPOCHS, batch_size=128, learning_rate=3e-3, weight_decay=0.01, clip_norm=1.0, schedule="one_cycle")
ROUNDED = TrainSettings(epochs=MORE, batch_size=128, learning_rate=1e-3, clip_norm=1.0)


class Depthwise(nn.Module):
    """Blocks of a depthwise and a pointwise convolution, in the manner of MobileNet (Howard et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        widths = [(width, 2 * width, 1), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
        self.blocks = nn.Sequential(*(self._block(*sizes) for sizes in widths))
        self.head = nn.Linear(4 * width, 10)

    @staticmethod
    def _block(before: int, after: int, stride: int) -> nn.Module:
        depth = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
        point = nn.Conv2d(before, after, 1, bias=False)
        return nn.Sequential(depth, nn.BatchNorm2d(before), nn.ReLU6(), point, nn.BatchNorm2d(after), nn.ReLU6())

    def forward(self, image: Tensor) -> Tensor:
        """Answer (n, 10)."""
        features = self.blocks(self.stem(image.unsqueeze(1).to(self.head.weight.dtype) / 255))
        scores: Tensor = self.head(features.mean(dim=(2, 3)))
        return scores


@dataclass(frozen=True)
class Case:
    """A network and a scheme that it suffers from."""

    what: str
    module: nn.Module
    scheme: Scheme


def main() -> None:
    """Measure and write results/qat.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    split = data.split(data.read("fashion_mnist"))
    base = schemes_for(cpu_features())[0]
    torch.manual_seed(0)
    cases = [
        Case("depthwise, 8 bits, one scale per tensor", Depthwise(), replace(base, name="tensor", per_channel=False)),
        Case("depthwise, 4-bit weights per channel", Depthwise(), replace(base, name="w4", weight_bits=4)),
        Case(
            "small ResNet, 4-bit weights per tensor",
            ResNet(1, 10, "hw", width=8),
            replace(base, name="w4t", weight_bits=4, per_channel=False),
        ),
    ]
    lines, figures = [], {}
    for case in cases:
        for name, quantity in _losses(case, split):
            figures[f"{case.what}: {name}"] = [quantity.value, quantity.lo, quantity.hi, quantity.n]
        after, trained = (figures[f"{case.what}: {name}"][0] for name in ("after training", "trained with rounding"))
        share = f"{100 * (after - trained) / after:.0f}%" if after > 0.003 else "nothing to recover"
        shown = [
            interval([100 * value for value in figures[f"{case.what}: {name}"][:3]])
            for name in ("after training", "with corrected biases", "trained with rounding", "float trained as long")
        ]
        lines.append(f"| {case.what} | {' | '.join(shown)} | {share} | >= 50% |")
    names = [
        "points of accuracy lost to float [95%]",
        "after training",
        "biases corrected",
        "trained with rounding",
        "float trained as long",
    ]
    head = f"| {' | '.join(names)} | recovered | bound |"
    save("qat", figures, [head, "|---" * 7 + "|", *lines])


def _losses(case: Case, split: data.Split) -> Iterator[tuple[str, Quantity]]:
    train, valid, gate = (_arrays(split, part) for part in (split.train, split.calibration, split.gate))
    plain = folded(fit(case.module, train, valid, FLOAT).module, valid.inputs)
    feeds = batches_of({"image": valid.inputs["image"]})
    rows = [{"image": gate.inputs["image"][at : at + 500]} for at in range(0, len(gate.targets), 500)]
    proto = _graph(plain, valid)
    integers = quantised(proto, case.scheme, feeds)
    lesson = lesson_of(train, lambda inputs: scores_of(plain, inputs).numpy(), {})
    taught = soft_loss(lesson, TEMPERATURE, MIX)
    fitted = fit(rounded(plain, valid.inputs, case.scheme), train, valid, ROUNDED, taught)
    module, learnt = taken_apart(fitted.module, plain)
    better = _graph(module, valid)
    longer = _graph(fit(plain, train, valid, ROUNDED, taught).module, valid)
    made = {
        "after training": integers,
        "with corrected biases": bias_corrected(proto, integers, feeds),
        "trained with rounding": quantised(better, case.scheme, feeds, grids=grids_of(better, learnt)),
        # Training on may help a float network too: what it brings is no merit of rounding.
        "float trained as long": longer,
    }
    reference = scoring.score(split.task, split.gate.labels, outputs_of(proto, rows))
    print(case.what, "float", reference.values["accuracy"], flush=True)
    for name, graph in made.items():
        lost = compare_quality(scoring.score(split.task, split.gate.labels, outputs_of(graph, rows)), reference)["drop_accuracy"]
        print(case.what, name, lost, flush=True)
        yield name, lost


def _graph(module: nn.Module, rows: Arrays) -> Any:
    return prepared(export_module(module.eval(), {"image": rows.inputs["image"][:3]}))


def _arrays(split: data.Split, part: data.Part) -> Arrays:
    assert isinstance(part.rows, dict)
    return Arrays(part.rows, np.searchsorted(np.array(split.task.classes), part.labels))


if __name__ == "__main__":
    main()
