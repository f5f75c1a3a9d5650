"""Fewer columns on six real tables: what our choice loses against all columns, and against other rankings at the same size.

Run with `python -m benchmarks.select_features [TABLE ...]`. Each table's model is LightGBM with 100 rounds in the default pipeline. Our
columns are those that the recipe itself chooses, run as a user runs it; the rivals rank on the same train rows: gain, scikit-learn's RFE,
and, where PEER_SELECT names the interpreter of an environment that has them, shap-select and powershap. Every set is then trained by the
same learner with the same three seeds, and their mean answers are compared on the gate rows, paired, which no ranking saw.
Bounds: half the columns or fewer; the loss's upper end within the default policy's margin; not worse than a rival by more than noise;
half the training time where columns are redundant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_data import real_data
from benchmarks.results_file import FOLDER, interval, save
from mlflow_opt import data, session
from mlflow_opt.features.attributions import encoded, importance, sources
from mlflow_opt.features.feature_ranking import METHODS
from mlflow_opt.features.feature_trials import bounds_of
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.measurement.scoring import Scored, score
from mlflow_opt.metrics import QUALITY
from mlflow_opt.policy import default_policy
from mlflow_opt.records import Quantity
from mlflow_opt.runs.choosing import misses
from mlflow_opt.tables import learner_files
from mlflow_opt.tables.learners import Fitted, Learner
from mlflow_opt.tables.table_models import default_pipeline
from mlflow_opt.workbench.feature_runs import Plan, Search
from recipes.select_features import add_variants, chosen_trials, sizes_of, table_of

PEER = "PEER_SELECT"
SEEDS, REPEATS = (0, 1, 2), 5
# After so long the other packages are left out; on 300 columns they had no answer after ten minutes.
PEERS_S = 300.0
ROUNDS, RATE = 100, 0.1
BUDGET_S = float(os.environ.get("SELECT_BUDGET_S", "240"))


@dataclass(frozen=True)
class Line:
    """One table's result: our choice against all columns and against each rival at its size, as losses of the judged quantity."""

    table: str
    rows: int
    columns: int
    kept: int
    method: str
    judged: str
    bound: float
    full: float
    lost: Quantity
    faster: Quantity
    seconds: float
    rivals: dict[str, Quantity]
    own_sizes: dict[str, int]


def main() -> None:
    """Measure and write results/select_features.*; tables that are not named keep the lines that they have."""
    lines = _kept() if sys.argv[1:] else {}
    for name in sys.argv[1:] or TABLES:
        with tempfile.TemporaryDirectory() as folder:
            lines[name] = measured(name, Path(folder))
            _show([lines[one] for one in TABLES if one in lines])


def _kept() -> dict[str, Line]:
    path = FOLDER / "select_features.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = {}
    for name in (one for one in TABLES if one in known):
        found = known[name]
        rivals = {rival: Quantity(*values) for rival, values in found["rivals"].items()}
        lines[name] = Line(**{**found, "lost": Quantity(*found["lost"]), "faster": Quantity(*found["faster"]), "rivals": rivals})
    return lines


def measured(name: str, folder: Path) -> Line:
    """Run the recipe and its rivals on one table."""
    path = TABLES[name](folder)
    split = data.split(data.read(str(path)))
    rows, labels = pd.DataFrame(split.train.rows), split.train.labels
    template = default_pipeline(rows, split.task, 0).set_params(trees__n_estimators=ROUNDS, trees__learning_rate=RATE)
    learner = Learner(template, tuple(map(str, rows.columns)))
    full = learner.fit(rows, labels)
    learner_files.save(full, rows.head(64), folder / "model")
    started = time.monotonic()
    kept, method = ours(path, folder)
    seconds = time.monotonic() - started
    orders, own_sizes = rivals(full, rows, labels, split.task.kind, len(kept), folder)
    answers = {"all": answer(learner, split, ()), "ours": answer(learner, split, kept)}
    answers |= {rival: answer(learner, split, order[: len(kept)]) for rival, order in orders.items()}
    ((judged, bound),) = bounds_of(default_policy(split.task.kind), QUALITY[split.task.kind][0]).items()
    against = {rival: compare_quality(answers["ours"], answers[rival])[judged] for rival in ("all", *orders)}
    metric = judged.removeprefix("rel_").removeprefix("drop_")
    return Line(
        name, len(rows), len(learner.columns), len(kept), method, judged, bound, answers["all"].values[metric], against.pop("all"),
        training_ratio(learner, split, kept), seconds, against, own_sizes,
    )  # fmt: skip


def ours(path: Path, folder: Path) -> tuple[tuple[str, ...], str]:
    """Run the recipe's search on a saved model in a store of its own, and take what the recipe would judge: timing is left out."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    given = {"model": str(folder / "model"), "data": str(path), "target": "target", "policy": "", "register_as": "", "seed": 0}
    with session.start("select_features", {**given, "threads": 1, "metric": ""}, aim="last") as work:
        table, _ = table_of(work, "", "")
        bounds = bounds_of(work.policy, work.headline)
        sizes = sizes_of("", len(table.columns), 1)
        search = Search(work, table, Plan(tuple(METHODS), sizes, 3, 0, BUDGET_S, bounds, work.policy.confidence))
        found = search.run()
        add_variants(work, table, search, chosen_trials(found, bounds, work.headline))
        made = [one for one in work.candidates if one.variant.name.startswith("features")]
        good = [one for one in made if not one.refused and not misses(one.measured, work.policy)]
        work.end_open_runs("FINISHED")
    chosen = (good or made)[-1].variant.params
    return tuple(str(chosen["columns"]).split(",")), str(chosen["method"]) + ("" if good else ", misses")


def rivals(
    full: Fitted, rows: pd.DataFrame, labels: np.ndarray, task: str, size: int, folder: Path
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Rank by the rivals on the same train rows; also how many columns those keep that decide for themselves."""
    from sklearn.base import clone
    from sklearn.feature_selection import RFE

    of = sources(full, rows)
    names = [full.columns[at] for at in of]
    matrix = pd.DataFrame(encoded(full, rows), columns=names)
    gains = importance(full, rows)
    found = {"gain": [full.columns[at] for at in np.argsort(-gains, kind="stable")]}
    selector = RFE(clone(full.last), n_features_to_select=size, step=1 if len(names) <= 60 else 0.1).fit(matrix.to_numpy(), labels)
    found["RFE"] = [names[at] for at in np.argsort(selector.ranking_, kind="stable")]
    if PEER not in os.environ:
        return found, {}
    codes = labels if task == "regression" else np.unique(labels, return_inverse=True)[1]
    matrix.assign(__target__=codes).to_parquet(folder / "peers.parquet")
    script = str(Path(__file__).parent / "select_features_peers" / "rank.py")
    command = [os.environ[PEER], script, str(folder / "peers.parquet"), task, "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PEERS_S)
    except subprocess.TimeoutExpired:
        return found, {}
    theirs = json.loads(done.stdout.splitlines()[-1])
    return found | {name: order for name, (order, _) in theirs.items()}, {name: count for name, (_, count) in theirs.items()}


def answer(learner: Learner, split: data.Split, columns: Sequence[str]) -> Scored:
    """Train with each seed on all train rows, and score the mean answers on the gate rows."""
    rows, gate = pd.DataFrame(split.train.rows), pd.DataFrame(split.gate.rows)
    ordered = [name for name in learner.columns if name in columns]
    made = [learner.fit(rows, split.train.labels, columns=ordered, params={"random_state": seed}).scores(gate) for seed in SEEDS]
    return score(split.task, split.gate.labels, np.mean(made, axis=0))


def training_ratio(learner: Learner, split: data.Split, columns: Sequence[str]) -> Quantity:
    """Train on all columns and on ours in turns; the ratio of the seconds, its least and largest."""
    rows, ordered = pd.DataFrame(split.train.rows), [name for name in learner.columns if name in columns]
    ratios = []
    for _ in range(REPEATS):
        full, few = (learner.fit(rows, split.train.labels, columns=names).seconds for names in ((), ordered))
        ratios.append(full / few)
    return Quantity(float(np.median(ratios)), min(ratios), max(ratios), REPEATS)


def _file(name: str) -> Callable[[Path], Path]:
    return lambda _: real_data(name)


def _temperatures(folder: Path) -> Path:
    """Two days of half hours as columns, and the temperature half a day later: neighbouring columns nearly repeat each other."""
    values = pd.read_parquet(real_data("sea_temp.parquet"))["target"].to_numpy()
    starts = np.arange(0, len(values) - 120, 3)
    windows = values[starts[:, None] + np.arange(96)]
    table = pd.DataFrame(windows - windows[:, -1:], columns=[f"lag{96 - at}" for at in range(96)]).drop(columns="lag1")
    table = table.assign(level=windows[:, -1], target=values[starts + 119] - windows[:, -1])
    # Every fifth week is the test, and windows of both parts are left out.
    week, end = starts // 336, (starts + 119) // 336
    table = table.assign(split=np.where(week % 5 == 4, "test", "train"))[(week % 5 == 4) == (end % 5 == 4)]
    table.to_parquet(folder / "sea.parquet")
    return folder / "sea.parquet"


def _digits(folder: Path) -> Path:
    """784 pixels as columns."""
    held = np.load(real_data("mnist5k.npz"))
    table = pd.DataFrame(held["X"].reshape(len(held["y"]), -1), columns=[f"p{at}" for at in range(784)])
    table.assign(target=held["y"].astype(str)).to_parquet(folder / "digits.parquet")
    return folder / "digits.parquet"


def _reviews(folder: Path) -> Path:
    """The 300 commonest words of each review, counted, with age and department."""
    from sklearn.feature_extraction.text import CountVectorizer

    table = pd.read_parquet(real_data("reviews.parquet"))
    words = CountVectorizer(max_features=300, stop_words="english")
    counts = words.fit_transform(table["text"].fillna("")).toarray()
    made = pd.DataFrame(counts, columns=[f"word_{name}" for name in words.get_feature_names_out()])
    made.assign(age=table["age"], department=table["department"], target=table["target"], split=table["split"]).to_parquet(
        folder / "r.parquet"
    )
    return folder / "r.parquet"


TABLES: dict[str, Callable[[Path], Path]] = {
    "churn (telco)": _file("telco_churn.parquet"),
    "income (adult)": _file("adult.parquet"),
    "houses (california)": _file("california.parquet"),
    "sea temperature, 96 lags": _temperatures,
    "reviews, 300 words": _reviews,
    "digits, 784 pixels": _digits,
}


def _show(lines: Sequence[Line]) -> None:
    rivals_named = list(dict.fromkeys(name for line in lines for name in line.rivals))
    text = [
        f"LightGBM, {ROUNDS} rounds; answers are the mean of {len(SEEDS)} seeds, losses are on the gate rows [95%], positive is worse.",
        "",
        "| table | train rows | columns | kept (by) | all columns | lost against all | margin | training time, all : kept | recipe, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    text += [_row(one) for one in lines]
    text += ["", "Ours against each rival at the same size, negative is better:", ""]
    text += ["| table | size | " + " | ".join(rivals_named) + " |", "|---|---|" + "---|" * len(rivals_named)]
    for one in lines:
        cells = [_loss(one.rivals[name]) if name in one.rivals else "-" for name in rivals_named]
        text.append(f"| {one.table} | {one.kept} | " + " | ".join(cells) + " |")
    figures = {one.table: {**vars(one), "lost": _plain(one.lost), "faster": _plain(one.faster)} for one in lines}
    for each in figures.values():
        each["rivals"] = {name: _plain(quantity) for name, quantity in each["rivals"].items()}
    save("select_features", figures, text)


def _row(one: Line) -> str:
    faster = interval((one.faster.value, one.faster.lo, one.faster.hi), "{:.1f}")
    sizes = f"| {one.table} | {one.rows} | {one.columns} | {one.kept} ({one.method}) "
    return f"{sizes}| {one.judged.split('drop_')[-1]} {one.full:.4f} | {_loss(one.lost)} | {one.bound:g} | {faster} | {one.seconds:.0f} |"


def _loss(found: Quantity) -> str:
    return interval((found.value, found.lo, found.hi), "{:+.4f}")


def _plain(found: Quantity) -> list[Any]:
    return [found.value, found.lo, found.hi, found.n]


if __name__ == "__main__":
    main()
