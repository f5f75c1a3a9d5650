"""What one trial of an architecture search does: build, time, inherit weights, train a little, stop if others are better.

A trial is timed first, in ONNX Runtime and in turns with the model to beat, because a latency needs no training. Then it is
trained in rungs of growing length. After each it is compared with all trials that have been there: only the better half by
Pareto rank goes on. A trial that is stopped counts with the score it had, which is a lower bound of what it could have
had, so that the search learns from every trial.

References: Schmucker et al. 2021, "Multi-objective asynchronous successive halving" (ranks by non-dominated sorting);
Li et al. 2018, "Hyperband"; Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II" (crowding).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlflow_opt.architectures.inheritance import inherit, shared
from mlflow_opt.architectures.network_space import Facts, build
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import stopwatch
from mlflow_opt.networks.losses import Arrays, Loss, augmented, evaluate, plain_loss, shift_pictures
from mlflow_opt.networks.network_learners import Form, Judged
from mlflow_opt.networks.training import DivergedError, TrainSettings, fit
from mlflow_opt.search import file_locks, searching
from mlflow_opt.search.searching import Ticket

if TYPE_CHECKING:
    from optuna.trial import Trial

# On a trial: its relative latency, then its score after each rung. Of a trial: whether it reached the last one.
RUNGS, WHOLE = "mlflow_opt.rungs", "whole"
# After a rung one trial in so many goes on.
ETA = 2
_SESSIONS, _CALLS = 2, 60
_TRACED = 3
# A proxy's learning rate: short trainings from inherited weights bear no long warm-up.
_PROXY_RATE = 2e-3

Point = tuple[float, float]


@dataclass(frozen=True)
class Scoring:
    """Evaluates trials of a search over networks; it travels to the workers once.

    Args:
        facts: of the data.
        space: the user's own, `path.py:function`, or `""`.
        train: rows that trials learn from.
        validation: train rows that they do not see, on which they are scored.
        form: what the networks answer.
        rungs: epochs in all after which a trial is looked at; the last is the length of a whole trial.
        reference: folder or file of the model to beat, in the runtime.
        timed: some rows to answer, as the data has them.
        folder: where trained weights are kept for those to come.
        seed: of weights and order of rows.
        threads: of one prediction.
    """

    facts: Facts
    space: str
    train: Arrays
    validation: Arrays
    form: Form
    rungs: tuple[int, ...]
    reference: Path
    timed: Mapping[str, Any]
    folder: Path
    seed: int = 0
    threads: int = 1

    def __call__(self, trial: Trial, ticket: Ticket) -> tuple[float, ...]:
        """Score one trial: accuracy or R2 on the validation rows, latency as a share of the reference's.

        Raises:
            OutOfTime: the search's time is over before the first rung.
            ValueError: the space's network cannot be built, exported or trained.
        """
        module = build(trial, self.facts, self.space, self.seed)
        timed = self.time(module)
        ticket.check()
        module, share = self._inherited(module)
        measured = {**timed, "parameters": float(sum(one.numel() for one in module.parameters())), "inherited": share}
        scores: list[float] = []
        for rung, epochs in enumerate(self.rungs):
            if scores and _late(ticket):
                break
            module = self._trained(module, epochs - (self.rungs[rung - 1] if rung else 0), trial.number)
            scores.append(evaluate(self._judged(module), self.validation)[1])
            trial.set_user_attr(RUNGS, [timed["relative_latency"], *scores])
            if rung + 1 < len(self.rungs) and not survives(_others(trial, rung), (scores[-1], timed["relative_latency"])):
                break
        torch.save(module.state_dict(), self.folder / f"{trial.number}.pt")
        known = {"score": scores[-1], "epochs": float(self.rungs[len(scores) - 1]), WHOLE: float(len(scores) == len(self.rungs))}
        searching.keep(trial, {**measured, **known})
        return scores[-1], timed["relative_latency"]

    def time(self, module: nn.Module) -> dict[str, float]:
        """Time an untrained network in the runtime: milliseconds for one row, and its share of the reference's.

        Raises:
            ValueError: it has no ONNX form.
        """
        with tempfile.TemporaryDirectory(prefix="mlflow-opt-nas-") as name:
            path = Path(name) / "model.onnx"
            arrays = {key or "x": array[:_TRACED] for key, array in self.train.inputs.items()}
            path.write_bytes(export_module(module.eval(), arrays).SerializeToString())
            pair: list[stopwatch.Located | stopwatch.Entry] = [stopwatch.Entry(str(path)), stopwatch.Entry(str(self.reference))]
            with file_locks.timing(file_locks.machine_folder()):
                found = stopwatch.time_models(pair, dict(self.timed), sessions=_SESSIONS, threads=self.threads, calls=_CALLS)
        return {"latency_p50_ms": found.latency(0).value, "relative_latency": 1 / found.speedup(0, 1).value}

    def _inherited(self, module: nn.Module) -> tuple[nn.Module, float]:
        """Fill a network from the trained one that has most in common with it; of equals, the last."""
        shapes = {name: tuple(one.shape) for name, one in module.state_dict().items()}
        best: tuple[float, Mapping[str, Tensor]] = (0.0, {})
        for path in sorted(self.folder.glob("*.pt"), key=lambda one: int(one.stem)):
            donor = torch.load(path, weights_only=True)
            common = shared(shapes, {name: tuple(one.shape) for name, one in donor.items()})
            best = max(best, (common, donor), key=lambda one: one[0])
        return inherit(module, best[1]) if best[1] else (module, 0.0)

    def _trained(self, module: nn.Module, epochs: int, number: int) -> nn.Module:
        settings = replace(proxy_settings(len(self.train.targets), epochs), seed=self.seed * 1_000_003 + number)
        try:
            with file_locks.working(file_locks.machine_folder()):
                fitted = fit(self._judged(oriented(module, train=True)), self.train, self.validation, settings, loss_of(self.facts))
        except (RuntimeError, IndexError, DivergedError) as error:
            raise ValueError(f"a network of the space must be trainable on the data: {error}") from error
        trained: nn.Module = fitted.module.network  # type: ignore[assignment]
        return oriented(trained, train=False)

    def _judged(self, module: nn.Module) -> nn.Module:
        return Judged(module, self.form, self.facts.scale_of_target)


def oriented(module: nn.Module, *, train: bool) -> nn.Module:
    """Order a network's weights for training, in which convolutions with channels last are up to a third faster, or as usual."""
    order = torch.channels_last if train else torch.contiguous_format
    # torch's own stub forgets the argument.
    made: nn.Module = module.to(memory_format=order)  # type: ignore[call-overload]
    return made


def proxy_settings(rows: int, epochs: int) -> TrainSettings:
    """Give the settings of the short trainings that stand for long ones: the last epoch counts, not the luckiest."""
    batch = max(16, min(64, rows // 30))
    return TrainSettings(epochs, batch, _PROXY_RATE, "cosine", weight_decay=0.01, clip_norm=1.0, monitor="last")


def full_settings(rows: int, epochs: int, seed: int) -> TrainSettings:
    """Give the settings with which what was found is trained in full, and what it is compared with."""
    batch = max(16, min(64, rows // 30))
    return TrainSettings(epochs, batch, 4e-3, "one_cycle", weight_decay=0.02, clip_norm=1.0, label_smoothing=0.1, monitor="loss", seed=seed)


def loss_of(facts: Facts) -> Loss:
    """Give the loss that networks of a space are trained with: pictures are moved about by two pixels."""
    plain = plain_loss(0.0 if facts.target["outputs"] == 1 else 0.1)
    return augmented(plain, shift_pictures) if facts.kind == "picture" else plain


def rungs_of(epochs: int) -> tuple[int, ...]:
    """List the epochs after which a trial is looked at, each twice the one before.

    Example:
        >>> rungs_of(4), rungs_of(1)
        ((1, 2, 4), (1,))
    """
    found = [epochs]
    while found[0] > 1 and len(found) < 3:
        found.insert(0, max(1, found[0] // 2))
    return tuple(found)


def survives(others: Sequence[Point], mine: Point) -> bool:
    """Tell whether a trial is in the better half of those that reached this rung, by Pareto rank, then by how alone it is.

    Example:
        >>> survives([(0.9, 1.0), (0.8, 0.5)], (0.7, 2.0)), survives([(0.9, 1.0), (0.8, 0.5)], (0.95, 0.4))
        (False, True)

    Args:
        others: (score, latency) of the others; larger scores and smaller latencies are better.
        mine: of the trial.
    """
    everyone = [*others, mine]
    return _best_first(everyone).index(len(others)) < math.ceil(len(everyone) / ETA)


def hypervolume(points: Sequence[Point], worst: Point) -> float:
    """Measure the area that a front dominates, in score times the logarithm of latency.

    Example:
        >>> round(hypervolume([(0.9, 1.0), (0.5, 0.5)], (0.0, 2.0)), 3)
        0.97

    Args:
        points: (score, latency).
        worst: corner that all points are compared with; what is worse than it counts nothing.
    """
    area, floor = 0.0, worst[0]
    # From the fastest on, a slower one adds only what it scores more.
    for score, latency in sorted((one for one in points if one[0] > worst[0] and one[1] < worst[1]), key=lambda one: one[1]):
        if score > floor:
            area += (score - floor) * math.log(worst[1] / latency)
            floor = score
    return area


def _best_first(points: Sequence[Point]) -> list[int]:
    """Rank points by non-dominated sorting, within a front the lonelier first."""
    left, ranked = list(range(len(points))), list[int]()
    while left:
        front = [one for one in left if not any(_dominates(points[other], points[one]) for other in left)]
        crowding = _crowding(points, front)
        ranked += sorted(front, key=lambda one: (-crowding[one], one))
        left = [one for one in left if one not in front]
    return ranked


def _dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def _crowding(points: Sequence[Point], front: Sequence[int]) -> dict[int, float]:
    """Give how far the neighbours of each point of a front are; the ends have none on one side and always stay."""
    found = dict.fromkeys(front, 0.0)
    for axis in (0, 1):
        ordered = sorted(front, key=lambda one: points[one][axis])
        extent = points[ordered[-1]][axis] - points[ordered[0]][axis] or 1.0
        found[ordered[0]] = found[ordered[-1]] = math.inf
        for before, here, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            found[here] += (points[after][axis] - points[before][axis]) / extent
    return found


def _others(trial: Trial, rung: int) -> list[Point]:
    found = []
    for other in trial.study.get_trials(deepcopy=False):
        seen = other.user_attrs.get(RUNGS, [])
        if other.number != trial.number and other.state.is_finished() and len(seen) > rung + 1:
            found.append((float(seen[rung + 1]), float(seen[0])))
    return found


def _late(ticket: Ticket) -> bool:
    try:
        ticket.check()
    except searching.OutOfTime:
        return True
    return False
