"""Order statistics of a few long rows, element by element."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Array

UNROLLED = 64  # rows up to which a network is one pass over memory; of more it would spill, and compile slowly


def mean_of_ranks(x: Array, first: Array, last: Array) -> Array:
    """Of `x` [C, ...] in ascending order along its first axis, the mean of rows `first` up to `last`, 0 if there are
    none. Up to 64 rows nothing but the result is written to memory."""
    if x.shape[0] <= UNROLLED:
        rows = _ascending(list(x))
        total = sum_of_rows([jnp.where((rank >= first) & (rank < last), row, 0) for rank, row in enumerate(rows)])
    else:
        rank = jnp.arange(x.shape[0]).reshape((-1,) + (1,) * (x.ndim - 1))
        total = sum_of_rows(jnp.where((rank >= first) & (rank < last), sorted_rows(x), 0))
    return total / jnp.maximum(last - first, 1).astype(x.dtype)


def sum_of_rows(x: Array | list[Array]) -> Array:
    """`x.sum(0)`, which for up to 64 rows is fused into what makes them."""
    rows = list(x) if len(x) <= UNROLLED else [jnp.asarray(x).sum(0)]
    return sum(rows[1:], rows[0])


def sorted_rows(x: Array) -> Array:
    """`x` [C, ...] in ascending order along its first axis, as `jnp.sort(x, axis=0)` of numbers.

    A sorting network: each stage compares whole rows, element by element, which a CPU does many times faster than it
    sorts each column for itself.
    """
    for upper, lower in _stages(x.shape[0]):
        partner = np.arange(x.shape[0])
        partner[upper], partner[lower] = lower, upper
        other = x[partner]
        low = (partner > np.arange(x.shape[0])).reshape((-1,) + (1,) * (x.ndim - 1))
        x = jnp.where(low, jnp.minimum(x, other), jnp.maximum(x, other))  # a row beside itself stays
    return x


def _ascending(rows: list[Array]) -> list[Array]:
    """The same network of single rows, which XLA fuses into one loop over their elements."""
    for upper, lower in _stages(len(rows)):
        for i, j in zip(upper, lower, strict=True):
            rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    return rows


def _stages(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batcher's odd-even merge sort of `count` rows: in each stage the pairs of rows of which the upper gets the
    smaller values. A network for a power of two, without what would compare with rows beyond."""
    merged = 1
    while merged < count:
        distance = merged
        while distance:
            firsts = range(distance % merged, count - distance, 2 * distance)
            upper = np.concatenate([np.arange(f, min(f + distance, count - distance)) for f in firsts])
            upper = upper[upper // (2 * merged) == (upper + distance) // (2 * merged)]
            yield upper, upper + distance
            distance //= 2
        merged *= 2
