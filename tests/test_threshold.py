from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_opt import data, models
from mlflow_opt.export.dropin_code import Binding, Output
from mlflow_opt.export.exporting import OnnxGraph
from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Quantity
from mlflow_opt.reports.report import Row
from mlflow_opt.signature import COULD_NOT_RUN, execute
from mlflow_opt.tables.first_fits import HeldOut
from mlflow_opt.tables.thresholds import best_threshold
from recipes.threshold import MOVED, RUNTIME, advise, held_out, moved, threshold
from tests.tiny import Tiny, tiny_network, tiny_table

IMPOSSIBLE = "validation_criteria:\n  - {metric: speedup, min: 1000000}\n"


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_table(tmp_path_factory.mktemp("churn"))


def _graph(output: Output) -> OnnxGraph:
    return OnnxGraph("the graph itself", Binding((), output))


def test_moved_changes_nothing_but_the_threshold_when_the_model_gives_probabilities() -> None:
    given = _graph(Output("scores", "probabilities"))
    made = moved(given, 0.3)
    assert made.proto is given.proto
    assert made.binding.output == replace(given.binding.output, threshold=0.3)
    assert given.binding.output.threshold == 0.5


@pytest.mark.parametrize(
    "output", [Output("scores", "logits"), Output("scores", "margin"), Output("scores", "probabilities", "label")], ids=["l", "m", "own"]
)
def test_moved_refuses_when_probabilities_do_not_decide(output: Output) -> None:
    with pytest.raises(ValueError, match=r"a threshold needs probabilities that decide the answer.*calibrate it"):
        moved(_graph(output), 0.3)


def test_held_out_asks_models_that_did_not_see_a_row_when_the_model_can_be_trained_again(churn: Tiny) -> None:
    split = data.split(data.read(str(churn.data)))
    model = models.load(str(churn.model))
    found = held_out(model, split, 3)
    assert found.scores.shape == (len(split.train.labels), 2)
    np.testing.assert_allclose(found.scores.sum(axis=1), 1)
    assert found.how.startswith(f"{len(split.train.labels)} train rows")
    # The model itself has seen these rows, and is better on them than the others.
    own = score(split.task, split.train.labels, model.predict(split.train.rows)).values["roc_auc"]
    others = score(split.task, split.train.labels, found.scores).values["roc_auc"]
    assert 0.7 < others < own


def test_held_out_asks_the_model_itself_when_there_are_no_folds(churn: Tiny) -> None:
    split, model = data.split(data.read(str(churn.data))), models.load(str(churn.model))
    found = held_out(model, split, 0)
    np.testing.assert_array_equal(found.scores, model.predict(split.calibration.rows))
    np.testing.assert_array_equal(found.labels, split.calibration.labels)
    assert "calibration rows, by the model itself" in found.how


@pytest.mark.parametrize(("lo", "said"), [(0.01, "selection rows."), (-0.01, "which these rows do not resolve.")], ids=["sure", "open"])
def test_advise_says_what_was_gained_and_how_sure_that_is_when_moved(lo: float, said: str) -> None:
    rows = [Row("baseline", {}), Row(MOVED, {"label_flips": 41.0})]
    held = HeldOut(np.zeros(3), np.zeros((3, 2)), "300 train rows")
    told = advise(rows, Quantity(0.04, lo, 0.07, 500), held, (0.5, 0.31))
    assert told[0] == "The threshold went from 0.500 to 0.310, chosen on 300 train rows."
    assert told[1].startswith("F1 changes by +0.0400 [")
    assert told[1].endswith(said)
    assert told[2].startswith("41 answers differ; no probability does")


def test_threshold_moves_labels_and_no_probability_when_run(churn: Tiny, tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(IMPOSSIBLE)
    assert threshold(model=str(churn.model), data=str(churn.data), policy=str(tmp_path / "policy.yaml"), folds=3) is None
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], "tags.`mlflow_opt.variant` != ''")
    found = {run.data.tags["mlflow_opt.variant"]: run for run in runs}
    assert set(found) == {"baseline", RUNTIME, MOVED}
    values, plain = found[MOVED].data.metrics, found[RUNTIME].data.metrics
    assert values["f1"] > plain["f1"] + 0.02
    assert values["label_flips"] > 10
    assert values["roc_auc"] == plain["roc_auc"]
    assert values["log_loss"] == plain["log_loss"]
    outputs = found[MOVED].outputs
    (logged,) = outputs.model_outputs if outputs else []
    made = models.load(f"models:/{logged.model_id}")
    split = data.split(data.read(str(churn.data)))
    held = held_out(models.load(str(churn.model)), split, 3)
    assert made.threshold == best_threshold(held.labels == split.task.positive, held.scores[:, 1])


def test_threshold_refuses_when_there_are_more_than_two_classes(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = tiny_network(tmp_path)
    assert execute(threshold, ["--model", str(digits.model), "--data", str(digits.data)]) == COULD_NOT_RUN
    assert "a threshold decides between two classes, the data are multiclass" in capsys.readouterr().err


def test_threshold_refuses_when_one_fold_is_asked_for(tracking_uri: str) -> None:
    with pytest.raises(ValueError, match="folds must be at least 2, or 0 for calibration rows, got 1"):
        threshold(folds=1)
