"""Train with dropout, L1, weight decay, batch normalisation, label smoothing and mixup, one by one, then with the best of them together.

Helps where a model is clearly better on its train rows than on others: few rows for many weights, noisy labels. Does not
help models that are too small to learn their train rows, or trained for too few epochs: there it slows learning down, and
the table shows it. L1 brings exact zeros, which make nothing faster here; smaller networks do (`prune`, `distill`).

What counts as better is the selection rows' quality; the gap between train and selection rows and the calibration error are
shown beside it, because a technique may improve one and harm another (label smoothing often makes confidence worse than it
was good). The combination is found greedily: techniques that helped join the best one in the order of what they brought, and
stay if quality rises again. Trees and linear models of a table get L1 and L2 in three strengths instead.

References: Srivastava et al. 2014, "Dropout"; Loshchilov, Hutter 2019, "Decoupled weight decay regularization"; Ioffe, Szegedy
2015, "Batch normalization"; Szegedy et al. 2016, "Rethinking the Inception architecture" (label smoothing); Zhang et al. 2018,
"mixup"; Guo et al. 2017, "On calibration of modern neural networks".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from mlflow_opt import metrics, session
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.reliability import calibration_error
from mlflow_opt.records import Task, Variant, Verdict
from mlflow_opt.rows.batches import as_table
from mlflow_opt.runs import candidates
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.tables import learners, penalties
from mlflow_opt.workbench import curves, retraining

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.networks.network_learners import NetworkLearner
    from mlflow_opt.networks.training import Fitted


CONTROL = "none"


@dataclass(frozen=True)
class Techniques:
    """What a training is regularised with; 0 and False are without.

    Args:
        dropout: share of values left out.
        l1: of the proximal step, see `training.TrainSettings`.
        weight_decay: of AdamW, or of L2.
        batch_norm: put after layers without normalisation, and folded away afterwards.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution.
    """

    dropout: float = 0.0
    l1: float = 0.0
    weight_decay: float = 0.0
    batch_norm: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0

    def joined(self, other: Techniques) -> Techniques:
        """Take both; where both set the same one, the other's strength."""
        return replace(self, **{one.name: value for one in fields(other) if (value := getattr(other, one.name))})


class NoPlaceError(ValueError):
    """A technique has no place in this network."""


def techniques_for(task: Task, *, mixable: bool) -> dict[str, Techniques]:
    """List single techniques in usual strengths, without those that do not fit the task or the data.

    Example:
        >>> list(techniques_for(Task("regression"), mixable=False))
        ['dropout', 'l1', 'weight_decay', 'batch_norm']
    """
    found = {
        "dropout": Techniques(dropout=0.2),
        "l1": Techniques(l1=0.02),
        "weight_decay": Techniques(weight_decay=0.1),
        "batch_norm": Techniques(batch_norm=True),
    }
    if task.classes:
        found["label_smoothing"] = Techniques(label_smoothing=0.1)
    if mixable:
        found["mixup"] = Techniques(mixup=0.2)
    return found


def best_together(
    singles: Mapping[str, Techniques], drops: Mapping[str, float], try_out: Callable[[str, Techniques], float], trials: int
) -> str:
    """Join techniques greedily, the best first, each kept only if quality rises again.

    Args:
        singles: name -> technique.
        drops: name -> headline quality lost with it alone; that of `none` is the one to beat.
        try_out: trains under a name with techniques and returns what is lost.
        trials: at most so many trainings.

    Returns:
        Name of the best: a single one, a combination (`dropout+mixup`), or `none`.
    """
    order = sorted((name for name in singles if drops[name] < drops[CONTROL]), key=lambda name: drops[name])
    if not order:
        return CONTROL
    best, least, joined = order[0], drops[order[0]], singles[order[0]]
    for name in order[1 : 1 + trials]:
        tried = joined.joined(singles[name])
        lost = try_out(f"{best}+{name}", tried)
        if lost < least:
            best, least, joined = f"{best}+{name}", lost, tried
    return best


def figures_of(task: Task, train: tuple[np.ndarray, np.ndarray], held: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Give the generalisation gap (train minus other rows, positive is overfitting) and, for classes, the calibration error.

    Args:
        task: what is predicted.
        train: labels and scores of train rows.
        held: labels and scores of rows that were not trained on.
    """
    headline = metrics.QUALITY[task.kind][0]
    seen, unseen = (scoring.score(task, labels, scores) for labels, scores in (train, held))
    sign = 1 if metrics.larger_is_better(headline) else -1
    gap = sign * (seen.values[headline] - unseen.values[headline])
    found = {f"train_{headline}": seen.values[headline], "generalisation_gap": gap}
    return found | ({"calibration_error": calibration_error(unseen.outputs, unseen.labels)} if task.classes else {})


def advise(rows: Sequence[Row], headline: str, best: str) -> list[str]:
    """Say what each technique changed against the same training without any."""
    named = {row.name: row.metrics for row in rows}
    if CONTROL not in named:
        return []
    control, found = named[CONTROL], []
    for name, values in named.items():
        if name in (CONTROL, "baseline") or "generalisation_gap" not in values:
            continue
        gap = values["generalisation_gap"] - control["generalisation_gap"]
        quality = control[f"drop_{headline}"] - values[f"drop_{headline}"]
        text = f"{name}: {headline} {quality:+.4f} and gap {gap:+.4f} against none"
        if "calibration_error" in values:
            text += f", calibration error {values['calibration_error'] - control['calibration_error']:+.4f}"
        text += f", {100 * values['zero_share']:.0f}% zeros" if values["zero_share"] > 0.005 else ""
        found.append(f"{text}; best at epoch {values['best_epoch']:.0f}.")
    said = "Nothing beat training without" if best == CONTROL else f"The best of them is {best}"
    return [f"{said}; differences below the noise of the selection rows decide nothing, which the verdict on the gate rows tells.", *found]


def regularize(
    *,
    model: str = "",
    data: str = "fashion_mnist",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    techniques: Literal["all", "dropout", "l1", "weight_decay", "batch_norm", "label_smoothing", "mixup"] = "all",
    start: Literal["fresh", "given"] = "fresh",
    epochs: int = 10,
    patience: int = 5,
    learning_rate: float = 0.0,
    trials: int = 3,
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Train a model with each regularisation technique and with the best of them together, and show what each brought.

    Helps models that are much better on their train rows than on others. Does not help models that are too small for
    their task; the gap is then near zero, and the recipe says that nothing beat training without.

    Example:
        mlflow run . -e regularize -P model=models:/digits/3 -P data=digits.npz -P epochs=30

    Args:
        model: MLflow model URI (torch, LightGBM, XGBoost, linear, or a variant that carries one); empty trains the default model.
        data: npz, table, folder, MLflow URI or a bundled name.
        target: name of the target array or column.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the best to; empty registers nothing.
        seed: every random choice derives from it.
        techniques: of networks; `all` tries each that fits, then combinations.
        start: `fresh` draws new weights; `given` goes on from the model's own.
        epochs: most passes of a network over the train rows.
        patience: epochs without a better validation loss after which training stops.
        learning_rate: the highest; 0 takes 0.002.
        trials: at most so many combinations.
        threads: threads that one prediction may use, for baseline and variants alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: the model holds nothing to train, has no such technique, or the data does not fit it.

    References:
        Srivastava et al. 2014; Loshchilov, Hutter 2019; Ioffe, Szegedy 2015; Szegedy et al. 2016; Zhang et al. 2018.
    """
    _check_positive(epochs=epochs, patience=patience)
    with session.start("regularize", locals(), aim="quality") as work:
        is_table = isinstance(work.example, pd.DataFrame)
        best = _try_penalties(work) if is_table else _try_techniques(work, techniques, trials, start)
        return work.conclude(lambda rows: advise(rows, work.headline, best))


def _try_techniques(work: session.Session, wanted: str, trials: int, start: str) -> str:
    from mlflow_opt.networks.regularisers import can_mix
    from mlflow_opt.networks.training import DivergedError

    with retraining.start(work) as course:
        every = techniques_for(work.task, mixable=can_mix(course.train.inputs))
        singles = {name: one for name, one in every.items() if wanted in ("all", name)}
        if not singles:
            raise ValueError(f"{wanted} must fit the data, {work.task.kind} on these arrays has no use for it; choose another technique.")
        work.expect(1 + len(singles) + min(trials, max(len(singles) - 1, 0)))
        module = course.learner.fresh(work.seed, course.train) if start == "fresh" else course.learner.module
        shown: dict[str, Any] = {}

        def try_out(name: str, how: Techniques) -> float:
            try:
                fitted = _train(course, module, name, how)
            except DivergedError as why:
                if name == CONTROL:
                    raise
                work.findings.append(f"{name} was left out: {why}")
                return float("inf")
            shown[name] = (fitted.history, 0)
            return course.add(name, fitted, asdict(how), _network_figures(work, course.learner, fitted.module))

        drops = {CONTROL: try_out(CONTROL, Techniques())}
        for name in list(singles):
            try:
                drops[name] = try_out(name, singles[name])
            except NoPlaceError as why:
                work.findings.append(f"{name} was left out: {why}")
                del singles[name]
        best = best_together(singles, drops, try_out, trials)
        curves.publish(work.parent.run_id, shown)
        return best


def _train(course: retraining.Course, module: nn.Module, name: str, how: Techniques) -> Fitted:
    from mlflow_opt.networks.network_learners import usual_settings
    from mlflow_opt.networks.regularisers import mixup_loss, taken_off, with_batch_norm, with_dropout

    given = course.work.params
    settings = usual_settings(len(course.train.targets), int(given["epochs"]), float(given["learning_rate"]), course.work.seed)
    settings = replace(settings, l1=how.l1, weight_decay=how.weight_decay, label_smoothing=how.label_smoothing, patience=given["patience"])
    try:
        dressed = with_dropout(module, course.train.inputs, how.dropout) if how.dropout else module
        dressed = with_batch_norm(dressed, course.train.inputs) if how.batch_norm else dressed
    except ValueError as error:
        raise NoPlaceError(str(error)) from error
    loss = mixup_loss(how.mixup, how.label_smoothing) if how.mixup else None
    fitted = course.fit(name, dressed, settings, loss)
    return fitted if dressed is module else replace(fitted, module=taken_off(fitted.module, module))


def _network_figures(work: session.Session, learner: NetworkLearner, module: nn.Module) -> dict[str, float]:
    from mlflow_opt.networks.regularisers import zero_share

    train, held = work.split.train, work.split.selection
    pairs = [(part.labels, learner.scores(module, part.rows)) for part in (train, held)]
    return figures_of(work.task, pairs[0], pairs[1]) | {"zero_share": zero_share(module)}


def _try_penalties(work: session.Session) -> str:
    learner, train, held = learners.learner_of(work.model), work.split.train, work.split.selection
    rows, others = as_table(train.rows), as_table(held.rows)
    settings = {CONTROL: dict[str, Any](), **penalties.penalties_for(learner, len(train.labels))}
    work.expect(len(settings))
    drops = {}
    for name, params in settings.items():
        fitted = learner.fit(rows, train.labels, params=params)
        drops[name] = work.add(Variant(name, work.refitted(name, fitted), {"technique": name.rsplit("_", 1)[0], **params}))
        figures = figures_of(work.task, (train.labels, fitted.scores(rows)), (held.labels, fitted.scores(others)))
        figures |= {"zero_share": penalties.zero_share(fitted), "train_seconds": fitted.seconds, "best_epoch": 1.0}
        candidates.note(work.candidates[-1], figures)
    return min(drops, key=lambda name: drops[name])


def _check_positive(**lengths: int) -> None:
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; nothing can be trained otherwise.")


if __name__ == "__main__":
    run(regularize)
