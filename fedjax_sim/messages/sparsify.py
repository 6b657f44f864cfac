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
    """Entries that `top_k` keeps of `size`: the fraction rounded to the nearest, at least one."""
    return max(1, round(fraction * size))


def top_k(fraction: float) -> Transform:
    """Keeps the `fraction` of entries that are largest in magnitude over the whole message (Aji and Heafield 2017).

    On the wire: for each entry kept its value and its index, in ceil(log2(entries)) bits. The fraction fixes shapes,
    hence is a plain number, not a traced one. Biased: put it inside `error_feedback`.

    Raises:
      InputError: `fraction` is not over 0 and at most 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.number)) or not 0 < fraction <= 1:
        raise _validate.InputError(f"fraction: {fraction!r} is out of range; give a number over 0 and at most 1")

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        flat, restore = ravel_pytree(message)
        _, kept = lax.top_k(jnp.abs(flat), kept_entries(flat.size, fraction))
        return restore(jnp.zeros_like(flat).at[kept].set(flat[kept])), memory

    def wire(message: PyTree) -> int:
        leaves = jax.tree.leaves(message)
        size = sum(leaf.size for leaf in leaves)
        value_bits = max(leaf.dtype.itemsize * 8 for leaf in leaves)
        return kept_entries(size, fraction) * (value_bits + math.ceil(math.log2(max(size, 2))))

    return Transform(lambda message: (), update, wire)
