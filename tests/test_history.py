"""What `history` lists is tested beside `rollback` and `promote`, which make one; here: what it says when there is none."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from mlflow_opt.commands.history import history


@pytest.mark.parametrize("name", ["", "nobody"])
def test_history_says_which_name_it_wants_when_there_is_no_such_model(name: str, tracking_uri: str) -> None:
    assert not MlflowClient(tracking_uri).search_registered_models()
    with pytest.raises(ValueError, match="name must be a registered model"):
        history(name=name)
