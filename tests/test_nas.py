from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from recipes.nas import nas
from tests.tiny import tiny_network, tiny_table


def test_nas_refuses_when_the_data_are_a_table(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_table(tmp_path)
    with pytest.raises(ValueError, match="array"):
        nas(data=str(tiny.data), trials=1, epochs=1, search_epochs=1, finalists=1)
    assert MlflowClient(tracking_uri).search_registered_models() == []


@pytest.mark.parametrize("wrong", [{"finalists": 0}, {"epochs": 0}, {"workers": 0}])
def test_nas_says_the_rule_when_a_number_is_wrong(wrong: dict[str, int], tmp_path: Path, tracking_uri: str) -> None:
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=name):
        nas(data=str(tmp_path / "none.npz"), **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_nas_keeps_trials_and_finalists_when_run(tmp_path: Path, tracking_uri: str) -> None:
    tiny = tiny_network(tmp_path)
    nas(
        model=str(tiny.model),
        data=str(tiny.data),
        trials=3,
        time_budget_s=60.0,
        epochs=1,
        search_epochs=1,
        finalists=1,
        rival=False,
        budget_s=5.0,
    )
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert sum("mlflow_opt.trial" in run.data.tags for run in runs) >= 1
    variants = {run.data.tags.get("mlflow_opt.variant") for run in runs} - {None, "baseline"}
    assert variants
    assert {run.info.status for run in runs} == {"FINISHED"}
