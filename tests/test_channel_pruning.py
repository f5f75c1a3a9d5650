from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlflow_opt.export.from_torch import export_module
from mlflow_opt.networks.networks import Perceptron, ResNet
from mlflow_opt.networks.trainable import load_trainable, save_trainable
from mlflow_opt.pruning.channel_graph import Couplings, couplings_of
from mlflow_opt.pruning.channel_pruning import masked, without
from tests import pruning_zoo

RNG = np.random.default_rng(0)
PICTURES = {"picture": RNG.normal(size=(16, 3, 8, 8)).astype(np.float32)}
TOKENS = {"tokens": RNG.integers(0, 20, (16, 7))}


def some_units(couplings: Couplings, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return couplings.spared(
        int(unit) for family in couplings.families for unit in rng.choice(family.units, rng.integers(0, len(family.units)), replace=False)
    )


def answers(network: nn.Module, inputs: dict[str, np.ndarray]) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(*(torch.from_numpy(one) for one in inputs.values()))
    return found


def assert_pruned_equals_masked(network: nn.Module, inputs: dict[str, np.ndarray], seed: int) -> None:
    couplings = couplings_of(network, inputs)
    removed = some_units(couplings, seed)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pruned = without(network, couplings, removed, inputs)
    torch.testing.assert_close(answers(pruned, inputs), answers(masked(network, couplings, removed), inputs), rtol=1e-4, atol=1e-4)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the network given is left alone"
    if removed:
        assert sum(one.numel() for one in pruned.parameters()) < sum(one.numel() for one in network.parameters())
        assert not torch.allclose(answers(pruned, inputs), answers(network, inputs))
    # What is left can be followed and pruned again, and has the multiplications that were foretold.
    again = couplings_of(pruned, inputs) if len(couplings.families) > 1 and seed % 4 == 0 else None
    assert again is None or again.macs() == pytest.approx(couplings.macs(removed), rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_pruned_pictures_equal_masked_when_the_graph_is_random(seed: int) -> None:
    assert_pruned_equals_masked(pruning_zoo.random_pictures(seed), PICTURES, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 30))
def test_pruned_pictures_equal_masked_when_many_graphs_are_random(seed: int) -> None:
    assert_pruned_equals_masked(pruning_zoo.random_pictures(seed), PICTURES, seed)


@pytest.mark.parametrize("seed", range(6))
def test_pruned_encoder_equals_masked_when_the_graph_is_random(seed: int) -> None:
    assert_pruned_equals_masked(pruning_zoo.random_steps(seed), TOKENS, seed)


def test_couplings_name_what_goes_together_when_a_network_is_residual() -> None:
    found = couplings_of(ResNet(1, 10, width=8).eval(), {"image": np.zeros((3, 12, 12), np.uint8)})
    widths = {family.name: len(family.units) for family in found.families}
    assert widths["stem.0"] == 8, "the first stage adds to the stem, so both are one family"
    assert widths["stages.1.0.body.3"] == 16
    assert len(widths) == 12


def test_couplings_take_whole_heads_when_attention_is_followed() -> None:
    found = couplings_of(pruning_zoo.settled(pruning_zoo.Steps([pruning_zoo.Attention(12, 3)], 12)), TOKENS)
    assert [(family.name, len(family.units), family.width) for family in found.families] == [("blocks.0.qkv", 3, 12)]


def test_pruned_numbers_of_a_table_stay_when_they_come_from_the_input() -> None:
    found = couplings_of(Perceptron(torch.zeros(5), torch.ones(5), 3, width=16).eval(), {"numbers": np.zeros((3, 5), np.float32)})
    assert [len(family.units) for family in found.families] == [16, 16]
    assert not found.axes["layers.0.weight", 1].any(), "inputs are fixed"
    assert not found.axes["layers.5.weight", 0].any(), "classes are fixed"


def test_pruned_torch_encoder_exports_and_goes_on_training_when_saved(tmp_path: Path) -> None:
    network = pruning_zoo.settled(pruning_zoo.Encoders(12, 3))
    couplings = couplings_of(network, TOKENS)
    pruned = without(network, couplings, [family.units[0] for family in couplings.families], TOKENS)
    assert any(type(layer).__name__ == "NarrowAttention" for layer in pruned.modules())
    graph = export_module(pruned, TOKENS)
    assert sum(np.prod(one.dims) for one in graph.graph.initializer) < sum(one.numel() for one in network.parameters())
    save_trainable(pruned, tmp_path)
    again = load_trainable(tmp_path)
    torch.testing.assert_close(answers(again, TOKENS), answers(pruned, TOKENS))
    again.train()(torch.from_numpy(TOKENS["tokens"])).sum().backward()
    assert all(one.grad is not None for one in again.parameters())


class Chosen(nn.Module):
    """Decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        if hidden.sum() > 0:
            hidden = torch.relu(hidden)
        found: Tensor = self.head(hidden)
        return found


class Literals(nn.Module):
    """Holds a size as a number that nobody can change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.layer(x)).view(-1, 2, 4).reshape(-1, 8))
        return found


NUMBERS = {"x": RNG.normal(size=(8, 4)).astype(np.float32)}


def test_couplings_refuse_and_name_the_place_when_forward_decides_by_values() -> None:
    with pytest.raises(ValueError, match=r"if hidden.sum\(\) > 0"):
        couplings_of(Chosen().eval(), NUMBERS)


def test_couplings_refuse_and_name_the_layers_when_weights_are_shared() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    network[2].weight = network[0].weight
    with pytest.raises(ValueError, match=r"'0.weight' and '2.weight' are one"):
        couplings_of(network.eval(), NUMBERS)


def test_couplings_refuse_when_nothing_can_be_removed() -> None:
    with pytest.raises(ValueError, match="none: all are bound to its input"):
        couplings_of(nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1)).eval(), NUMBERS)


def test_without_refuses_when_a_layer_would_be_empty() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    couplings = couplings_of(network, NUMBERS)
    with pytest.raises(ValueError, match="'0' would lose all of its 8; lower the rate"):
        without(network, couplings, couplings.families[0].units, NUMBERS)


def test_layers_keep_a_channel_when_they_hold_a_part_of_a_family() -> None:
    # Interleaving 24 old and 8 new channels couples the new ones with a part of the old ones.
    network = pruning_zoo.settled(
        pruning_zoo.Pictures([nn.Conv2d(3, 24, 3, padding=1), pruning_zoo.Dense(24, 8), pruning_zoo.Shuffle(32)], 32, flat=True)
    )
    couplings = couplings_of(network, PICTURES)
    new = sorted(set(couplings.axes["blocks.1.new.2.weight", 0].tolist()))
    assert set(new) < set(couplings.families[0].units)
    with pytest.raises(ValueError, match=r"'blocks.1.new.2' would lose all of its 8; lower the rate"):
        without(network, couplings, new, PICTURES)
    assert couplings.spared(new) == new[:-1]
    without(network, couplings, couplings.spared(new), PICTURES)


def test_without_refuses_when_forward_holds_sizes_as_numbers() -> None:
    network = Literals().eval()
    couplings = couplings_of(network, NUMBERS)
    with pytest.raises(ValueError, match=r"write the sizes in its forward as attributes"):
        without(network, couplings, couplings.families[0].units[:1], NUMBERS)


def test_trainable_builds_heads_that_are_left_when_attributes_hold_their_number(tmp_path: Path) -> None:
    network = pruning_zoo.settled(pruning_zoo.Attention(12, 3))
    steps = {"x": RNG.normal(size=(4, 5, 12)).astype(np.float32)}
    couplings = couplings_of(network, steps)
    pruned = without(network, couplings, couplings.families[0].units[:1], steps)
    assert dict(vars(pruned))["heads"] == 2
    save_trainable(pruned, tmp_path)
    assert json.loads((tmp_path / "trainable/network.json").read_text())["numbers"]
    torch.testing.assert_close(answers(load_trainable(tmp_path), steps), answers(pruned, steps))
