"""The discrete Gaussian, drawn from up to 63 random bits an entry: no floating-point sample leaks what it hides.

Samples of continuous noise in floating point have gaps that tell the value beneath (Mironov 2012, "On significance of
the least significant bits for differential privacy"); integers have none.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Array

TAIL = 12.0  # standard deviations beyond which nothing is drawn: a mass below 1e-30
LARGEST = 2.0**20  # standard deviation, for which the table holds 130 MB
TOTAL = 62  # bits of the sum of all weights
LOW = 31  # of them in a second word, which few entries need
WIDTH, BLOCKS = 128, 32  # entries of a block, and blocks in a turn, that get one


class Table(NamedTuple):
    """Chances of magnitudes as integers of 62 bits, by the alias method (Walker 1977): each of `2^columns` columns is
    drawn alike, and gives its own number, or another where the rest of the bits is not below its threshold."""

    first: np.ndarray  # uint32[2^columns]: the other number, and behind it the upper 31 - columns bits of the threshold
    second: np.ndarray  # uint32[2^columns]: the lower 31 bits
    columns: int


def weights(sigma: float) -> np.ndarray:
    """What chances the magnitudes from 0 have, int64[K + 1] that add up to 2^62.

    Of the discrete Gaussian, which gives an integer `k` a chance proportional to `exp(-k^2 / (2 sigma^2))` (Canonne,
    Kamath and Steinke 2020). Each is right to a part in 2^44, for so exact is `exp`, or an absolute 2^-62, whichever is
    larger.

    Raises:
      InputError: `sigma` is not from 0 (which is not in) to 2^20.
    """
    if not 0 < sigma <= LARGEST:
        raise InputError(f"sigma: {sigma} is out of range; give a number over 0 and at most 2^20")
    largest = max(1, int(np.ceil(TAIL * sigma)))
    density = np.exp(-0.5 * (np.arange(largest + 1) / sigma) ** 2)
    density[1:] *= 2  # of both signs
    exact = [int(x) for x in density * 2.0**TOTAL]
    whole = sum(exact)
    shares = np.array([(x << TOTAL) // whole for x in exact], np.int64)
    shares[: (1 << TOTAL) - int(shares.sum())] += 1  # what rounding down has left over, at most one each
    return shares


def table(sigma: float) -> Table:
    """Of the discrete Gaussian of standard deviation `sigma`, see `weights`.

    Raises:
      InputError: `sigma` is not from 0 (which is not in) to 2^20.
    """
    shares = weights(sigma)
    columns = max(1, int(len(shares) - 1).bit_length())
    height = 1 << (TOTAL - columns)
    shares = np.concatenate([shares, np.zeros((1 << columns) - len(shares), np.int64)])
    # Each column lower than the height is filled up from the first higher one that has some left. That one may come to
    # lack something thereby, which the next higher one gives.
    low, high = np.flatnonzero(shares < height), np.flatnonzero(shares >= height)
    missing, spare = np.cumsum(height - shares[low]), np.cumsum(shares[high] - height)
    other, threshold = np.arange(1 << columns), np.full(1 << columns, height)
    other[low] = high[np.searchsorted(spare, missing - (height - shares[low]), side="right")]
    threshold[low] = shares[low]
    taken = np.concatenate([[0], missing])[np.searchsorted(missing, spare, side="left") + 1] if len(low) else spare
    threshold[high] = height - (taken - spare)
    other[high[:-1]] = high[1:]
    full = threshold == height  # which needs one bit more than there is room for: either number is its own
    other, threshold = np.where(full, np.arange(1 << columns), other), np.where(full, 0, threshold)
    first = (other << (TOTAL - LOW - columns)) | (threshold >> LOW)
    return Table(first.astype(np.uint32), (threshold & ((1 << LOW) - 1)).astype(np.uint32), columns)


def draw(key: Array, shape: tuple[int, ...], table: Table) -> Array:
    """Independent samples, int32[shape].

    One word holds the column, the sign and the upper bits to compare. Only where those equal the threshold's, in one
    entry of `2^(31 - columns)`, are the lower ones drawn, too.
    """
    begin, end = jax.random.split(key)
    word, rest = jax.random.bits(begin, (math.prod(shape),), jnp.uint32), TOTAL - LOW - table.columns
    column, upper = word >> (rest + 1), word & ((1 << rest) - 1)
    first = jnp.asarray(table.first).at[column].get(mode="promise_in_bounds")
    threshold = first & ((1 << rest) - 1)
    own = (upper < threshold) | _below(end, upper == threshold, column, jnp.asarray(table.second))
    magnitude = jnp.where(own, column, first >> rest).astype(jnp.int32)
    return jnp.where((word >> rest) & 1, magnitude, -magnitude).reshape(shape)


def _below(key: Array, ask: Array, column: Array, threshold: Array) -> Array:
    """Whether 31 random bits are below the threshold of each entry's column, bool[n], False where one does not `ask`.

    Blocks of entries with somebody who does get a word each, some blocks at a time, as long as there are any.
    """
    blocks = -(-ask.size // WIDTH)
    asking = jnp.pad(ask, (0, blocks * WIDTH - ask.size)).reshape(blocks, WIDTH)

    def settle(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        turn, left, below = state
        _, block = lax.top_k(left.astype(jnp.int32), min(blocks, BLOCKS))
        entry = column.at[block[:, None] * WIDTH + jnp.arange(WIDTH)].get(mode="clip")
        word = jax.random.bits(jax.random.fold_in(key, turn), entry.shape, jnp.uint32) >> (32 - LOW)
        found = asking[block] & (word < threshold[entry])
        found = jnp.where(left[block, None], found, below[block])
        return turn + 1, left.at[block].set(False), below.at[block].set(found)

    start = jnp.int32(0), asking.any(1), jnp.zeros_like(asking)
    _, _, below = lax.while_loop(lambda state: state[1].any(), settle, start)
    return below.reshape(-1)[: ask.size]
