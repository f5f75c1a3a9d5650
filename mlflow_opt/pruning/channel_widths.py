"""How many units each layer keeps: the widths that cost the least loss for the multiplications they save.

The same share from every layer wastes what an insensitive layer could give. Here the next units always come from the
family whose measured loss grows least for the multiplications saved, which is the greedy solution of the knapsack that
the widths are, until no more multiplications are left than asked for. Widths move in steps that the runtime can use.

Reference: Yang et al. 2018, "NetAdapt: platform-aware neural network adaptation for mobile applications", whose empirical
measurements decide here too: the budget of multiplications itself is found from measured latency (`search_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow_opt.pruning.channel_graph import Couplings, Family

# Shares of a family's units at which its sensitivity is measured.
LEVELS = (0.25, 0.5, 0.75)
# A family keeps this share: what is left of a layer has to carry everything behind it.
_LEAST = 1 / 16
# Beyond the last measured level the loss is taken to grow this much faster: layers fail suddenly.
_STEEPER = 3.0
_HALVINGS = 6


@dataclass(frozen=True)
class Tried:
    """A budget that the search has tried: the share of multiplications left, and the speed-up measured."""

    share: float
    speedup: float


def step_of(features: Collection[str]) -> int:
    """Tell how many channels the runtime computes at once: other widths are padded to a multiple of it.

    Example:
        >>> step_of({"avx2"}), step_of({"avx2", "avx512f"})
        (8, 16)

    Args:
        features: of the CPU, as `fingerprint.cpu_features` gives them.
    """
    return 16 if any(one.startswith("avx512") for one in features) else 8


def choose_widths(couplings: Couplings, sensitivity: Mapping[str, Sequence[float]], share: float, step: int) -> dict[str, int]:
    """Choose how many units each family keeps.

    Args:
        couplings: of the network.
        sensitivity: family -> growth of its loss at `LEVELS`.
        share: of the multiplications that may be left, in (0, 1]; the widths come as near below it as they can.
        step: channels in which widths move.

    Returns:
        family -> units kept.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of multiplications left must be in (0, 1], got {share}; a layer cannot be emptied.")
    families = {one.name: one for one in couplings.families if one.name in sensitivity}
    cost = _Cost(couplings, list(families.values()))
    kept = {name: len(one.units) for name, one in families.items()}
    budget = share * cost.of(kept)
    while cost.of(kept) > budget:
        now = cost.of(kept)
        options = [(name, _next_width(families[name], kept[name], step)) for name in kept]
        prices = [
            (_price(families[name], kept[name], width, sensitivity[name]) / max(now - cost.of({**kept, name: width}), 1.0), name, width)
            for name, width in options
            if width < kept[name]
        ]
        if not prices:
            break
        _, name, width = min(prices)
        kept[name] = width
    return kept


def even_widths(couplings: Couplings, share: float, step: int) -> dict[str, int]:
    """Keep the same share of units in every family, whatever share of the multiplications that leaves."""
    kept = {}
    for family in couplings.families:
        units = max(1, math.ceil(step / family.width))
        kept[family.name] = min(len(family.units), max(units, units * round(share * len(family.units) / units)))
    return kept


def weakest_first(family: Family, importance: Mapping[int, float]) -> list[int]:
    """Rank a family's units; units without an importance are not among them."""
    return sorted((unit for unit in family.units if unit in importance), key=lambda unit: (importance[unit], unit))


def units_to_remove(couplings: Couplings, widths: Mapping[str, int], importance: Mapping[int, float]) -> list[int]:
    """Name the least important units of every family beyond its width; the last one of a layer stays."""
    return couplings.spared(
        unit
        for family in couplings.families
        for unit in weakest_first(family, importance)[: max(0, len(family.units) - widths.get(family.name, len(family.units)))]
    )


def search_share(speedup_of: Callable[[float], float], wanted: float) -> tuple[float, list[Tried]]:
    """Find by bisection the largest share of multiplications at which a speed-up is reached.

    Args:
        speedup_of: prunes to a share and measures; fewer multiplications are taken to be faster, within the noise.
        wanted: speed-up.

    Returns:
        The share, and all that was tried. If nothing reaches the speed-up, the smallest share that was tried.
    """
    low, high, tried = 0.0, 1.0, []
    share = min(0.5, 1 / wanted) if wanted > 1 else 1.0
    for _ in range(_HALVINGS):
        tried.append(Tried(share, speedup_of(share)))
        if tried[-1].speedup >= wanted:
            low = share
        else:
            high = share
        share = (low + high) / 2 if low else high / 2
    reached = [one for one in tried if one.speedup >= wanted]
    # The smallest is the nearest, whichever of several alike the noise made the fastest.
    return max((one.share for one in reached), default=tried[-1].share), tried


def _next_width(family: Family, kept: int, step: int) -> int:
    """Give the next smaller width: a multiple of the step, and never less than a family must keep."""
    # Below one step nothing is gained by it, and narrow layers have nothing but odd widths to go to.
    units = max(1, math.ceil((step if kept * family.width > step else step / 4) / family.width))
    least = max(1, math.ceil(_LEAST * len(family.units)))
    smaller = (kept - 1) // units * units
    return smaller if smaller >= least else kept


def _price(family: Family, before: int, after: int, losses: Sequence[float]) -> float:
    return _grown(1 - after / len(family.units), losses) - _grown(1 - before / len(family.units), losses)


def _grown(removed: float, losses: Sequence[float]) -> float:
    """Read the loss at a share removed off the measured curve; a trickle on top breaks ties in favour of wide families."""
    steep = losses[-1] + _STEEPER * max(losses[-1] - losses[-2], 1e-6) * (1 - LEVELS[-1]) / (LEVELS[-1] - LEVELS[-2])
    return float(np.interp(removed, [0.0, *LEVELS, 1.0], [0.0, *losses, steep])) + 1e-6 * removed


class _Cost:
    """Counts multiplications for widths, without asking which units are gone: units of a family are alike."""

    def __init__(self, couplings: Couplings, families: Sequence[Family]) -> None:
        home = {unit: at for at, family in enumerate(families) for unit in family.units}
        self._names = [family.name for family in families]
        self._counts = np.array([len(family.units) for family in families], dtype=float)
        self._macs = np.array([one.macs for one in couplings.products])
        shape = (len(couplings.products), max((len(one.axes) for one in couplings.products), default=0), len(families))
        self._shares = np.zeros(shape)
        for at, product in enumerate(couplings.products):
            for place, units in enumerate(product.axes):
                for unit in units.tolist():
                    if unit in home:
                        self._shares[at, place, home[unit]] += 1 / len(units)

    def of(self, kept: Mapping[str, int]) -> float:
        gone = 1 - np.array([kept[name] for name in self._names]) / self._counts
        return float((self._macs * (1 - self._shares @ gone).prod(axis=1)).sum())
