"""Real tables and the ensemble of seven trained on each: what the benchmarks of `prune_ensemble` and `distill` work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_data import real_data
from mlflow_opt import data, models
from mlflow_opt.ensembles import voting
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.models import Model
from mlflow_opt.records import Quantity
from mlflow_opt.runs.workshop import Workshop
from mlflow_opt.tables import held_out

# Half hours.
_WEEK, _AHEAD = 336, 24


class Scene(Workshop):
    """A table with its ensemble, outside of any run."""

    def __init__(self, split: data.Split, folder: Path, seed: int = 0) -> None:
        super().__init__(split, folder, 1, "")
        self._given = models.load(str(voting.train_voting(split, folder / "ensemble", seed)), 1)

    @property
    def model(self) -> Model:
        """Return the ensemble."""
        return self._given

    def gate(self, model: Model) -> Scored:
        """Score a model on the gate rows."""
        return score(self.task, self.split.gate.labels, model.predict(self.split.gate.rows))

    def lost(self, model: Model, reference: Scored) -> Quantity:
        """Give how much of the headline metric a model loses on the gate rows, with its interval."""
        return compare_quality(self.gate(model), reference)[f"drop_{self.headline}"]


@dataclass(frozen=True)
class Table:
    """A real table: its name and what writes it into a folder."""

    name: str
    write: Callable[[Path], str]


def scene(table: Table, folder: Path) -> Scene:
    """Split a table and train its ensemble."""
    split = data.split(data.read(table.write(folder)))
    held_out.as_table(split.train.rows)
    return Scene(split, folder)


def _shared(name: str) -> Callable[[Path], str]:
    return lambda _: str(real_data(name))


def _reviews(folder: Path) -> str:
    # Words are no columns of a table; how long the text is, is one.
    table = pd.read_parquet(real_data("reviews.parquet"))
    table = table.assign(characters=table["text"].fillna("").str.len(), exclaims=table["text"].fillna("").str.count("!"))
    path = folder / "reviews.parquet"
    table.drop(columns=["text", "rating"]).to_parquet(path)
    return str(path)


def _digits(folder: Path) -> str:
    from sklearn.datasets import load_digits

    path = folder / "digits.parquet"
    load_digits(as_frame=True).frame.to_parquet(path)
    return str(path)


def _sea(folder: Path) -> str:
    # The change of the sea's temperature half a day ahead; every fifth week is the test, and no row reaches into another part.
    table = pd.read_parquet(real_data("sea_temp.parquet"))
    values, at = table["target"], np.arange(len(table))
    lags = {f"back_{steps}": values.shift(steps) - values for steps in (1, 2, 4, 8, 12, 24, 36, 48, 72, 96)}
    hours = pd.DatetimeIndex(table["time"]).hour.to_numpy(dtype=float)
    made = pd.DataFrame({**lags, "now": values, "hour": hours, "target": values.shift(-_AHEAD) - values})
    made["split"] = np.where(at // _WEEK % 5 == 4, "test", "train")
    whole = (at // _WEEK == (at - 96) // _WEEK) & (at // _WEEK == (at + _AHEAD) // _WEEK)
    path = folder / "sea.parquet"
    made[whole].dropna().to_parquet(path)
    return str(path)


TABLES = (
    Table("telco_churn", lambda _: "telco_churn"),
    Table("adult", _shared("adult.parquet")),
    Table("california", _shared("california.parquet")),
    Table("reviews", _reviews),
    Table("sea_temperature", _sea),
    Table("digits", _digits),
)
