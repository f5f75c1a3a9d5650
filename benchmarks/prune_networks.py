"""Pruned networks against the unpruned one in the same runtime, on real data, with the runtime's and pruning's shares apart.

Run with `python -m benchmarks.prune_networks [epochs]` (10). The default small ResNet is trained on Fashion-MNIST and on 5,000 of
MNIST's digits (see `benchmarks.real_data`), then pruned to a share of its multiplications as the recipe does it, pruned and
quantised, and given 70% zeros. The dense network is fine-tuned for as many epochs as every pruned one. Accuracy is on gate rows
that nothing before has seen; every latency is paired in turns in fresh processes.

Bounds: structured >= 2.5x lower latency in the same runtime and >= 3x fewer multiplications at <= 1 point lost; 70% zeros at < 1 point;
pruned and quantised >= 15x over torch eager at one row and >= 8x at a batch of 32, <= 1 point. `benchmarks.prune_minilm` prunes an encoder.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_data import real_data
from benchmarks.results_file import ends, interval, save
from mlflow_opt import baselines, data, measure, models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.export.from_torch import export_retrained
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.models import Model
from mlflow_opt.policy import parse_policy
from mlflow_opt.precision.quantisation import prepared, quantised, schemes_for

POLICY = parse_policy("validation_criteria: [{metric: accuracy, max_drop: 0.01}, {metric: speedup, min: 2.5}]")
CONDITIONS = measure.Conditions(threads=1, batch_size=32, budget_s=15.0)
SETS = {"Fashion-MNIST": ("fashion_mnist", "target"), "5,000 of MNIST": ("mnist5k.npz", "y")}
SHARE, STEPS, ZEROS = 0.3, 2, 0.7


class Bench:
    """One network on one data set: trains, prunes, exports and compares."""

    def __init__(self, split: data.Split, folder: Path, model: Model, epochs: int) -> None:
        """Prepare the learner.

        Args:
            split: of the data.
            folder: scratch.
            model: the trained network.
            epochs: of fine-tuning.
        """
        from mlflow_opt.networks.network_learners import learner_for

        self.split, self.folder, self.model, self.epochs = split, folder, model, epochs
        self.learner = learner_for(model, split)
        self.train, self.validation = self.learner.arrays(split.train), self.learner.arrays(split.calibration)
        self.example = data.take(split.calibration.rows, slice(0, 64))

    def fit(self, module: Any, epochs: int) -> Any:
        """Fine-tune a network as the recipe does."""
        from mlflow_opt.networks.losses import augmented, plain_loss, shift_pictures
        from mlflow_opt.networks.network_learners import usual_settings

        is_picture = next(iter(self.train.inputs.values())).dtype == np.uint8
        loss = augmented(plain_loss(), shift_pictures) if is_picture else plain_loss()
        settings = usual_settings(len(self.train.targets), epochs, 1e-3, 0)
        return self.learner.fit(module, (self.train, self.validation), settings, loss).module

    def prune(self, share: float, steps: int = 2) -> tuple[Any, float]:
        """Prune to a share of the multiplications, as the recipe does; gives the network and how many times fewer they are."""
        from mlflow_opt.pruning.channel_graph import couplings_of
        from mlflow_opt.pruning.channel_importance import importances, sensitivities
        from mlflow_opt.pruning.channel_pruning import without
        from mlflow_opt.pruning.channel_widths import choose_widths, step_of, units_to_remove

        few = {name: one[:3] for name, one in self.validation.inputs.items()}
        rows = replace(self.train, inputs={name: one[:512] for name, one in self.train.inputs.items()}, targets=self.train.targets[:512])
        module, judge = self.learner.module, self.learner.judged
        graph = couplings_of(module, few)
        lost = sensitivities(module, graph, importances(module, graph, "taylor", rows, judge), self.validation, judge)
        final = choose_widths(graph, lost, share, step_of(cpu_features()))
        full, before = {family.name: len(family.units) for family in graph.families}, graph.macs()
        for step in range(1, steps + 1):
            now = {name: max(width, round(full[name] * (width / full[name]) ** (step / steps))) for name, width in final.items()}
            graph = couplings_of(module, few)
            ranked = importances(module, graph, "taylor", rows, judge)
            module = without(module, graph, units_to_remove(graph, now, ranked), self.validation.inputs)
            module = self.fit(module, max(1, self.epochs // steps))
        return module, before / couplings_of(module, few).macs()

    def variant(self, name: str, module: Any) -> Model:
        """Export a network as a drop-in."""
        return self.saved(name, export_retrained(module, self.model, self.example))

    def saved(self, name: str, graph: exporting.OnnxGraph) -> Model:
        """Save a graph as a drop-in."""
        return dropin.save_dropin(graph, self.model, self.folder / name, session=dropin.SessionOptions(), example=self.example)

    def int8(self, name: str, module: Any) -> Model:
        """Quantise a network with the first scheme for this CPU."""
        graph = export_retrained(module, self.model, self.example)
        rows = self.variant(f"{name}_float", module).prepare(self.split.calibration.rows)
        feeds = [{key: array[at : at + 64] for key, array in rows.items()} for at in range(0, 400, 64)]
        return self.saved(name, replace(graph, proto=quantised(prepared(graph.proto), schemes_for(cpu_features())[0], feeds)))

    def against(self, candidate: Model, reference: Model) -> Any:
        """Measure one beside another on the gate rows."""
        return measure.evidence(candidate, reference, self.split.gate, self.split.task, POLICY, CONDITIONS).candidate.quantities


def pruned_on(dataset: str, folder: Path, epochs: int) -> dict[str, Any]:
    """Prune the default small ResNet on a data set, with and without quantising it afterwards, and set 70% of it to zero."""
    from mlflow_opt.pruning import weight_sparsity as sparse

    name, target = SETS[dataset]
    split = data.split(data.read(str(real_data(name)) if name.endswith(".npz") else name, target))
    bench = Bench(split, folder, models.load(str(baselines.train_baseline(split, folder / "resnet", 0))), epochs)
    torch_model, module = bench.model, bench.learner.module
    plain, dense = bench.variant("plain", module), bench.variant("dense", bench.fit(module, epochs))
    smaller, fewer = bench.prune(SHARE, STEPS)
    pruned, both = bench.variant("pruned", smaller), bench.int8("both", smaller)
    zeros = bench.variant("zeros", sparse.settled(bench.fit(sparse.with_masks(module, ZEROS), epochs)))
    over_dense, over_torch = bench.against(pruned, dense), bench.against(both, torch_model)
    both_dense, zeros_dense = bench.against(both, dense), bench.against(zeros, dense)
    space = sparse.compressed_mb(zeros.path) / sparse.compressed_mb(dense.path)
    given = bench.against(plain, torch_model)
    return {
        "accuracy of the network given": (ends(given["accuracy"]), "-"),
        "the runtime's share: unpruned in ONNX Runtime over torch eager, one row": (ends(given["speedup"]), "-"),
        "the runtime's share, batch of 32": (ends(given["throughput_ratio"]), "-"),
        "pruned: fewer multiplications": ([fewer] * 3, ">= 3"),
        "pruned over dense, same runtime, one row": (ends(over_dense["speedup"]), ">= 2.5"),
        "pruned over dense, same runtime, batch of 32": (ends(over_dense["throughput_ratio"]), "-"),
        "pruned: points lost to the dense network fine-tuned as long": (_points(over_dense), "<= 1"),
        "70% zeros: points lost to dense": (_points(zeros_dense), "< 1"),
        "70% zeros over dense, same runtime, one row": (ends(zeros_dense["speedup"]), "none is expected"),
        "70% zeros: compressed size of dense": ([space] * 3, "-"),
        "pruned and int8 over torch eager, one row": (ends(over_torch["speedup"]), ">= 15"),
        "pruned and int8 over torch eager, batch of 32": (ends(over_torch["throughput_ratio"]), ">= 8"),
        "pruned and int8 over dense, same runtime, one row": (ends(both_dense["speedup"]), "-"),
        "pruned and int8: points lost to dense": (_points(both_dense), "<= 1"),
    }


def _points(found: Any) -> list[float]:
    return [100 * one for one in ends(found["drop_accuracy"])]


def main() -> None:
    """Measure and write results/prune_networks.*."""
    logging.basicConfig(level=logging.WARNING)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    started, found = time.monotonic(), {}
    for dataset in SETS:
        with tempfile.TemporaryDirectory() as name:
            found[dataset] = pruned_on(dataset, Path(name), epochs)
        # After each: what has been measured outlives an interruption.
        _write(found, epochs, (time.monotonic() - started) / 60)


def _write(found: dict[str, dict[str, Any]], epochs: int, minutes: float) -> None:
    names = list(found)
    lines = [
        f"Fine-tuned for {epochs} epochs, the dense network too; {SHARE:.0%} of the multiplications asked for; {minutes:.0f} minutes.",
        "",
        f"| what [95%] | {' | '.join(names)} | bound |",
        "|---" * (len(names) + 2) + "|",
    ]
    for what, (_, bound) in found[names[0]].items():
        lines.append(f"| {what} | {' | '.join(_shown(found[one][what][0]) for one in names)} | {bound} |")
    figures = {one: {what: values for what, (values, _) in rows.items()} for one, rows in found.items()}
    save("prune_networks", {"epochs": epochs, **figures}, lines)


def _shown(values: Sequence[float]) -> str:
    return interval(values) if values[1] != values[2] else f"{values[0]:.2f}"


if __name__ == "__main__":
    main()
