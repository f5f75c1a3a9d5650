"""Training curves where people look for them: metrics by epoch on the variant's run, one plot of all on the parent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt.runs import tracking

if TYPE_CHECKING:
    from mlflow_opt.networks.checkpoints import Epoch


def log(run_id: str, history: Sequence[Epoch]) -> None:
    """Write the epochs of a training as steps of a run's metrics."""
    tracking.log_steps(
        run_id,
        {
            "epoch_train_loss": [(epoch.number, epoch.train_loss) for epoch in history],
            "epoch_loss": [(epoch.number, epoch.loss) for epoch in history],
            "epoch_score": [(epoch.number, epoch.score) for epoch in history],
            "epoch_learning_rate": [(epoch.number, epoch.learning_rate) for epoch in history],
        },
    )


def publish(run_id: str, histories: Mapping[str, tuple[Sequence[Epoch], int]], name: str = "curves.png") -> None:
    """Draw all trainings' validation losses and learning rates into one picture on a run.

    Args:
        run_id: the parent run.
        histories: name of a training -> its epochs, and the epoch after which patience ran out (0 if it did not).
        name: of the artifact.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for title, (history, stopped) in histories.items():
        numbers = [epoch.number for epoch in history]
        (line,) = above.plot(numbers, [epoch.loss for epoch in history], label=title)
        best = min(history, key=lambda epoch: epoch.loss)
        above.plot([best.number], [best.loss], "*", color=line.get_color(), markersize=12)
        if stopped:
            above.axvline(stopped, color=line.get_color(), linestyle=":", linewidth=1)
        below.plot(numbers, [epoch.learning_rate for epoch in history], color=line.get_color())
    above.set_ylabel("validation loss (star: best, dotted: stopped)")
    above.legend()
    below.set_ylabel("learning rate")
    below.set_xlabel("epoch")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        figure.savefig(path, dpi=110)
        tracking.log_file(run_id, path)
