"""What `gate` decides on real versions is tested beside `promote`; here: what it says when it is asked for nothing it can judge."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.gate import gate
from mlflow_opt.runs.judging import registered_name


def test_gate_says_what_to_name_when_there_is_no_model() -> None:
    with pytest.raises(ValueError, match="model=models:/churn/4"):
        gate()


def test_gate_fails_its_run_when_the_model_does_not_exist(tracking_uri: str) -> None:
    with pytest.raises(ValueError, match="nobody"):
        gate(model="models:/nobody/4", data="telco_churn")
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([str(one.experiment_id) for one in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert "nobody" in runs[0].data.tags["mlflow_opt.error"]


@pytest.mark.parametrize(
    ("uri", "name"), [("models:/a/3", "a"), ("models:/a@b", "a"), ("models:/m-1", ""), ("runs:/1/model", ""), ("x.onnx", "")]
)
def test_registered_name_reads_the_name_when_a_uri_has_one(uri: str, name: str) -> None:
    assert registered_name(uri) == name
