from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_opt.networks.losses import Arrays
from mlflow_opt.networks.networks import ResNet
from mlflow_opt.networks.training import TrainSettings, evaluate, fit
from mlflow_opt.pruning.channel_graph import couplings_of
from mlflow_opt.pruning.channel_importance import importances, sensitivities, table
from mlflow_opt.pruning.channel_pruning import without
from mlflow_opt.pruning.channel_widths import choose_widths, search_share, units_to_remove

RNG = np.random.default_rng(0)
# Two of eight numbers decide.
NUMBERS = RNG.normal(size=(400, 8)).astype(np.float32)
ROWS = Arrays({"x": NUMBERS}, (NUMBERS[:, 0] + NUMBERS[:, 1] > 0).astype(np.int64))


def plainly(module: nn.Module) -> nn.Module:
    return module


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Train a network whose first layer is far wider than its task."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    return fit(network, ROWS, ROWS, TrainSettings(8, 32, 5e-3)).module


@pytest.mark.parametrize("measure", ["taylor", "magnitude", "batchnorm"])
def test_importances_spare_what_decides_when_dead_neurons_are_added(measure: str, trained: nn.Module) -> None:
    graph = couplings_of(trained, ROWS.inputs)
    family = graph.families[0]
    # Half of the first layer is switched off: no measure may take it for important.
    dead = family.units[::2]
    with torch.no_grad():
        for name, axis, gone in graph.touched(dead):
            value = dict([*trained.named_parameters(), *trained.named_buffers()])[name]
            value.index_fill_(axis, torch.from_numpy(gone), 1e-4)
    found = importances(trained, graph, measure, ROWS, plainly)  # type: ignore[arg-type]
    assert max(found[unit] for unit in dead) < min(found[unit] for unit in family.units[1::2])
    assert (set(graph.families[1].units) <= set(found)) == (measure != "batchnorm")


def test_importances_refuse_when_there_is_no_batch_normalisation() -> None:
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match="use taylor"):
        importances(network, couplings_of(network, ROWS.inputs), "batchnorm", ROWS, plainly)


def test_sensitivities_grow_when_more_is_removed(trained: nn.Module) -> None:
    graph = couplings_of(trained, ROWS.inputs)
    found = sensitivities(trained, graph, importances(trained, graph, "taylor", ROWS, plainly), ROWS, plainly)
    assert set(found) == {"0", "3"}
    assert all(losses == tuple(sorted(losses)) for losses in found.values())
    assert "| 0 | 32 |" in table(found, graph)


def test_widths_take_from_the_insensitive_layer_when_multiplications_are_saved() -> None:
    graph = couplings_of(ResNet(1, 10, width=16).eval(), {"image": np.zeros((3, 12, 12), np.uint8)})
    losses = {family.name: (0.0, 0.01, 0.02) for family in graph.families} | {"stages.3.0.body.3": (1.0, 2.0, 4.0)}
    widths = choose_widths(graph, losses, 0.5, 8)
    full = {family.name: len(family.units) for family in graph.families}
    assert widths["stages.3.0.body.3"] == full["stages.3.0.body.3"]
    assert widths["stages.3.0.body.0"] < full["stages.3.0.body.0"]
    assert all(width % 8 == 0 or width < 8 for width in widths.values())
    importance = {unit: float(unit) for family in graph.families for unit in family.units}
    removed = units_to_remove(graph, widths, importance)
    assert 0.35 < graph.macs(removed) / graph.macs() <= 0.5


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_widths_refuse_when_the_share_would_empty_a_layer(share: float) -> None:
    graph = couplings_of(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).eval(), ROWS.inputs)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        choose_widths(graph, {"0": (0.0, 0.0, 0.0)}, share, 8)


def test_widths_leave_something_of_every_layer_when_nearly_all_must_go() -> None:
    graph = couplings_of(ResNet(1, 10, width=8).eval(), {"image": np.zeros((3, 12, 12), np.uint8)})
    widths = choose_widths(graph, {family.name: (0.0, 0.0, 0.0) for family in graph.families}, 1e-6, 8)
    assert all(width >= 1 for width in widths.values())
    removed = units_to_remove(graph, widths, {unit: 1.0 for family in graph.families for unit in family.units})
    without(ResNet(1, 10, width=8).eval(), graph, removed, {"image": np.zeros((3, 12, 12), np.uint8)})


def test_search_share_finds_the_largest_when_latency_follows_multiplications() -> None:
    share, tried = search_share(lambda share: 1 / share**0.5, 2.0)
    assert share == pytest.approx(0.25, abs=0.02)
    assert len(tried) == 6


def test_search_share_keeps_the_smallest_when_nothing_is_fast_enough() -> None:
    share, tried = search_share(lambda share: 1.3, 100.0)
    assert share == min(one.share for one in tried)
    assert all(one.speedup < 100 for one in tried)


def test_pruned_network_learns_again_when_fine_tuned(trained: nn.Module) -> None:
    graph = couplings_of(trained, ROWS.inputs)
    importance = importances(trained, graph, "taylor", ROWS, plainly)
    smaller = without(trained, graph, units_to_remove(graph, {"0": 8, "3": 4}, importance), ROWS.inputs)
    tuned = fit(smaller, ROWS, ROWS, TrainSettings(8, 32, 5e-3)).module
    assert evaluate(tuned, ROWS)[1] > 0.93
    assert sum(one.numel() for one in tuned.parameters()) < 0.25 * sum(one.numel() for one in trained.parameters())
