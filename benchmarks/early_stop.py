"""What early stopping saves and costs: a CNN on Fashion-MNIST, an LSTM on sea temperature half a day ahead, LightGBM on churn and houses.

Run with `python -m benchmarks.early_stop`. Each schedule is trained to its end and stopped by patience; both keep their best
epoch by the calibration rows, and are compared on the gate rows, paired. Bounds: at least 30% of the epochs saved, the upper
end of what is lost within half a point (accuracy, ROC-AUC, or R2 on the scale of 0 to 1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.real_data import real_data, sea_temperature
from benchmarks.results_file import interval, save
from mlflow_opt import data, metrics
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.scoring import score
from mlflow_opt.networks.losses import Arrays, scores_of
from mlflow_opt.networks.networks import ResNet
from mlflow_opt.networks.training import Schedule, TrainSettings, fit
from mlflow_opt.records import Quantity
from mlflow_opt.rows.batches import as_table
from mlflow_opt.tables.learners import Learner
from recipes.early_stop import rounds_of, wanted_schedules

CNN_EPOCHS, CNN_PATIENCE = 24, 5
LSTM_EPOCHS, LSTM_PATIENCE = 60, 6
# A lower rate needs more rounds for the same distance.
RATES, ROUNDS_PATIENCE = {0.1: 1000, 0.03: 3000}, 50
LEAST_GAIN = 0.002


@dataclass(frozen=True)
class Line:
    """One training, stopped and not."""

    what: str
    schedule: str
    epochs_saved: float
    seconds_saved: float
    best_share: float
    quality: str
    full: float
    lost: Quantity

    def cells(self) -> list[str]:
        """Write the line of the table; what is lost is in points."""
        points = (100 * self.lost.value, 100 * self.lost.lo, 100 * self.lost.hi)
        met = "yes" if self.epochs_saved >= 0.3 and self.lost.hi <= 0.005 else "no"
        shares = [f"{100 * value:.0f}%" for value in (self.epochs_saved, self.seconds_saved, self.best_share)]
        return [self.what, self.schedule, *shares, f"{self.quality} {self.full:.4f}", interval(points), met]


class Lstm(nn.Module):
    """An LSTM whose last state is read out."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.memory = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        """Answer (n, 1)."""
        states, _ = self.memory(series)
        scores: Tensor = self.head(states[:, -1])
        return scores


def main() -> None:
    """Measure and write results/early_stop.*."""
    # One thread: the machine of these figures is shared.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = [*_trees(), *_lstm(Path(folder)), *_cnn()]
    head = ["model", "schedule", "epochs saved", "seconds saved", "best at", "full", "points lost [95%]", "bound met"]
    table = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *(line.cells() for line in lines))]
    figures = {
        f"{line.what}, {line.schedule}": {**vars(line), "lost": [line.lost.value, line.lost.lo, line.lost.hi, line.lost.n]}
        for line in lines
    }
    save("early_stop", figures, table)


def _cnn() -> Iterator[Line]:
    split = data.split(data.read("fashion_mnist"))
    torch.manual_seed(0)
    settings = TrainSettings(epochs=CNN_EPOCHS, batch_size=128, learning_rate=3e-3, weight_decay=0.01, clip_norm=1.0)
    yield from _network("CNN, Fashion-MNIST", ResNet(1, 10, "hw", width=8), split, settings, CNN_PATIENCE)


def _lstm(folder: Path) -> Iterator[Line]:
    split = sea_temperature(folder)
    torch.manual_seed(0)
    settings = TrainSettings(epochs=LSTM_EPOCHS, batch_size=64, learning_rate=1e-2, weight_decay=0.01, clip_norm=1.0)
    yield from _network("LSTM, sea temperature", Lstm(), split, settings, LSTM_PATIENCE)


def _network(what: str, module: nn.Module, split: data.Split, settings: TrainSettings, patience: int) -> Iterator[Line]:
    train, valid, gate = (_arrays(split, part) for part in (split.train, split.calibration, split.gate))
    schedules: tuple[Schedule, ...] = wanted_schedules("all")
    for schedule in schedules:
        with tempfile.TemporaryDirectory() as folder:
            how = replace(settings, schedule=schedule, checkpoint=f"{folder}/{schedule}.ckpt")
            stopped, full = (
                fit(module, train, valid, replace(how, patience=patience, least_gain=LEAST_GAIN)),
                fit(module, train, valid, how),
            )
        saved = 1 - len(stopped.history) / settings.epochs, 1 - stopped.seconds / full.seconds
        ours, theirs = (scores_of(one.module, gate.inputs).numpy() for one in (stopped, full))
        yield _line(what, schedule, (*saved, stopped.best / settings.epochs), split, (ours, theirs))
        print(what, schedule, saved, flush=True)


def _trees() -> Iterator[Line]:
    from lightgbm import LGBMClassifier, LGBMRegressor

    for name, kind in (("telco_churn", LGBMClassifier), ("california.parquet", LGBMRegressor)):
        split = data.split(data.read(str(real_data(name)) if "." in name else name))
        rows = as_table(split.train.rows)
        texts = [column for column in rows if rows[column].dtype.kind not in "fiub"]
        categories = {str(column): tuple(sorted(rows[column].dropna().unique())) for column in texts}
        template = kind(n_jobs=1, verbose=-1, random_state=0)
        learner = Learner(template, tuple(map(str, rows.columns)), categories)
        for rate, rounds in RATES.items():
            params = {"n_estimators": rounds, "learning_rate": rate}
            valid = (as_table(split.calibration.rows), split.calibration.labels)
            full = learner.fit(rows, split.train.labels, params=params)
            stopped = learner.fit(rows, split.train.labels, params=params, valid=valid, patience=ROUNDS_PATIENCE)
            best = rounds_of(stopped)[1]
            saved = 1 - min(rounds, best + ROUNDS_PATIENCE) / rounds, 1 - stopped.seconds / full.seconds
            answers = stopped.scores(as_table(split.gate.rows)), full.scores(as_table(split.gate.rows))
            yield _line(f"LightGBM, {name.split('.')[0]}", f"rate {rate}, {rounds} rounds", (*saved, best / rounds), split, answers)


def _line(what: str, schedule: str, shares: tuple[float, float, float], split: data.Split, answers: tuple[np.ndarray, np.ndarray]) -> Line:
    ours, theirs = (score(split.task, split.gate.labels, one) for one in answers)
    quality = metrics.QUALITY[split.task.kind][0]
    lost = compare_quality(ours, theirs)[f"drop_{quality}"]
    return Line(what, schedule, *shares, quality, theirs.values[quality], lost)


def _arrays(split: data.Split, part: data.Part) -> Arrays:
    assert isinstance(part.rows, dict)
    if split.task.classes:
        return Arrays(part.rows, np.searchsorted(np.array(split.task.classes), part.labels))
    return Arrays(part.rows, part.labels.astype(np.float32))


if __name__ == "__main__":
    main()
