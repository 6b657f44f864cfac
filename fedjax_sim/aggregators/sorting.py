"""Sorting a few long rows against each other."""

import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Array


def sorted_rows(x: Array) -> Array:
    """`x` [C, ...] in ascending order along its first axis, as `jnp.sort(x, axis=0)` of numbers.

    A sorting network: each stage compares whole rows, element by element, which a CPU does many times faster than it
    sorts each column for itself.
    """
    for partner, lower in _stages(x.shape[0]):
        other = x[partner]
        low = lower.reshape((-1,) + (1,) * (x.ndim - 1))
        x = jnp.where(low, jnp.minimum(x, other), jnp.maximum(x, other))  # a row beside itself stays
    return x


def _stages(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batcher's odd-even merge sort of `count` rows: in each stage every row's partner, and whether it is the upper of
    the two and takes the smaller values. A network for a power of two, without what would compare with rows beyond."""
    stages, merged = [], 1
    while merged < count:
        distance = merged
        while distance:
            partner = np.arange(count)
            for first in range(distance % merged, count - distance, 2 * distance):
                upper = np.arange(first, min(first + distance, count - distance))
                upper = upper[upper // (2 * merged) == (upper + distance) // (2 * merged)]
                partner[upper], partner[upper + distance] = upper + distance, upper
            stages.append((partner, partner > np.arange(count)))
            distance //= 2
        merged *= 2
    return stages
