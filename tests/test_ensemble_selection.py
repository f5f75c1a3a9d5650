from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlflow_opt.ensembles.ensemble_selection import (
    Budget,
    Holds,
    bagged_greedy,
    by_margin,
    greedy,
    holds_of,
    inside,
    margin_order,
    reduced,
    subsets,
)


def pool(members: int = 6, rows: int = 400, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make members of rising noise that all see the truth dimly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = 2 * np.eye(classes)[labels] + rng.normal(size=(members, rows, classes)) * np.linspace(1, 3, members)[:, None, None]
    odds = np.exp(logits)
    return odds / odds.sum(axis=2, keepdims=True), labels


def free(members: int, keep: int = 3) -> Budget:
    return Budget(keep, np.ones(members))


@pytest.mark.parametrize("classes", [2, 4])
def test_holds_losses_are_those_of_the_averaged_probabilities_when_weighted(classes: int) -> None:
    scores, labels = pool(classes=classes)
    weights = np.array([3, 0, 1, 0, 2, 0])
    mean = np.tensordot(weights / 6, scores, axes=1)
    wanted = -np.log(mean[np.arange(len(labels)), labels]).mean()
    assert holds_of(scores, labels).loss(weights.tolist()) == pytest.approx(wanted)


def test_holds_losses_are_squared_errors_when_values_are_predicted() -> None:
    scores, target = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([2.0, 2.0])
    assert holds_of(scores, target).losses(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist() == [0.0, 0.5]


def test_greedy_keeps_to_its_budget_when_members_and_costs_are_bounded() -> None:
    holds = holds_of(*pool())
    costs = np.array([5.0, 1, 1, 1, 1, 1])
    assert len(inside(greedy(holds, free(6, keep=2)))) <= 2
    assert 0 not in inside(greedy(holds, Budget(6, costs, most=3.0)))
    assert len(inside(greedy(holds, Budget(6, costs, most=3.0)))) <= 3


def test_greedy_loses_to_no_single_member_when_it_may_take_several() -> None:
    holds = holds_of(*pool())
    assert holds.loss(greedy(holds, free(6))) <= holds.losses(np.eye(6)).min()


def test_greedy_takes_a_member_once_when_two_are_the_same() -> None:
    scores, labels = pool(members=1)
    assert inside(greedy(holds_of(np.concatenate([scores, scores]), labels), free(2))) == [0]


def test_greedy_gives_no_member_when_none_fits_the_budget() -> None:
    assert greedy(holds_of(*pool()), Budget(3, np.ones(6), most=0.5)) == (0,) * 6
    assert subsets(holds_of(*pool()), Budget(3, np.ones(6), most=0.5)) == []


def test_subsets_hold_the_best_of_all_when_the_pool_is_small() -> None:
    holds = holds_of(*pool())
    found = subsets(holds, free(6))
    every = [greedy(holds, free(6), among=part) for size in (1, 2, 3) for part in itertools.combinations(range(6), size)]
    assert holds.loss(found[0]) == pytest.approx(min(holds.loss(one) for one in every))
    assert [holds.loss(one) for one in found] == sorted(holds.loss(one) for one in found)
    assert holds.loss(found[0]) <= holds.loss(greedy(holds, free(6))) + 1e-12


def test_subsets_are_paths_within_the_budget_when_the_pool_is_large() -> None:
    holds = holds_of(*pool(members=30, rows=120))
    found = subsets(holds, Budget(5, np.linspace(1, 2, 30), most=6.0))
    assert 10 < len(found) < 200
    assert max(len(inside(one)) for one in found) <= 5
    assert all(np.linspace(1, 2, 30)[inside(one)].sum() <= 6.0 for one in found)


def test_margin_order_names_every_member_once_when_ordered() -> None:
    assert sorted(margin_order(holds_of(*pool()))) == list(range(6))


def test_margin_order_starts_with_the_smallest_error_when_values_are_predicted() -> None:
    errors = np.array([[2.0, 2.0], [0.1, 0.1], [-1.9, -1.9]])
    assert margin_order(Holds(errors, np.empty((3, 0)))) == [1, 2, 0]


def test_by_margin_complements_the_first_member_when_another_is_right_where_it_errs() -> None:
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    scores = np.array([[right, right, right, wrong], [right, right, right, wrong], [wrong, wrong, right, right]])
    assert inside(by_margin(holds_of(scores, np.zeros(4, dtype=int)), free(3, keep=2))) in ([0, 2], [1, 2])


def test_bagged_greedy_is_the_same_when_the_seed_is_and_keeps_to_its_budget() -> None:
    holds = holds_of(*pool(members=20, rows=200))
    first, again = (bagged_greedy(holds, free(20, keep=4), bags=10, seed=3) for _ in range(2))
    assert first == again
    assert 1 <= len(inside(first)) <= 4


def test_reduced_gives_the_smallest_whole_numbers_when_weights_share_a_divisor() -> None:
    assert reduced([20, 0, 10]) == (2, 0, 1)
    assert reduced([0, 0]) == (0, 0)
