"""Unstructured pruning within a session: a sweep of sparsities without training, and the variants that are trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from mlflow_opt.records import Param
from mlflow_opt.runs import tracking
from mlflow_opt.workbench.pruning_variants import Trainer, known_of

if TYPE_CHECKING:
    from mlflow_opt.pruning import weight_sparsity as sparse

# Strong enough to move the weights of a trained network in a few epochs.
_L1 = 0.05
_SWEPT = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
# Of the gradual schedule's steps; after them the network recovers at its final sparsity.
_GROWING = 2 / 3


def add_unstructured(trainer: Trainer) -> None:
    """Add variants with single weights at zero: chosen over the whole network, in each layer, by L1, and gradually.

    Args:
        trainer: of the variants.
    """
    from mlflow_opt.pruning import weight_sparsity as sparse

    if trainer.wish.method == "all":
        _add_by_magnitude(trainer, max(trainer.wish.rates), "global")
        return
    tracking.log_text(trainer.course.work.parent.run_id, "sparsity.md", _sweep(trainer))
    scopes: tuple[sparse.Scope, ...] = get_args(sparse.Scope)
    for rate in trainer.wish.rates:
        for scope in scopes:
            _add_by_magnitude(trainer, rate, scope)
    _add_by_l1(trainer, max(trainer.wish.rates))
    _add_gradual(trainer, max(trainer.wish.rates))


def _add_by_magnitude(trainer: Trainer, rate: float, scope: sparse.Scope) -> None:
    from mlflow_opt.pruning import weight_sparsity as sparse

    name = f"zeros_{scope}_{round(100 * rate)}"
    fitted = trainer.fit(name, sparse.with_masks(trainer.module, rate, scope), trainer.wish.epochs)
    trainer.add_trained(name, sparse.settled(fitted.module), _told(rate, scope), known_of(fitted))


def _sweep(trainer: Trainer) -> str:
    from mlflow_opt.networks.losses import evaluate
    from mlflow_opt.pruning import weight_sparsity as sparse

    lines = ["Without fine-tuning, on calibration rows.", "", "| zeros | chosen from | loss | score |", "|---|---|---|---|"]
    scopes: tuple[sparse.Scope, ...] = get_args(sparse.Scope)
    for rate in sorted({*_SWEPT, *trainer.wish.rates}):
        for scope in scopes:
            made = sparse.settled(sparse.with_masks(trainer.module, rate, scope))
            loss, score = evaluate(trainer.course.learner.judged(made), trainer.course.validation)
            lines.append(f"| {rate:.0%} | {scope} | {loss:.4f} | {score:.4f} |")
    return "\n".join(lines)


def _add_by_l1(trainer: Trainer, rate: float) -> None:
    from mlflow_opt.pruning import weight_sparsity as sparse

    name, first = f"zeros_l1_{round(100 * rate)}", max(1, trainer.wish.epochs // 2)
    drawn = trainer.course.fit(f"{name}_drawn", trainer.module, replace(trainer.settings(first), l1=_L1), trainer.loss)
    fitted = trainer.fit(name, sparse.with_masks(drawn.module, rate), max(1, trainer.wish.epochs - first))
    trainer.add_trained(name, sparse.settled(fitted.module), _told(rate, "l1"), known_of(fitted, first))


def _add_gradual(trainer: Trainer, rate: float) -> None:
    from mlflow_opt.pruning import weight_sparsity as sparse

    # The best epoch by its loss would be one with few zeros.
    name, how = f"zeros_gradual_{round(100 * rate)}", replace(trainer.settings(trainer.wish.epochs), monitor="last")
    steps = trainer.wish.epochs * -(-len(trainer.course.train.targets) // how.batch_size)
    loss = sparse.gradual_loss(trainer.loss, rate, max(1, round(_GROWING * steps)))
    fitted = trainer.course.fit(name, sparse.countable(trainer.module), how, loss)
    grown = sparse.uncounted(sparse.settled(fitted.module))
    trainer.add_trained(name, grown, _told(rate, "gradual"), known_of(fitted))


def _told(rate: float, how: str) -> dict[str, Param]:
    return {"method": "unstructured", "zeros": rate, "how": how}
