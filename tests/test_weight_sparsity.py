from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_opt.networks.losses import Arrays, plain_loss
from mlflow_opt.networks.training import TrainSettings, evaluate, fit
from mlflow_opt.pruning import weight_sparsity as sparse

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(300, 8)).astype(np.float32)
ROWS = Arrays({"x": NUMBERS}, (NUMBERS[:, 0] > 0).astype(np.int64))
SETTINGS = TrainSettings(4, 16, 5e-3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_hold_through_training_when_fine_tuned(scope: Any) -> None:
    given = network()
    before = [one.clone() for one in given.parameters()]
    tuned = fit(sparse.with_masks(given, 0.7, scope), ROWS, ROWS, replace(SETTINGS, epochs=12)).module
    plain = sparse.settled(tuned)
    assert sparse.sparsity(plain) == pytest.approx(0.7, abs=0.01)
    assert set(plain.state_dict()) == set(given.state_dict())
    assert evaluate(plain, ROWS)[1] > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True)), "the network given is left alone"
    shares = [float((layer.weight == 0).double().mean()) for layer in plain.modules() if isinstance(layer, nn.Linear)]
    assert (max(shares) - min(shares) < 0.02) == (scope == "layer")


def test_masks_take_the_smallest_weights_when_made() -> None:
    given = network()
    made = sparse.settled(sparse.with_masks(given, 0.5))
    kept = torch.cat(
        [new[new != 0].abs().flatten() for new in (one.weight.detach() for one in made.modules() if isinstance(one, nn.Linear))]
    )
    weights = torch.cat([one.weight.detach().abs().flatten() for one in given if isinstance(one, nn.Linear)])
    assert float(kept.min()) >= float(weights.median())


def test_gradual_sparsity_reaches_its_end_when_trained() -> None:
    steps = 4 * -(-300 // 16)
    loss = sparse.gradual_loss(plain_loss(), 0.8, steps * 2 // 3)
    tuned = fit(sparse.countable(network()), ROWS, ROWS, replace(SETTINGS, monitor="last"), loss).module
    plain = sparse.uncounted(sparse.settled(tuned))
    assert sparse.sparsity(plain) == pytest.approx(0.8, abs=0.01)
    assert set(plain.state_dict()) == set(network().state_dict())
    assert evaluate(plain, ROWS)[1] > 0.9


def test_gradual_sparsity_goes_on_where_it_was_when_resumed(tmp_path: Path) -> None:
    how = replace(SETTINGS, monitor="last")
    whole = fit(sparse.countable(network()), ROWS, ROWS, how, sparse.gradual_loss(plain_loss(), 0.8, 40)).module
    kept = replace(how, checkpoint=str(tmp_path / "grown.ckpt"))

    class StopHereError(Exception):
        pass

    def stop(epoch: Any) -> None:
        if epoch.number == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        fit(sparse.countable(network()), ROWS, ROWS, kept, sparse.gradual_loss(plain_loss(), 0.8, 40), stop)
    resumed = fit(sparse.countable(network()), ROWS, ROWS, kept, sparse.gradual_loss(plain_loss(), 0.8, 40)).module
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


@pytest.mark.parametrize("amount", [-0.1, 1.0])
def test_masks_refuse_when_nothing_would_be_left(amount: float) -> None:
    with pytest.raises(ValueError, match=r"a sparsity must be in \[0, 1\)"):
        sparse.with_masks(network(), amount)


def test_masks_refuse_when_there_is_no_layer() -> None:
    with pytest.raises(ValueError, match="must have linear or convolution layers"):
        sparse.with_masks(nn.LayerNorm(4), 0.5)


def test_compressed_size_falls_when_weights_are_zero(tmp_path: Path) -> None:
    (tmp_path / "dense.onnx").write_bytes(RNG.normal(size=4000).astype(np.float32).tobytes())
    values = RNG.normal(size=4000).astype(np.float32)
    values[:2800] = 0
    (tmp_path / "zeros.onnx").write_bytes(values.tobytes())
    assert sparse.compressed_mb(tmp_path / "zeros.onnx") < 0.5 * sparse.compressed_mb(tmp_path / "dense.onnx")
    assert sparse.compressed_mb(tmp_path) == pytest.approx(
        sparse.compressed_mb(tmp_path / "zeros.onnx") + sparse.compressed_mb(tmp_path / "dense.onnx")
    )
