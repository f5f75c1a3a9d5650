from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from mlflow_opt import data
from mlflow_opt.architectures.inheritance import inherit, shared
from mlflow_opt.architectures.network_space import Facts, anchors, build, facts_of, mobilenet
from mlflow_opt.architectures.network_trials import hypervolume, rungs_of, survives
from mlflow_opt.architectures.searched_networks import SearchedCNN, SearchedMLP
from mlflow_opt.networks.trainable import load_trainable, save_trainable
from mlflow_opt.pruning.channel_graph import couplings_of

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = f"{ROOT / 'examples/network_space.py'}:space"
RNG = np.random.default_rng(0)
TARGET = {"outputs": 3, "shift": 0.0, "spread": 1.0}
ARRAYS: dict[str, np.ndarray] = {
    "picture": RNG.integers(0, 256, (300, 8, 8), dtype=np.uint8),
    "colour": RNG.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8),
    "chw": RNG.normal(size=(300, 2, 8, 8)).astype(np.float32),
    "numbers": RNG.normal(size=(300, 5)).astype(np.float32),
    "tokens": RNG.integers(0, 9, (300, 6)),
    "series": RNG.normal(size=(300, 6, 2)).astype(np.float32),
}


def split_of(name: str, folder: Path, labels: np.ndarray | None = None) -> data.Split:
    np.savez(folder / "rows.npz", x=ARRAYS[name], target=np.arange(300) % 3 if labels is None else labels)
    return data.split(data.read(str(folder / "rows.npz")))


def asked(seed: int) -> optuna.trial.BaseTrial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


@pytest.mark.parametrize("name", ARRAYS)
def test_space_builds_networks_that_answer_and_are_kept_when_proposed(name: str, tmp_path: Path) -> None:
    facts = facts_of(split_of(name, tmp_path))
    for seed in range(3):
        module = build(asked(seed), facts, "", 0).eval()
        with torch.no_grad():
            answer = module(torch.from_numpy(ARRAYS[name][:4]))
        assert answer.shape == (4, 3)
        save_trainable(module, tmp_path / str(seed))
        with torch.no_grad():
            assert torch.equal(load_trainable(tmp_path / str(seed))(torch.from_numpy(ARRAYS[name][:4])), answer)


def test_space_builds_the_same_network_when_trial_and_seed_are_the_same(tmp_path: Path) -> None:
    facts = facts_of(split_of("picture", tmp_path))
    first, second = (build(asked(1), facts, "", 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["picture", "numbers", "tokens"])
def test_anchors_are_networks_of_the_space_when_built(name: str, tmp_path: Path) -> None:
    facts, trial = facts_of(split_of(name, tmp_path)), optuna.create_study().ask()
    build(trial, facts, "", 0)
    sizes = [
        sum(one.numel() for one in build(optuna.trial.FixedTrial(params), facts, "", 0).parameters())
        for params in anchors(trial.distributions)
    ]
    others = [sum(one.numel() for one in build(asked(seed), facts, "", 0).parameters()) for seed in range(5)]
    assert sizes[0] < sizes[1]
    assert sizes[0] <= min(others)


def test_space_answers_in_the_targets_units_when_it_is_a_regression(tmp_path: Path) -> None:
    facts = facts_of(split_of("numbers", tmp_path, RNG.normal(500, 20, 300)))
    assert facts.target["outputs"] == 1
    with torch.no_grad():
        answer = build(asked(0), facts, "", 0).eval()(torch.from_numpy(ARRAYS["numbers"]))
    assert 400 < float(answer.mean()) < 600


def test_space_is_the_users_when_a_file_is_given(tmp_path: Path) -> None:
    module = build(asked(0), facts_of(split_of("picture", tmp_path)), EXAMPLE, 0).eval()
    assert type(module).__name__ == "Pooled"
    save_trainable(module, tmp_path / "kept")
    again = load_trainable(tmp_path / "kept")
    rows = torch.from_numpy(ARRAYS["picture"][:4])
    with torch.no_grad():
        assert torch.equal(again(rows), module(rows))
    assert couplings_of(module, {"picture": ARRAYS["picture"][:3]}).families


def test_space_says_what_the_users_function_raised_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def space(trial, shape, outputs):\n    return 1 / 0\n")
    (tmp_path / "none.py").write_text("def space(trial, shape, outputs):\n    return None\n")
    facts = facts_of(split_of("picture", tmp_path))
    with pytest.raises(ValueError, match="raised ZeroDivisionError: division by zero"):
        build(asked(0), facts, f"{tmp_path / 'broken.py'}:space", 0)
    with pytest.raises(ValueError, match=r"must return a torch.nn.Module, got NoneType"):
        build(asked(0), facts, f"{tmp_path / 'none.py'}:space", 0)


def test_facts_refuse_when_there_are_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=ARRAYS["numbers"], b=ARRAYS["tokens"], target=np.arange(300) % 3)
    with pytest.raises(ValueError, match="one array"):
        facts_of(data.split(data.read(str(tmp_path / "rows.npz"))))


def test_mobilenet_has_the_papers_blocks_when_built() -> None:
    network = mobilenet(Facts("picture", (28, 28), {**TARGET, "outputs": 10}, "hw", 255.0), 0)
    assert isinstance(network, SearchedCNN)
    assert [stage["depth"] for stage in network.stages] == [1, 2, 3, 4, 3, 3, 1]
    assert sum(one.numel() for one in network.parameters()) == pytest.approx(0.59e6, rel=0.02)


def test_inherited_weights_keep_the_answers_when_shapes_are_the_same() -> None:
    donor, heir = (SearchedMLP(5, TARGET, [16, 8]).eval() for _ in range(2))
    made, share = inherit(heir, donor.state_dict())
    rows = torch.from_numpy(ARRAYS["numbers"][:8])
    assert share == 1.0
    assert torch.equal(made(rows), donor(rows))
    assert not torch.equal(heir(rows), donor(rows))


def test_inherited_weights_meet_in_the_middle_when_kernels_differ() -> None:
    small, large = nn.Conv2d(2, 4, 3), nn.Conv2d(3, 6, 5)
    made, share = inherit(large, small.state_dict())
    assert torch.equal(made.state_dict()["weight"][:4, :2, 1:4, 1:4], small.weight)
    assert torch.equal(made.state_dict()["weight"][4:], large.weight[4:])
    assert share == pytest.approx((4 * 2 * 9 + 4) / (6 * 3 * 25 + 6))
    assert shared({"a": (4,)}, {"b": (4,)}) == 0.0


def test_rungs_double_when_trials_are_long() -> None:
    assert [rungs_of(epochs) for epochs in (1, 2, 4, 8)] == [(1,), (1, 2), (1, 2, 4), (2, 4, 8)]


def test_survival_takes_half_by_rank_when_many_are_compared() -> None:
    others = [(0.9, 1.0), (0.8, 0.5), (0.7, 0.9), (0.6, 2.0), (0.5, 3.0)]
    assert survives(others, (0.95, 2.0)), "no other scores as much"
    assert survives(others, (0.3, 0.1)), "no other is as fast"
    assert not survives(others, (0.55, 2.5))
    assert survives([], (0.1, 9.0))


def test_hypervolume_grows_only_when_a_point_adds_something() -> None:
    front = [(0.9, 1.0), (0.5, 0.5)]
    area = hypervolume(front, (0.0, 2.0))
    assert hypervolume([*front, (0.4, 0.9)], (0.0, 2.0)) == area
    assert hypervolume([*front, (0.8, 0.6)], (0.0, 2.0)) > area
    assert hypervolume([(0.9, 3.0)], (0.0, 2.0)) == 0.0
