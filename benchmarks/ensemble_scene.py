"""Real tables and the ensemble of seven trained on each: what the benchmarks of `prune_ensemble` and `distill` work on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_data import real_data
from mlflow_opt import data, measure, models
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

    def gain_of_runtime(self, whole: Model) -> Quantity:
        """Time the ensemble as one ONNX graph over the ensemble as it was given: what no choice of members or student brought."""
        return measure.time_models([whole, self.model], self.split.gate.rows, sessions=3, calls=30).speedup(0, 1)


@dataclass(frozen=True)
class Table:
    """A real table: its name and what writes it into a folder."""

    name: str
    write: Callable[[Path], str]


def scenes(names: Sequence[str]) -> Iterator[tuple[str, Scene]]:
    """Split each of the named tables, all if none is named, and train its ensemble, in a folder that lasts until the next."""
    for table in TABLES:
        if not names or table.name in names:
            with tempfile.TemporaryDirectory() as folder:
                split = data.split(data.read(table.write(Path(folder))))
                held_out.as_table(split.train.rows)
                yield table.name, Scene(split, Path(folder))


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
