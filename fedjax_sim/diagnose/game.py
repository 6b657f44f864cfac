"""How much of a loss each of several causes answers for, with what is known of it over seeds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

CONFIDENCE, PRIOR = 0.95, 4


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval, by Student's t; infinite ends for a single seed."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of what was measured under each seed, [seeds]."""
    count = len(values)
    if count < 2:
        return Estimate(float(np.mean(values)), -math.inf, math.inf)
    return _interval(values, float(np.var(values, ddof=1)), count - 1)


def moderated(values: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """The same of several quantities, measured under the same seeds, two at least.

    Few seeds say little of a spread, and two that agree by chance would say that there is none: variances are drawn
    towards the median of all, which counts as `PRIOR` degrees of freedom (after Smyth 2004's moderated t).
    """
    if not values:
        return {}
    variances = {name: float(np.var(each, ddof=1)) for name, each in values.items()}
    usual, own = float(np.median(list(variances.values()))), len(next(iter(values.values()))) - 1
    return {name: _interval(each, (PRIOR * usual + own * variances[name]) / (PRIOR + own), PRIOR + own)
            for name, each in values.items()}  # fmt: skip


def _interval(values: Sequence[float], variance: float, freedom: float) -> Estimate:
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance / len(values))
    return Estimate(mean, mean - half, mean + half)


def coalitions(players: Iterable[str]) -> list[frozenset[str]]:
    """Every subset, the empty one first."""
    players = list(players)
    subsets = chain.from_iterable(combinations(players, size) for size in range(len(players) + 1))
    return [frozenset(subset) for subset in subsets]


def dividends(worth: Mapping[frozenset[str], float]) -> dict[frozenset[str], float]:
    """What each coalition has beyond its parts (Harsanyi 1963): the sum over subsets with alternating signs.

    Args:
      worth: of every subset of the players; that of nobody is taken off.
    """
    found: dict[frozenset[str], float] = {}
    for coalition in sorted(worth, key=len):
        parts = sum(value for part, value in found.items() if part < coalition)
        found[coalition] = worth[coalition] - worth[frozenset()] - parts if coalition else 0.0
    return found


def shares(worth: Mapping[frozenset[str], float], rank: Callable[[str], int]) -> dict[str, float]:
    """What each player answers for; the sum is the worth of all.

    A dividend is shared alike by those of the highest rank in its coalition: the weighted Shapley value of Kalai and
    Samet (1987) with lexicographic weights, and Shapley's (1953) where all ranks are equal.
    """
    players = frozenset().union(*worth)
    found = dict.fromkeys(sorted(players), 0.0)
    for coalition, dividend in dividends(worth).items():
        if coalition:
            top = max(rank(player) for player in coalition)
            heads = [player for player in coalition if rank(player) == top]
            for player in heads:
                found[player] += dividend / len(heads)
    return found
