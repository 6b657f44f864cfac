"""Order statistics of a few long rows, element by element."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregators.finite import per_message
from fedjax_sim.core.types import Array

UNROLLED = 64  # rows up to which a network is one pass over memory; of more it would spill, and compile slowly


def rows_of(x: Array) -> list[Array]:
    """The rows of `x` [C, ...], one by one, so that XLA fuses what is made of them into one loop over their elements;
    more than 64 rows, or one, stay together as a list of `x` alone."""
    return list(x) if 1 < x.shape[0] <= UNROLLED else [x]


def mean_of_ranks(rows: list[Array], first: Array, last: Array) -> Array:
    """Of `rows_of` some array, in ascending order, the mean of those ranked `first` up to `last`, 0 if there are none.

    By a sorting network: it compares whole rows, element by element, which a CPU does many times faster than it sorts
    each column for itself.
    """
    if len(rows) == 1:
        ordered, rank = [sorted_rows(rows[0])], [per_message(jnp.arange(len(rows[0])), rows[0])]
    else:
        ordered, rank = _ascending(list(rows)), range(len(rows))
    chosen = [jnp.where((r >= first) & (r < last), row, 0) for r, row in zip(rank, ordered, strict=True)]
    return sum_of_rows(chosen) / jnp.maximum(last - first, 1).astype(rows[0].dtype)


def sum_of_rows(rows: list[Array]) -> Array:
    """The sum over `rows_of` some array."""
    if len(rows) == 1:
        return rows[0].sum(0)
    while len(rows) > 1:  # in pairs of pairs: behind a long chain of sums, XLA no longer fuses the whole network
        rows = [a + b for a, b in zip(rows[::2], rows[1::2], strict=False)] + rows[len(rows) // 2 * 2 :]
    return rows[0]


def sorted_rows(x: Array) -> Array:
    """`x` [C, ...] in ascending order along its first axis, as `jnp.sort(x, axis=0)` of numbers.

    Each stage of the network is a pass over all rows.
    """
    for upper, lower in _stages(x.shape[0]):
        partner = np.arange(x.shape[0])
        partner[upper], partner[lower] = lower, upper
        other = x[partner]
        low = per_message(partner > np.arange(x.shape[0]), x)
        x = jnp.where(low, jnp.minimum(x, other), jnp.maximum(x, other))  # a row beside itself stays
    return x


def _ascending(rows: list[Array]) -> list[Array]:
    """The same network of single rows."""
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
