"""`select_features` on a wide and on a tall table: how long the whole recipe takes, default model and verdict included.

Run with `python -m benchmarks.select_features_large [wide] [tall]`. Wide: the 1,498 commonest words of 8,000 reviews, counted, with age
and department. Tall: 300,000 rows drawn from adult's train rows, numbers moved by a hundredth of their spread so that no two rows are
equal, and adult's own test rows. Everything is the recipe's default, its search budget of 120 s too; one thread.
Bounds: 300 s and 600 s.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from benchmarks.real_data import real_data
from benchmarks.results_file import save
from recipes.select_features import select_features

COLUMNS, WIDE_ROWS, TALL_ROWS = 1500, 8000, 300_000


@dataclass(frozen=True)
class Line:
    """One table: its size, what was kept, what that loses, and the seconds that the recipe took."""

    table: str
    rows: int
    columns: int
    kept: str
    verdict: str
    lost: str
    seconds: float
    bound: float


def main() -> None:
    """Measure and write results/select_features_large.*."""
    lines = []
    for name, (make, bound) in TABLES.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                lines.append(measured(name, make(Path(folder)), Path(folder), bound))
            _write(lines)


def measured(name: str, path: Path, folder: Path, bound: float) -> Line:
    """Run the recipe on one table, in a store of its own."""
    table = pd.read_parquet(path)
    os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder / 'mlflow.db'}"
    started = time.monotonic()
    verdict = select_features(data=str(path))
    seconds = time.monotonic() - started
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    chosen = next((run for run in runs if run.data.tags.get("mlflow_opt.standing") == "chosen"), None)
    kept = str(chosen.data.params.get("features", "all")) if chosen else "none"
    ends = (
        [chosen.data.metrics.get(f"gate_drop_roc_auc{end}", float("nan")) for end in ("", "_lo", "_hi")] if chosen else [float("nan")] * 3
    )
    lost = f"{ends[0]:+.4f} [{ends[1]:+.4f}, {ends[2]:+.4f}]"
    return Line(name, len(table), table.shape[1] - 2, kept, verdict.outcome.value if verdict else "-", lost, seconds, bound)


def _wide(folder: Path) -> Path:
    from sklearn.feature_extraction.text import CountVectorizer

    table = pd.read_parquet(real_data("reviews.parquet"))
    table = table[table["text"].fillna("").str.len() > 0].drop_duplicates("text").sample(WIDE_ROWS, random_state=0)
    words = CountVectorizer(max_features=COLUMNS - 2)
    counts = words.fit_transform(table["text"]).toarray()
    made = pd.DataFrame(counts, columns=[f"word_{name}" for name in words.get_feature_names_out()])
    rest = {name: table[name].to_numpy() for name in ("age", "department", "target", "split")}
    made.assign(**rest).to_parquet(folder / "wide.parquet")
    return folder / "wide.parquet"


def _tall(folder: Path) -> Path:
    table = pd.read_parquet(real_data("adult.parquet"))
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    rng = np.random.default_rng(0)
    drawn = train.iloc[rng.integers(len(train), size=TALL_ROWS - len(test))].reset_index(drop=True)
    numbers = [str(name) for name in drawn.select_dtypes("number") if name != "target"]
    moved = {name: drawn[name] + 0.01 * float(train[name].std()) * rng.normal(size=len(drawn)) for name in numbers}
    parts: list[pd.DataFrame] = [drawn.assign(**moved), test.astype(dict.fromkeys(numbers, float))]
    pd.concat(parts, ignore_index=True).to_parquet(folder / "tall.parquet")
    return folder / "tall.parquet"


TABLES: dict[str, tuple[Callable[[Path], Path], float]] = {"wide": (_wide, 300.0), "tall": (_tall, 600.0)}


def _write(lines: list[Line]) -> None:
    shown = [
        "| table | rows | columns | kept | verdict | ROC AUC lost on the gate rows | recipe, s | bound, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        sizes = f"| {one.table} | {one.rows:,} | {one.columns:,} | {one.kept} "
        shown.append(f"{sizes}| {one.verdict} | {one.lost} | {one.seconds:.0f} | {one.bound:.0f} |")
    save("select_features_large", {"lines": [asdict(one) for one in lines]}, shown)


if __name__ == "__main__":
    main()
