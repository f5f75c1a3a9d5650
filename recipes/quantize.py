"""Quantise a network to 8-bit integers with the scheme that this CPU computes well and the data allows, training it so if need be.

Helps when the network spends its time in convolutions or matrix products and the CPU has integer dot products (AVX-512
VNNI, AVX-VNNI): there U8S8 runs 2-3x faster than float in the same runtime. With AVX2 alone the gain is smaller and
full-range U8S8 saturates its 16-bit sums, so that `reduce_range` (7-bit weights) is tried first. Does not help trees and
linear models, networks that are bound by memory traffic or by the cost of the call itself, and CPUs where int8 is
emulated; then the recipe says so with the figures and keeps float. Smaller is not faster: weight-only int8 is a quarter of
the size and no faster, and is tried to show it.

Where quality is lost, three ways back are tried, the cheap ones first: biases that make up for the mean error of each operator;
the most sensitive operators in float (their sensitivity is the output error when only that operator is quantised, the smallest
number of them is found by bisection, and what need not stay is taken back one by one); and training with rounding, taught by
the float network, which needs the torch network and is left out, with a word, where quantising after training was enough. A
regression's errors are looked at for a shift to one side, which r2 would hide.

References: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; Nagel et al. 2021, "A white paper on neural network quantization"; Wu et al. 2020, "Integer quantization for
deep learning inference: principles and empirical evaluation" (calibration methods, partial quantisation by sensitivity);
Esser et al. 2020, "Learned step size quantization"; Mishra, Marr 2018, "Apprentice: using knowledge distillation techniques to
improve low-precision network accuracy".
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mlflow_opt import session
from mlflow_opt.export import exporting
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.measurement.fingerprint import cpu_features
from mlflow_opt.precision import regression_shift
from mlflow_opt.precision.quantisation import Feeds, Scheme, batches_of, prepared, quantised, schemes_for
from mlflow_opt.precision.quantisation_loss import bias_corrected, fewest_in_float, least_in_float, sensitivities
from mlflow_opt.records import Param, Variant, Verdict
from mlflow_opt.runs import candidates, choosing, tracking
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.workbench import retraining

# A loss of quality that quantising after training is not blamed for: a third of a point.
SUFFICES = 0.003
_TAKEN_BACK = 6
_RATE = 1e-3
# The float network teaches its rounded copy: labels alone would pull it to other weights, and few rows to worse ones.
_TEMPERATURE, _MIX = 2.0, 0.3


@dataclass(frozen=True)
class Bench:
    """What every variant of one network is made from: the session, the exported graph, its prepared form, calibration batches."""

    work: session.Session
    graph: OnnxGraph
    proto: Any
    feeds: Sequence[Feeds]
    answers: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, proto: Any, params: dict[str, Param]) -> float:
        """Add a quantised graph as a variant and return its drop of the headline metric."""
        made = self.work.dropin(name, replace(self.graph, proto=proto))
        drop = self.work.add(Variant(name, made, params))
        if self.work.task.kind == "regression":
            self._compare(name, made)
        return drop

    def drop(self, name: str, proto: Any) -> float:
        """Score a quantised graph that is no variant yet."""
        return self.work.drop(self.work.dropin(name, replace(self.graph, proto=proto)))

    def _compare(self, name: str, made: Any) -> None:
        part = self.work.split.selection
        self.answers[name] = np.asarray(made.predict(part.rows), dtype=float)
        found = regression_shift.shift_of(np.asarray(part.labels, float), self.answers["fp32"], self.answers[name])
        candidates.note(self.work.candidates[-1], found.figures())
        if name != "fp32":
            self.work.findings.append(found.told(name))


class CannotTrainError(ValueError):
    """There is no network to train, or none that can be trained with rounding."""


def advise(rows: Sequence[Row], headline: str, features: frozenset[str]) -> list[str]:
    """Say what the figures mean: the runtime's share, the quantisation's share, and whether int8 pays on this CPU."""
    timed = {row.name: row for row in rows if "latency_p50_ms" in row.metrics}
    if "fp32" not in timed or "baseline" not in timed:
        return []
    integer = [row for row in timed.values() if row.name not in ("fp32", "baseline")]
    if not integer:
        return []
    float_ms, base_ms = (timed[name].metrics["latency_p50_ms"] for name in ("fp32", "baseline"))
    fastest = min(integer, key=lambda row: row.metrics["latency_p50_ms"])
    gain = float_ms / fastest.metrics["latency_p50_ms"]
    lost = fastest.metrics.get(f"drop_{headline}", float("nan"))
    found = [
        (
            f"The runtime alone gives {base_ms / float_ms:.2f}x over the baseline. The fastest scheme, {fastest.name}, gives {gain:.2f}x "
            f"over float in the same runtime and loses {lost:+.4f} {headline} on the selection rows."
        )
    ]
    vnni = "with" if any("vnni" in feature for feature in features) else "without"
    if gain < 1.05:
        found.append(f"int8 does not pay for this network on this CPU ({vnni} VNNI): keep float in ONNX Runtime, or shrink the network.")
    slower = [row for row in integer if row.metrics["latency_p50_ms"] > float_ms]
    smaller = [row.name for row in slower if row.metrics["size_mb"] < 0.6 * timed["fp32"].metrics["size_mb"]]
    if smaller:
        found.append(f"Smaller but slower than float here: {', '.join(smaller)}.")
    return found


def quantize(
    *,
    model: str = "",
    data: str = "fashion_mnist",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    schemes: Literal["auto", "all"] = "auto",
    fallback: bool = True,
    calibration_rows: int = 512,
    qat: Literal["auto", "always", "never"] = "auto",
    qat_epochs: int = 3,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Quantise a network to 8-bit integers, after training or by training on, with the scheme that measures best on this CPU.

    Helps networks that spend their time in convolutions or matrix products, most on CPUs with VNNI. Does not help trees,
    linear models or tiny networks; the recipe says so with the figures and registers nothing.

    Example:
        mlflow run . -e quantize -P model=models:/digits/3 -P data=holdout.npz -P register_as=digits

    Args:
        model: MLflow model URI of a network (torch or ONNX); empty trains the default network on the data.
        data: npz, folder, MLflow URI or a bundled name.
        target: name of the target array or column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        schemes: `auto` tries what this CPU computes well, `all` also what is known to be slow here.
        fallback: keep the most sensitive operators in float where every scheme loses too much.
        calibration_rows: most rows used to find the ranges of activations.
        qat: train on with rounding: `auto` where quantising after training lost more than 0.003 of the headline metric.
        qat_epochs: passes over the train rows for it.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model has no operator that can be quantised, or the data does not fit it.

    References:
        Jacob et al. 2018; Nagel et al. 2021; Wu et al. 2020; Esser et al. 2020.
    """
    _check_positive(calibration_rows=calibration_rows, qat_epochs=qat_epochs)
    with session.start("quantize", locals()) as work:
        graph = exporting.to_onnx(work.model, work.example, work.task)
        float_proto = prepared(graph.proto)
        wanted = schemes_for(cpu_features(), every=schemes == "all")
        work.expect(len(wanted) + 2)
        feeds = batches_of(work.dropin("fp32", graph).prepare(work.calibration(calibration_rows)))
        bench = Bench(work, graph, float_proto, feeds)
        bench.add("fp32", graph.proto, {"placement": "none"})
        drops = {scheme.name: bench.add(scheme.name, quantised(float_proto, scheme, feeds), asdict(scheme)) for scheme in wanted}
        lost = drops[wanted[0].name]
        if lost > 0 or work.task.kind == "regression":
            _correct(bench, wanted[0])
        bound = choosing.quality_bound(work.policy, work.headline)
        if fallback and lost > bound:
            _mix(bench, wanted[0], bound)
        if qat == "always" or (qat == "auto" and lost > SUFFICES):
            _train(bench, wanted[0], qat_epochs, lost)
        elif qat == "auto":
            work.findings.append(
                f"Quantising after training sufficed: {wanted[0].name} lost {lost:+.4f} {work.headline}, so nothing was trained."
            )
        _plot(bench)
        return work.conclude(lambda rows: advise(rows, work.headline, cpu_features()))


def _check_positive(**lengths: int) -> None:
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; qat=never trains nothing, and 512 calibration rows are usual.")


def _correct(bench: Bench, scheme: Scheme) -> None:
    """Add the scheme with corrected biases."""
    made = bias_corrected(bench.proto, quantised(bench.proto, scheme, bench.feeds), bench.feeds)
    bench.add(f"{scheme.name}_corrected", made, {**asdict(scheme), "bias_corrected": True})


def _mix(bench: Bench, scheme: Scheme, bound: float) -> None:
    """Add the scheme with the fewest operators in float that keep the quality."""
    mixed = replace(scheme, name="mixed")
    scores = sensitivities(bench.proto, mixed, bench.feeds)
    ranked = sorted(scores, key=lambda name: -scores[name])

    def drop(names: Sequence[str]) -> float:
        return bench.drop("mixed", quantised(bench.proto, mixed, bench.feeds, keep=names))

    keep = fewest_in_float(ranked, drop, bound)
    if len(keep) < len(ranked):
        keep = least_in_float(keep, drop, bound, trials=_TAKEN_BACK)
    listed = "\n".join(f"{scores[name]:.6f} {'float' if name in keep else 'int8'} {name}" for name in ranked)
    tracking.log_text(bench.work.parent.run_id, "sensitivities.txt", listed)
    made = quantised(bench.proto, mixed, bench.feeds, keep=keep)
    bench.add("mixed", made, {**asdict(mixed), "kept_in_float": len(keep)})


def _train(bench: Bench, scheme: Scheme, epochs: int, lost: float) -> None:
    """Add the scheme after training with rounding, and say what that recovered."""
    work = bench.work
    try:
        made = _trained(bench, scheme, epochs)
    except CannotTrainError as why:
        work.findings.append(f"Quantising after training lost {lost:+.4f} {work.headline}; training with rounding was left out: {why}")
        return
    left = bench.add("qat", made, {**asdict(scheme), "qat_epochs": epochs})
    share = f", {100 * (lost - left) / lost:.0f}% of the loss recovered" if lost > SUFFICES else ""
    work.findings.append(f"Training with rounding loses {left:+.4f} {work.headline}, after training it was {lost:+.4f}{share}.")


def _trained(bench: Bench, scheme: Scheme, epochs: int) -> Any:
    from mlflow_opt.export.from_torch import export_retrained
    from mlflow_opt.networks.losses import scores_of
    from mlflow_opt.networks.network_distillation import lesson_of, soft_loss
    from mlflow_opt.networks.network_learners import network_of, usual_settings
    from mlflow_opt.precision import fake_quantisation

    work = bench.work
    try:
        network_of(work.model)
        with retraining.start(work) as course:
            plain = fake_quantisation.folded(course.learner.module, course.validation.inputs)
            rounded = fake_quantisation.rounded(plain, course.validation.inputs, scheme)
            settings = replace(usual_settings(len(course.train.targets), epochs, _RATE, work.seed), weight_decay=0.0)
            teacher = course.learner.judged(plain)
            lesson = lesson_of(course.train, lambda inputs: scores_of(teacher, inputs).numpy(), {})
            fitted = course.fit("qat", rounded, settings, soft_loss(lesson, _TEMPERATURE, _MIX))
    except ValueError as error:
        raise CannotTrainError(str(error)) from error
    module, learnt = fake_quantisation.taken_apart(fitted.module, plain)
    proto = prepared(export_retrained(module, work.model, work.example).proto)
    return quantised(proto, scheme, bench.feeds, grids=fake_quantisation.grids_of(proto, learnt))


def _plot(bench: Bench) -> None:
    """Show a regression's errors before and after, where there are any."""
    shown = {name: answers for name, answers in bench.answers.items() if name not in ("fp32", "dynamic", "weights_only")}
    if not shown:
        return
    labels = np.asarray(bench.work.split.selection.labels, float)
    path = regression_shift.plot(labels, bench.answers["fp32"], shown)
    tracking.log_file(bench.work.parent.run_id, path)
    shutil.rmtree(path.parent)


if __name__ == "__main__":
    run(quantize)
