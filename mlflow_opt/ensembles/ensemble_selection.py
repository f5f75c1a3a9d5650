"""Which members of an ensemble to keep, and with which whole-number weights: pure functions of what the members answered.

Everything rests on one number a member and row, its `hold` on the truth: the probability of the true class, or the error of
a value. An average's hold is the average of its members' holds, so the loss of any weighting is one product away, and
hundreds of subsets can be looked at where the literature has to be greedy.

Sources: Caruana et al., "Ensemble selection from libraries of models", 2004 (greedy, with replacement, bagged); Martinez-Munoz
and Suarez, "Pruning in ordered bagging ensembles", 2006, and Martinez-Munoz, Hernandez-Lobato and Suarez, "An analysis of
ensemble pruning techniques based on ordered aggregation", 2009 (margin distance); Hernandez-Lobato et al., "Pruning in
ordered regression bagging ensembles", 2006.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Weights = tuple[int, ...]

# Picks of a member, and so the largest sum of weights: more change the loss in its fourth digit.
ROUNDS = 20
# All subsets are looked at up to so many; beyond, greedy paths from the best first members.
MOST_SUBSETS = 500
STARTS = 12
# Where the average margin of each row is pulled to: small, so that rows near the border count most.
MARGIN = 0.075
_LEAST = 1e-15


@dataclass(frozen=True)
class Holds:
    """How well each member holds the truth on rows that it was not trained on.

    Args:
        values: shape (members, rows): probability of the true class, or prediction minus target.
        margins: shape (members, rows): probability of the true class minus the largest other; empty for a regression.
    """

    values: Floats
    margins: Floats

    @property
    def members(self) -> int:
        """Count the members."""
        return len(self.values)

    @property
    def is_regression(self) -> bool:
        """Tell whether the values are errors, which should be 0, and not probabilities, which should be 1."""
        return not self.margins.size

    def losses(self, weightings: Floats) -> Floats:
        """Give the log loss, or the mean squared error, of weighted averages; shape (weightings, members) in, (weightings,) out."""
        mean = (weightings / weightings.sum(axis=1, keepdims=True)) @ self.values
        losses = mean**2 if self.is_regression else -np.log(np.clip(mean, _LEAST, 1.0))
        return np.asarray(losses.mean(axis=1))

    def loss(self, weights: Sequence[int]) -> float:
        """Give the loss of one weighting."""
        return float(self.losses(np.asarray([weights], dtype=float))[0])


@dataclass(frozen=True)
class Budget:
    """What a selection may cost.

    Args:
        keep: most members.
        costs: of each member beyond the fixed cost of a call, shape (members,).
        most: of the members' costs together.
    """

    keep: int
    costs: Floats
    most: float = math.inf

    def allows(self, members: Sequence[int]) -> bool:
        """Tell whether these members together are within it."""
        return len(members) <= self.keep and self.cost(members) <= self.most

    def cost(self, members: Sequence[int]) -> float:
        """Add up what members cost."""
        return float(self.costs[list(members)].sum())


def holds_of(scores: Floats, labels: npt.NDArray[Any]) -> Holds:
    """Reduce members' answers to their hold on the truth.

    Example:
        >>> holds_of(np.array([[[0.8, 0.2], [0.4, 0.6]]]), np.array([0, 0])).values.tolist()
        [[0.8, 0.4]]

    Args:
        scores: (members, rows, classes) probabilities, or (members, rows) values.
        labels: class codes, or targets.
    """
    if scores.ndim == 2:
        return Holds(scores - labels, np.empty((len(scores), 0)))
    true = scores[:, np.arange(len(labels)), labels.astype(int)]
    others = scores.copy()
    others[:, np.arange(len(labels)), labels.astype(int)] = -np.inf
    return Holds(true, true - others.max(axis=2))


def greedy(holds: Holds, budget: Budget, *, among: Sequence[int] = (), rounds: int = ROUNDS) -> Weights:
    """Pick the member that lowers the average's loss most, again and again, with replacement (Caruana et al. 2004).

    Helps where members differ in quality: how often one was picked is its weight. Does not help where all are alike, as in
    bagging; order those by margin. The best iteration is kept, not the last one.

    Example:
        >>> holds = holds_of(np.array([[[0.9, 0.1]], [[0.2, 0.8]]]), np.array([0]))
        >>> greedy(holds, Budget(1, np.ones(2)))
        (1, 0)

    Args:
        holds: of the members.
        budget: a member is not taken where it would break it.
        among: indices of the only members to take, all if empty.
        rounds: picks.
    """
    counts = np.zeros(holds.members)
    best, lowest = counts, math.inf
    for _ in range(rounds):
        inside = [int(i) for i in np.flatnonzero(counts)]
        open_to = [i for i in among or range(holds.members) if counts[i] or budget.allows([*inside, i])]
        if not open_to:
            break
        tried = counts + np.eye(holds.members)[open_to]
        losses = holds.losses(tried)
        # Of equals one that is already in, or the ensemble grows for nothing.
        at = min(range(len(open_to)), key=lambda i: (round(float(losses[i]), 12), not counts[open_to[i]]))
        counts = tried[at]
        if losses[at] < lowest - 1e-9:
            best, lowest = counts, float(losses[at])
    return reduced(best)


def bagged_greedy(holds: Holds, budget: Budget, *, bags: int, seed: int = 0, share: float = 0.5) -> Weights:
    """Select greedily from many random parts of the pool, keep the members picked most, and weigh those (Caruana et al. 2004, section 2.3).

    The paper averages the bags' ensembles, which grows them; here the picks are votes for who stays.
    """
    rng = np.random.default_rng(seed)
    size = max(2, round(share * holds.members))
    votes = np.zeros(holds.members)
    for _ in range(bags):
        part = sorted(int(i) for i in rng.choice(holds.members, size=min(size, holds.members), replace=False))
        picked = np.array(greedy(holds, budget, among=part), dtype=float)
        votes += picked / max(picked.sum(), 1)
    kept: list[int] = []
    for member in np.argsort(-votes, kind="stable"):
        if votes[member] and budget.allows([*kept, int(member)]):
            kept.append(int(member))
    return greedy(holds, budget, among=kept)


def margin_order(holds: Holds) -> list[int]:
    """Order members so that each next one brings the rows' average margins nearest to a small positive reference.

    Helps bagging, whose members are alike: a row that the first members get wrong pulls in one that gets it right. Differs
    from the papers in that the margins are of probabilities instead of votes. A regression has no margins; there each next
    member is the one whose average has the smallest error (Hernandez-Lobato et al. 2006).
    """
    left, chosen = list(range(holds.members)), []
    total = np.zeros(holds.values.shape[1])
    while left:
        if holds.is_regression:
            distances = [float(((total + holds.values[i]) ** 2).sum()) for i in left]
        else:
            distances = [float(((MARGIN - (total + holds.margins[i]) / holds.members) ** 2).sum()) for i in left]
        chosen.append(left.pop(int(np.argmin(distances))))
        total = total + (holds.values if holds.is_regression else holds.margins)[chosen[-1]]
    return chosen


def by_margin(holds: Holds, budget: Budget) -> Weights:
    """Keep the first members of the margin order that the budget allows, each with the weight 1."""
    kept: list[int] = []
    for member in margin_order(holds):
        if budget.allows([*kept, member]):
            kept.append(member)
    return tuple(int(i in kept) for i in range(holds.members))


def subsets(holds: Holds, budget: Budget) -> list[Weights]:
    """Weigh every subset within a budget, or, where there are too many, every step of greedy paths from the best first members.

    Returns:
        Weightings without repeats, the lowest loss first.
    """
    pool, most = range(holds.members), min(budget.keep, holds.members)
    if sum(math.comb(holds.members, size) for size in range(1, most + 1)) <= MOST_SUBSETS:
        parts = [part for size in range(1, most + 1) for part in itertools.combinations(pool, size) if budget.allows(part)]
    else:
        parts = _paths(holds, budget)
    found = {greedy(holds, Budget(len(part), budget.costs), among=part) for part in parts}
    return sorted(found, key=lambda weights: (holds.loss(weights), weights))


def reduced(counts: Sequence[float] | Floats) -> Weights:
    """Divide whole-number weights by their greatest common divisor.

    Example:
        >>> reduced([4, 0, 2])
        (2, 0, 1)
    """
    whole = [round(float(one)) for one in counts]
    divisor = math.gcd(*whole) or 1
    return tuple(one // divisor for one in whole)


def inside(weights: Sequence[float]) -> list[int]:
    """List the members that a weighting keeps."""
    return [at for at, one in enumerate(weights) if one]


def _paths(holds: Holds, budget: Budget) -> list[tuple[int, ...]]:
    """Grow subsets member by member from several first members; each step is one."""
    alone = holds.losses(np.eye(holds.members))
    # By loss, and by loss a unit of cost, so that cheap members are starting points too.
    per_cost = (alone - alone.min() + 1e-9) * (budget.costs + 1e-12)
    firsts = dict.fromkeys([*np.argsort(alone)[:STARTS], *np.argsort(per_cost)[:STARTS]])
    parts = []
    for first in firsts:
        part = [int(first)]
        while budget.allows(part):
            parts.append(tuple(sorted(part)))
            fitting = [i for i in range(holds.members) if i not in part and budget.allows([*part, i])]
            if not fitting:
                break
            tried = np.zeros((len(fitting), holds.members))
            tried[:, part] = 1
            tried[range(len(fitting)), fitting] = 1
            part.append(fitting[int(np.argmin(holds.losses(tried)))])
    return list(dict.fromkeys(parts))
