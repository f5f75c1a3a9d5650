from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_opt import data, models
from mlflow_opt.export.from_torch import export_module, export_retrained
from mlflow_opt.networks.blueprints import built, drawn
from mlflow_opt.networks.network_learners import Judged, NetworkLearner, fresh, learner_for, network_of
from mlflow_opt.networks.training import TrainSettings, evaluate
from tests import training_cases
from tests.training_cases import Case

KINDS: dict[str, Callable[[Path], Case]] = {
    "cnn": training_cases.digits,
    "mlp": training_cases.perceptron,
    "regression": lambda folder: training_cases.perceptron(folder, classes=1),
    "lstm": training_cases.series,
    "encoder": training_cases.tokens,
}
SETTINGS = TrainSettings(epochs=3, batch_size=32, learning_rate=0.005)


def learner(case: Case) -> tuple[NetworkLearner, data.Split]:
    split = data.split(data.read(str(case.data)))
    return learner_for(models.load(str(case.model)), split), split


# The others are exported in the tests of other modules too.
@pytest.mark.parametrize("kind", [kind if kind in ("cnn", "lstm") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_learner_trains_and_exports_when_network_is_of_any_kind(kind: str, tmp_path: Path) -> None:
    trained, split = learner(KINDS[kind](tmp_path))
    train, valid = trained.arrays(split.train), trained.arrays(split.calibration)
    before = evaluate(trained.judged(fresh(trained.module, 0)), train)[0]
    fitted = trained.fit(fresh(trained.module, 0), (train, valid), SETTINGS)
    assert evaluate(trained.judged(fitted.module), train)[0] < before
    assert type(fitted.module) is type(trained.module), "the module alone, without what was around it"
    graph = export_retrained(fitted.module, trained.model, split.calibration.rows)
    assert len(graph.binding.inputs) == len(train.inputs)


def test_learner_standardises_targets_when_it_is_a_regression(tmp_path: Path) -> None:
    trained, split = learner(training_cases.series(tmp_path))
    targets = trained.arrays(split.train).targets
    assert abs(targets.mean()) < 1e-5
    assert targets.std() == pytest.approx(1, abs=1e-5)
    settings = replace(SETTINGS, epochs=12)
    fitted = trained.fit(
        trained.fresh(0, trained.arrays(split.train)), (trained.arrays(split.train), trained.arrays(split.calibration)), settings
    )
    answers = trained.scores(fitted.module, split.train.rows)
    assert answers.mean() == pytest.approx(split.train.labels.mean(), abs=1), "in the target's own units"


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ("logit", torch.tensor([[2.0], [-1.0]])),
        ("probability", torch.sigmoid(torch.tensor([[2.0], [-1.0]]))),
        ("probabilities", torch.softmax(torch.tensor([[0.0, 2.0], [0.0, -1.0]]), 1)),
        ("logits", torch.tensor([[0.0, 2.0], [0.0, -1.0]])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_judged_gives_the_same_logits_when_answers_have_other_forms(form: str, answers: torch.Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return answers + 0 * rows.sum()

    # The forms are the parametrization's.
    logits = Judged(Constant(), form)(torch.zeros(2, 1))  # type: ignore[arg-type]
    assert torch.allclose((logits[:, 1] - logits[:, 0]), torch.tensor([2.0, -1.0]), atol=1e-5)


def test_fresh_draws_new_weights_when_asked_and_leaves_the_given_ones(tmp_path: Path) -> None:
    trained, _ = learner(training_cases.perceptron(tmp_path))
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    one, two, other = fresh(trained.module, 0), fresh(trained.module, 0), fresh(trained.module, 1)
    assert torch.equal(one.state_dict()["0.weight"], two.state_dict()["0.weight"])
    assert not torch.equal(one.state_dict()["0.weight"], other.state_dict()["0.weight"])
    assert all(torch.equal(before[name], value) for name, value in trained.module.state_dict().items())


def test_fresh_refuses_when_a_layer_cannot_draw_its_weights_anew() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"1 \(Scale\) has weights and none; .*start=given"):
        fresh(nn.Sequential(nn.Linear(2, 2), Scale()), 0)


def test_fit_names_the_vocabulary_when_token_ids_are_out_of_range(tmp_path: Path) -> None:
    trained, split = learner(training_cases.tokens(tmp_path))
    rows = trained.arrays(split.train)
    rows.inputs["input_ids"][5, 2] = 999
    with pytest.raises(ValueError, match=r"input_ids holds 0 to 999.*embeddings of 20 entries.*own tokenizer"):
        trained.fit(trained.module, (rows, rows), SETTINGS)


def test_predict_names_the_vocabulary_when_token_ids_are_out_of_range(tmp_path: Path) -> None:
    case = training_cases.tokens(tmp_path)
    rows = {"input_ids": np.full((3, 8), 20), "attention_mask": np.ones((3, 8), np.int64)}
    with pytest.raises(ValueError, match=r"input_ids holds 20 to 20.*embeddings of 20 entries.*own tokenizer"):
        models.load(str(case.model)).predict(rows)


def test_export_names_the_line_when_forward_decides_on_a_value() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return x
            return 2 * x

    with pytest.raises(ValueError, match=r"line \d+ of test_network_learners.py, `if x.sum\(\) > 0:`, decides on a value.*torch.where"):
        export_module(Branch().eval(), {"x": np.zeros((3, 2), np.float32)})


def test_fit_says_what_it_got_when_arrays_have_the_wrong_shape(tmp_path: Path) -> None:
    trained, split = learner(training_cases.digits(tmp_path))
    rows = trained.arrays(split.train)
    wrong = type(rows)({"images": rows.inputs["images"][:, :, :5]}, rows.targets)
    with pytest.raises(ValueError, match=r"images \(\d+, 1, 5, 8\).*shapes that it was built for"):
        trained.fit(trained.module, (wrong, wrong), SETTINGS)


def test_network_of_refuses_when_there_is_only_a_graph(tmp_path: Path) -> None:
    case = training_cases.perceptron(tmp_path)
    trained, split = learner(case)
    graph = export_retrained(trained.module, trained.model, split.calibration.rows)
    (tmp_path / "bare.onnx").write_bytes(graph.proto.SerializeToString())
    with pytest.raises(ValueError, match="give the torch model that it was made from"):
        network_of(models.load(str(tmp_path / "bare.onnx")))


def test_learner_for_refuses_when_the_network_has_other_classes(tmp_path: Path) -> None:
    model = training_cases.perceptron(tmp_path, classes=3).model
    with np.load(training_cases.perceptron(tmp_path).data) as arrays:
        np.savez(tmp_path / "four.npz", numbers=arrays["numbers"], target=np.arange(400) % 4)
    with pytest.raises(ValueError, match="must answer 4 numbers a row for this target, got 3"):
        learner(Case(tmp_path / "four.npz", model))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(9, 2)),
        nn.GRU(3, 4, batch_first=True),
        nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Dropout(0.3)),
    ],
    ids=["layers", "recurrent", "embedding"],
)
def test_blueprint_builds_the_same_layers_when_they_are_torchs_own(module: nn.Module) -> None:
    again = built(drawn(module), lambda name: pytest.fail(f"{name} is torch's own"))
    assert repr(again) == repr(module)
    again.load_state_dict(module.state_dict())
