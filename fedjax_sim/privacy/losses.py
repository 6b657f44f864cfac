"""Privacy losses of one mechanism, how they add up over many, and what epsilon they leave at a delta."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np

GRID = 1e-3  # spacing of the privacy losses that distributions are kept at; epsilons err upwards
STRIDE = 32
ADD, REPLACE, ZERO = "add or remove one", "replace one", "zero out one"


def without_replacement(cohort: int, num_clients: int, noise_multiplier: float) -> Any:
    """The privacy loss distribution of Gaussian noise on the sum of `C` of `N` clients drawn without replacement, one
    of them replaced by any other.

    Draw the others of the cohort first, and one client more that comes in where the replaced one does not. Given
    these, the sum is at some place `r` with chance `1 - q`, `q = C / N`, and else at `a` on the one data and at `b` on
    the other, where no two of `a`, `b` and `r` are more than two clip norms apart. By advanced joint convexity (Balle,
    Barthe and Gaboardi 2018, theorem 2) the divergence of order `e^epsilon` is at most that of `(1 - q) G(0) + q G(2)`
    from `G(0)` where epsilon is 0 or more, `G` being the Gaussian, and at most that of the opposite order where it is
    less. Both together are the profile of one pair of distributions, and such pairs compose (Zhu, Dong and Wang 2022,
    theorem 10). Neither half alone would do, nor would the worst case of Poisson sampling (Lebeda et al. 2024).
    """
    from dp_accounting.pld import pld_pmf, privacy_loss_distribution, privacy_loss_mechanism

    kinds = privacy_loss_mechanism.AdjacencyType
    remove, add = (
        privacy_loss_mechanism.GaussianPrivacyLoss(
            noise_multiplier / 2, sampling_prob=cohort / num_clients, adjacency_type=kind
        )
        for kind in (kinds.REMOVE, kinds.ADD)
    )
    highest, lowest = remove.connect_dots_bounds().epsilon_upper, add.connect_dots_bounds().epsilon_lower
    assert highest is not None
    assert lowest is not None
    high, low = max(1, math.ceil(highest / GRID)), min(-1, math.floor(lowest / GRID))
    upper = remove.get_delta_for_epsilon((GRID * np.arange(high + 1)).tolist())
    lower = add.get_delta_for_epsilon((GRID * np.arange(low, 0)).tolist())
    one = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(GRID, low, high, np.concatenate([lower, upper]))
    return privacy_loss_distribution.PrivacyLossDistribution(one)


def by_pld(one: Callable[[], Any], delta: float) -> Callable[[int], float]:
    """Epsilon of so many mechanisms whose privacy loss distribution `one` makes when it is first needed.

    A function of the number alone, so that a resumed run finds the same; and quick for one number after another: those
    below `STRIDE` are composed of powers of two, the others of one below and a multiple of it.
    """
    single = cache(one)

    @lru_cache(maxsize=2)
    def high(times: int) -> Any:
        return single().self_compose(times)

    @cache
    def low(times: int) -> Any:
        if rest := times & (times - 1):
            return low(rest).compose(low(times - rest))
        return low(times // 2).compose(low(times // 2)) if times > 1 else single()

    @cache
    def epsilon(times: int) -> float:
        parts = [
            *([high(times - times % STRIDE)] if times >= STRIDE else []),
            *([low(n)] if (n := times % STRIDE) else []),
        ]
        if not parts:
            return 0.0
        return least_epsilon(parts[0].compose(parts[1]) if len(parts) == 2 else parts[0], delta)

    return epsilon


def least_epsilon(distribution: Any, delta: float) -> float:
    """The least epsilon that a privacy loss distribution has at `delta`, infinity if none: what the library finds by a
    loop in Python over all losses, from its arrays at once."""
    try:
        sides = [side.to_dense_pmf() for side in (distribution._pmf_remove, distribution._pmf_add)]
        tables = [((side._lower_loss + np.arange(side.size)) * side._discretization, side._probs, side._infinity_mass)
                  for side in (sides[:1] if distribution._symmetric else sides)]  # fmt: skip
    except AttributeError:  # a version of the library that names them otherwise
        return float(distribution.get_epsilon_for_delta(delta))
    if max(losses[-1] for losses, *_ in tables) > 700:  # whose exponentials are no numbers
        return float(distribution.get_epsilon_for_delta(delta))
    return max(_crossing(*table, delta) for table in tables)


def _crossing(losses: np.ndarray, masses: np.ndarray, infinite: float, delta: float) -> float:
    """Where `sum of (1 - e^(epsilon - loss)) mass` over the losses above epsilon falls to `delta`, 0 at least."""
    if infinite > delta:
        return math.inf
    losses, masses = losses[::-1], masses[::-1]
    count = int(np.count_nonzero(losses > 0))
    losses, masses = losses[:count], masses[:count]
    upper, lower = infinite + np.cumsum(masses), np.cumsum(np.exp(-losses) * masses)
    above = upper - np.exp(losses) * lower > delta  # at each of the losses
    last = (int(np.argmax(above)) if above.any() else count) - 1  # that counts where the sum is delta
    if last < 0 or upper[last] - delta <= lower[last]:
        return 0.0
    return math.log((upper[last] - delta) / lower[last])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the accountant's remarks on orders that it leaves out, which nobody asked for."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def by_rdp(event: Any, delta: float, relation: str, *, each: int = 1, missing: float = 0.0) -> Callable[[int], float]:
    """Epsilon of so many times `each` events, by Renyi differential privacy, where every time takes `missing` off
    `delta`."""
    from dp_accounting import NeighboringRelation, rdp

    which = NeighboringRelation.REPLACE_ONE if relation == REPLACE else NeighboringRelation.ADD_OR_REMOVE_ONE

    @cache
    def single() -> Any:
        with _quiet():
            return rdp.RdpAccountant(neighboring_relation=which).compose(event)

    @cache
    def epsilon(times: int) -> float:
        left = delta - times * missing
        if not times or left <= 0:
            return math.inf if times else 0.0
        return float(rdp.compute_epsilon(single().orders, times * each * single().rdp, left)[0])

    return epsilon


def least(*bounds: Callable[[int], float]) -> Callable[[int], float]:
    """The least of bounds that all hold for the same relation."""
    return cache(lambda times: min(bound(times) for bound in bounds))
