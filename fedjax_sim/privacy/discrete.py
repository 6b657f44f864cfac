"""The discrete Gaussian, drawn from 62 random bits an entry: no floating-point sample leaks what it hides.

Samples of continuous noise in floating point have gaps that tell the value beneath (Mironov 2012, "On significance of
the least significant bits for differential privacy"); integers have none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Array

TAIL = 12.0  # standard deviations beyond which nothing is drawn: a mass below 1e-30
LARGEST = 2.0**20  # standard deviation, for which the table holds 200 MB


class Table(NamedTuple):
    """The cumulative distribution as integers of 62 bits, in two halves of 31."""

    high: np.ndarray  # uint32[2 K + 1]
    low: np.ndarray
    largest: int  # K


def table(sigma: float) -> Table:
    """Of the discrete Gaussian, which gives an integer `k` a chance proportional to `exp(-k^2 / (2 sigma^2))` (Canonne,
    Kamath and Steinke 2020).

    Each probability is right to a part in 2^52 or an absolute 2^-62, whichever is larger.

    Raises:
      InputError: `sigma` is not from 0 (which is not in) to 2^20.
    """
    if not 0 < sigma <= LARGEST:
        raise InputError(f"sigma: {sigma} is out of range; give a number over 0 and at most 2^20")
    largest = max(1, int(np.ceil(TAIL * sigma)))
    weight = np.exp(-0.5 * (np.arange(-largest, largest + 1) / sigma) ** 2)
    upto = np.cumsum(weight) / weight.sum()
    cumulative = [int(p * 2**62) for p in upto]
    cumulative[-1] = 2**62
    # what is compared is the last integer that still means k, so that everything stays below 2^62
    last = np.array([max(c - 1, 0) for c in cumulative], np.int64)
    return Table((last >> 31).astype(np.uint32), (last & (2**31 - 1)).astype(np.uint32), largest)


def draw(key: Array, shape: tuple[int, ...], table: Table) -> Array:
    """Independent samples, int32[shape]."""
    bits = jax.random.bits(key, (2, *shape), jnp.uint32) >> 1
    high, low = jnp.asarray(table.high), jnp.asarray(table.low)
    length = len(table.high)

    def halve(_: Array, span: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = span  # the first entry that is not below the bits lies in [first, last]
        middle = (first + last) // 2
        h, low_half = high[middle], low[middle]
        below = (h < bits[0]) | ((h == bits[0]) & (low_half < bits[1]))
        return jnp.where(below, middle + 1, first), jnp.where(below, last, middle)

    start = jnp.zeros(shape, jnp.int32), jnp.full(shape, length - 1, jnp.int32)
    first, _ = lax.fori_loop(0, max(1, int(np.ceil(np.log2(length)))), halve, start)
    return first - table.largest
