"""Which clients take part in a round: each sampler is a pure function of (seed, round), so resuming needs no replay.

`N` clients in the population, `C` slots in a cohort. None but `by_size` and `everyone` costs anything that grows with
`N`. Subsets come from the swap-or-not shuffle of `core.permute`: good for simulation, not for secrets.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.permute import enough_passes, permuted
from fedjax_sim.core.round import SAMPLE, stage_key

Available = Callable[[np.ndarray, int], np.ndarray]  # (ids int64[k], round) -> bool[k]: who can be reached


class Sampler(NamedTuple):
    """`draw(seed, round)` returns the cohort's client ids, int32[slots], all different; -1 marks an empty slot."""

    slots: int  # C
    draw: Callable[[int, int], np.ndarray]


def uniform(num_clients: int, cohort_size: int, *, available: Available | None = None) -> Sampler:
    """`cohort_size` clients uniformly without replacement, of those that are available; all of them if they are fewer.

    Without a mask the cohorts are those that `make_simulation` draws on the device from `jax.random.key(seed)`.

    Raises:
      InputError: more clients are asked for than there are.
    """
    _sizes(num_clients, cohort_size)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        return _filled(_walk(seed, round, num_clients, cohort_size, cohort_size, available), cohort_size)

    return Sampler(cohort_size, draw)


def poisson(num_clients: int, rate: float, *, available: Available | None = None) -> Sampler:
    """Every client takes part with probability `rate`, independently (Poisson sampling, what DP accounting assumes).

    The number of clients is drawn from the binomial distribution and that many uniformly, which is the same law.
    `slots` is exceeded with a probability below 1e-12; `draw` then raises instead of leaving somebody out.

    Raises:
      InputError: a rate that is not over 0 and at most 1; from `draw`, more clients than slots.
    """
    _validate.whole("num_clients", num_clients)
    if _validate.real("rate", rate, above=0) > 1:
        raise InputError(f"rate: {rate} is over 1; give a probability")
    slots = _slots(num_clients, rate)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        count = int(np.random.default_rng([seed, round, SAMPLE]).binomial(num_clients, rate))
        if count > slots:
            raise InputError(f"rate: round {round} drew {count} clients for {slots} slots; take another seed")
        ids = _walk(seed, round, num_clients, count, count, None)
        return _filled(ids if available is None else ids[_mask(available, ids, round)], slots)

    return Sampler(slots, draw)


def _slots(num_clients: int, rate: float, chance: float = 1e-12) -> int:
    """The smallest count that Chernoff's bound says is exceeded with a probability below `chance`."""

    def bound(count: int) -> float:  # log of the bound on P(Binomial > count)
        a = min((count + 1) / num_clients, 1.0)
        rest = (1 - a) * math.log((1 - a) / (1 - rate)) if a < 1 else 0.0
        return -num_clients * (a * math.log(a / rate) + rest)

    low, high = math.ceil(num_clients * rate), num_clients
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(middle) < math.log(chance) else (middle + 1, high)
    return low


def by_size(offsets: np.ndarray, cohort_size: int, *, available: Available | None = None) -> Sampler:
    """`cohort_size` clients drawn one after another with a chance proportional to their examples, without replacement.

    Weight their messages uniformly (scheme II of Li et al. 2020, "On the convergence of FedAvg on non-IID data", draws
    with replacement): weights by examples would count size twice. Clients without examples are never drawn.

    Args:
      offsets: int[N + 1], where each client's rows begin; a mapped file is not read as a whole unless it must.
      cohort_size: `C`.
      available: who can be reached.

    Raises:
      InputError: more clients are asked for than there are.
    """
    num_clients = len(offsets) - 1
    _sizes(num_clients, cohort_size)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        rng = np.random.default_rng([seed, round, SAMPLE])
        chosen: dict[int, None] = {}
        for _ in range(16):  # a uniform row belongs to a client with a chance proportional to its size
            owners = np.searchsorted(offsets, rng.integers(0, int(offsets[-1]), 2 * cohort_size), side="right") - 1
            reached = owners if available is None else owners[_mask(available, owners, round)]
            chosen |= dict.fromkeys(reached.tolist())
            if len(chosen) >= cohort_size:
                return _filled(np.array(list(chosen)[:cohort_size]), cohort_size)
        # few clients hold nearly everything, or few can be reached: go on with those that are left
        sizes = np.diff(offsets).astype(np.float64)
        sizes[list(chosen)] = 0
        if available is not None:
            sizes[~_mask(available, np.arange(num_clients), round)] = 0
        count = min(cohort_size - len(chosen), int(np.count_nonzero(sizes)))
        more = rng.choice(num_clients, count, replace=False, p=sizes / sizes.sum()) if count else []
        return _filled(np.array([*chosen, *more], np.int64), cohort_size)

    return Sampler(cohort_size, draw)


def round_robin(num_clients: int, cohort_size: int, *, available: Available | None = None) -> Sampler:
    """The next `cohort_size` clients of one seeded order, over and over; who is not available misses the turn.

    Raises:
      InputError: more clients are asked for than there are.
    """
    _sizes(num_clients, cohort_size)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        first = round * cohort_size % num_clients
        positions = np.concatenate(
            [np.arange(first, min(first + cohort_size, num_clients)), np.arange(first + cohort_size - num_clients)]
        )
        ids = _order(seed, 0, num_clients, positions)  # one order for the whole run
        return _filled(ids if available is None else ids[_mask(available, ids, round)], cohort_size)

    return Sampler(cohort_size, draw)


def everyone(num_clients: int, *, available: Available | None = None) -> Sampler:
    """All clients in every round, or all that are available."""
    _validate.whole("num_clients", num_clients)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        ids = np.arange(num_clients)
        return _filled(ids if available is None else ids[_mask(available, ids, round)], num_clients)

    return Sampler(num_clients, draw)


def custom(function: Callable[[int, int], Any], num_clients: int, cohort_size: int) -> Sampler:
    """Your own `function(seed, round)`, which returns up to `cohort_size` different client ids.

    Raises:
      InputError: from `draw`, ids that are no whole numbers, do not exist, appear twice or are too many.
    """
    _sizes(num_clients, cohort_size)

    def draw(seed: int, round: int) -> np.ndarray:
        _check_turn(seed, round)
        ids = np.asarray(function(seed, round))
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(f"sampler: round {round} gave {ids.dtype}{list(ids.shape)}; return whole numbers [C]")
        wrong = ids[(ids < 0) | (ids >= num_clients)]
        if len(wrong):
            raise InputError(f"sampler: round {round} gave client {wrong[0]}; return ids from 0 to {num_clients - 1}")
        if len(ids) > cohort_size or len(np.unique(ids)) < len(ids):
            raise InputError(
                f"sampler: round {round} gave {len(ids)} ids, {len(np.unique(ids))} of them different; "
                f"return at most {cohort_size} different ones"
            )
        return _filled(ids, cohort_size)

    return Sampler(cohort_size, draw)


def draw_rounds(sampler: Sampler, seed: int, first: int, rounds: int) -> np.ndarray:
    """The cohorts of `rounds` rounds from round `first` (counted from 0), int32[rounds, C]."""
    return np.stack([sampler.draw(seed, first + i) for i in range(rounds)])


SAMPLERS = ("uniform", "poisson", "by_size", "round_robin", "all")


def make_sampler(name: str, offsets: np.ndarray, cohort_size: int, *, available: Available | None = None) -> Sampler:
    """A sampler by its name in `SAMPLERS`; the rate of "poisson" is `cohort_size / N`.

    Raises:
      InputError: an unknown name, or more clients asked for than there are.
    """
    _validate.one_of("sampling", name, SAMPLERS)
    num_clients = len(offsets) - 1
    _sizes(num_clients, cohort_size)
    if name == "by_size":
        return by_size(offsets, cohort_size, available=available)
    if name == "poisson":
        return poisson(num_clients, cohort_size / num_clients, available=available)
    if name == "all":
        return everyone(num_clients, available=available)
    return (uniform if name == "uniform" else round_robin)(num_clients, cohort_size, available=available)


def _check_turn(seed: int, round: int) -> None:
    for name, value, limit in (("seed", seed, 2**32), ("round", round, 2**31)):
        if _validate.whole(name, value, least=0) >= limit:
            raise InputError(f"{name}: {value} is too large; give a number below {limit}")


def _sizes(num_clients: int, cohort_size: int) -> None:
    _validate.whole("num_clients", num_clients)
    _validate.whole("cohort_size", cohort_size)
    if cohort_size > num_clients:
        raise InputError(f"cohort_size: {cohort_size} is more than the {num_clients} clients; ask for fewer")


def _walk(seed: int, round: int, num_clients: int, count: int, chunk: int, available: Available | None) -> np.ndarray:
    """The first `count` available clients of the round's own random order: uniform without replacement among them."""
    found, first = np.zeros(0, np.int64), 0
    while len(found) < count and first < num_clients:
        ids = _order(seed, round, num_clients, np.arange(first, min(first + chunk, num_clients)))
        found = np.concatenate([found, ids if available is None else ids[_mask(available, ids, round)]])
        first, chunk = first + chunk, 2 * chunk
    return found[:count]


@partial(jax.jit, static_argnums=(2,))
def _permuted(seed: Any, round: Any, num_clients: int, positions: Any) -> Any:
    key = stage_key(jax.random.key(seed), round, SAMPLE)
    return permuted(key, jnp.int32(num_clients), positions, passes=enough_passes(num_clients), unroll=False)


def _order(seed: int, round: int, num_clients: int, positions: np.ndarray) -> np.ndarray:
    """The clients at these positions of the round's random order, int64; few lengths, for each is compiled."""
    padded = np.zeros(1 << max(4, (len(positions) - 1).bit_length()), np.int32)
    padded[: len(positions)] = positions
    return np.asarray(_permuted(np.uint32(seed), np.int32(round), num_clients, padded), np.int64)[: len(positions)]


def _mask(available: Available, ids: np.ndarray, round: int) -> np.ndarray:
    mask = np.asarray(available(ids, round))
    if mask.shape != ids.shape or mask.dtype != bool:
        raise InputError(
            f"available: round {round} gave {mask.dtype}{list(mask.shape)} for {len(ids)} clients; return one bool each"
        )
    return mask


def _filled(ids: np.ndarray, slots: int) -> np.ndarray:
    cohort = np.full(slots, -1, np.int32)
    cohort[: len(ids)] = ids
    return cohort
