"""Sending only some entries of a message."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree


def kept_entries(size: int, fraction: float) -> int:
    """Entries that are kept of `size`: the fraction rounded to the nearest, at least one if there is any."""
    return min(size, max(1, round(fraction * size)))


def _checked(fraction: float) -> float:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.number)) or not 0 < fraction <= 1:
        raise _validate.InputError(f"fraction: {fraction!r} is out of range; give a number over 0 and at most 1")
    return float(fraction)


def _values(message: PyTree, fraction: float) -> tuple[int, int, int]:
    """Entries there are, entries kept, and the bits of a value."""
    leaves = jax.tree.leaves(message)
    size = sum(leaf.size for leaf in leaves)
    return size, kept_entries(size, fraction), max(leaf.dtype.itemsize * 8 for leaf in leaves)


def top_k(fraction: float) -> Transform:
    """Keeps the `fraction` of entries that are largest in magnitude over the whole message (Aji and Heafield 2017).

    On the wire: for each entry kept its value and its index, in ceil(log2(entries)) bits. The fraction fixes shapes,
    hence is a plain number, not a traced one. Biased: put it inside `error_feedback`.

    Raises:
      InputError: `fraction` is not over 0 and at most 1.
    """
    fraction = _checked(fraction)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        flat, restore = ravel_pytree(message)
        _, kept = lax.top_k(jnp.abs(flat), kept_entries(flat.size, fraction))
        return restore(jnp.zeros_like(flat).at[kept].set(flat[kept])), memory

    def wire(message: PyTree) -> int:
        size, kept, value_bits = _values(message, fraction)
        return kept * (value_bits + math.ceil(math.log2(max(size, 2))))

    return Transform(lambda message: (), update, wire)


def random_k(fraction: float, unbiased: bool = True) -> Transform:
    """Keeps a `fraction` of the entries of the whole message, drawn at random (Stich, Cordonnier and Jaggi 2018).

    The `k` of `d` entries are multiplied by `d / k`, which makes it unbiased, with variance `(d / k - 1) |x|^2`; or,
    not `unbiased`, go as they are, which makes it a contraction by `k / d`, for inside `error_feedback` or `ef21`. On
    the wire: the values, and the 32 bits of a seed from which the server draws the same indices. The fraction fixes
    shapes, hence is a plain number, not a traced one. A NaN that is not drawn is not sent.

    Raises:
      InputError: `fraction` is not over 0 and at most 1.
    """
    fraction = _checked(fraction)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        flat, restore = ravel_pytree(message)
        count = kept_entries(flat.size, fraction)
        kept = jax.random.permutation(key, flat.size)[:count]
        scale = jnp.asarray(flat.size / max(count, 1) if unbiased else 1, flat.dtype)
        return restore(jnp.zeros_like(flat).at[kept].set(scale * flat[kept])), memory

    def wire(message: PyTree) -> int:
        _, kept, value_bits = _values(message, fraction)
        return kept * value_bits + 32

    return Transform(lambda message: (), update, wire)
