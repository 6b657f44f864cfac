"""Random numbers that are a function of their words alone: seed, purpose, client id, round.

They depend on no order and no batch, and leave no state. The words are hashed one after another by the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): good for simulation, not for
secrets.
"""

from collections.abc import Callable, Iterator

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError

Draw = Callable[[int, int], np.ndarray]  # (seed, turn) -> client ids int[k], -1 for nobody: a sampler's `draw`

_MASK = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# What a number is for: the second word of every draw.
DOWNLINK, UPLINK, COMPUTE, DROPOUT, PERIOD, PHASE, ROW, LINK, PHONE, CANDIDATE, SPARE, FOLLOW = range(1, 13)


def uniform(seed: int, purpose: int, *words: np.ndarray | int) -> np.ndarray:
    """Uniform float64 numbers between 0 and 1 (neither is drawn), of the shape that the words broadcast to."""
    shape = np.broadcast_shapes(*(np.shape(word) for word in words))
    first = 0
    for word in (seed, purpose):
        first = _mixed_of(((first + _STEP) & _MASK) ^ (word & _MASK))
    state = np.array([first], np.uint64)
    for word in words:
        word = np.atleast_1d(np.asarray(word)).astype(np.int64).astype(np.uint64)
        state = _mixed((state + np.uint64(_STEP)) ^ word)
    high = _mixed(state + np.uint64(_STEP)) >> np.uint64(11)
    return np.broadcast_to((high.astype(np.float64) + 0.5) * 2.0**-53, shape or (1,)).reshape(shape)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))


def uniform_of(seed: int, purpose: int, *words: int) -> float:
    """One number of `uniform`, without the cost of arrays."""
    state = 0
    for word in (seed, purpose, *words):
        state = _mixed_of(((state + _STEP) & _MASK) ^ (word & _MASK))
    return ((_mixed_of((state + _STEP) & _MASK) >> 11) + 0.5) * 2.0**-53


def _mixed_of(state: int) -> int:
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def normal(seed: int, purpose: int, *words: np.ndarray | int) -> np.ndarray:
    """Standard normal float64 numbers, by the transform of Box and Muller (1958)."""
    radius = np.sqrt(-2 * np.log(uniform(seed, purpose, *words, 0)))
    return radius * np.cos(2 * np.pi * uniform(seed, purpose, *words, 1))


def pick(seed: int, purpose: int, ids: np.ndarray, choices: int) -> np.ndarray:
    """One of `choices` for each client, int64."""
    return np.minimum((uniform(seed, purpose, ids) * choices).astype(np.int64), choices - 1)


def candidates(draw: Draw | None, seed: int, clients: int) -> Iterator[int]:
    """Client ids one after another: uniform ones, or those of `draw` turn by turn.

    Raises:
      InputError: `draw` gives a client that does not exist, or for 1000 turns nobody.
    """
    turn, empty = 0, 0
    while True:
        if draw is None:
            ids = pick(seed, CANDIDATE, np.arange(1024 * turn, 1024 * (turn + 1)), clients)
        else:
            ids = _validate.client_ids(draw(seed, turn), clients)
            ids = ids[ids >= 0]
            empty = 0 if len(ids) else empty + 1
            if empty >= 1000:
                raise InputError(f"draw: 1000 turns up to {turn} gave nobody; return ids from 0 to {clients - 1}")
        yield from ids.tolist()
        turn += 1
