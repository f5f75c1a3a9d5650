"""Recipes that start from a model refuse a table that nothing can be learnt from, with what to do about it, whatever it would have done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_opt.declaration.entries import entries
from mlflow_opt.signature import COULD_NOT_RUN, execute

# The others have these cases in tests of their own, and more.
RECIPES = ("compile", "distill", "prune", "prune_ensemble")
LOADED = {entry.name: entry.load for entry in entries() if entry.name in RECIPES}
BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "one_class": (lambda table: table.assign(target=1), "at least two different values"),
    "twenty_rows": (lambda table: table.head(20), "give at least 250 distinct rows"),
    "names_twice": (lambda table: pd.concat([table, table[["a"]]], axis=1), "column names must differ"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_to_do_when_the_table_is_bad(
    name: str, bad: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400), "town": rng.choice(["x", "y"], 400)})
    spoil, message = BAD[bad]
    spoil(table.assign(target=(table["a"] > 0).astype(int))).to_csv(tmp_path / "bad.csv", index=False)
    assert execute(LOADED[name](), [f"--data={tmp_path / 'bad.csv'}"]) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert f"{name}: " in said
    assert message in said
    assert "Traceback" not in said
    runs = MlflowClient(tracking_uri)
    assert runs.search_registered_models() == []
