from __future__ import annotations

import pytest
from mlflow import MlflowClient

from mlflow_opt.runs import tracking


@pytest.mark.parametrize(("given", "named"), [("regularize-l1_0.0001", "regularize-l1_0_0001"), ("tune-best", "tune-best")])
def test_model_gets_a_name_that_mlflow_allows_when_a_variant_is_named_by_a_number(given: str, named: str, tracking_uri: str) -> None:
    parent = tracking.open_parent("regularize", {}, {})
    model_id = tracking.create_model(parent, parent.run_id, given, {}, {})
    assert MlflowClient(tracking_uri).get_logged_model(model_id).name == named
