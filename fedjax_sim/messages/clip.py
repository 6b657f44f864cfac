"""Clipping a message to a norm."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree, squared_norm


def norm(tree: PyTree, order: int) -> Array:
    """L1 or L2 norm over all leaves of `tree` together, f32[]."""
    if order == 1:
        return jnp.stack([jnp.abs(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]).sum()
    return jnp.sqrt(squared_norm(tree))


def clip(clip_norm: Any, order: int = 2) -> Transform:
    """Scales the message down to an L1 (`order=1`) or L2 norm of at most `clip_norm`, over all its leaves together.

    A message whose norm is not a finite float32 is replaced by zeros: whatever a client sends, the result's norm is at
    most `clip_norm`.

    Raises:
      InputError: `clip_norm` is not over 0, or `order` is neither 1 nor 2.
    """
    _validate.number("clip_norm", clip_norm, above=0)
    _validate.one_of("order", order, (1, 2))

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        size = norm(message, order)
        scale, finite = clip_norm / jnp.where(size > 0, size, 1), jnp.isfinite(size)

        def clipped(x: Array) -> Array:  # in float32, and short by one rounding of the message's own precision
            scaled = (x.astype(jnp.float32) * scale * (1 - jnp.finfo(x.dtype).eps)).astype(x.dtype)
            return jnp.where(finite, jnp.where(size > clip_norm, scaled, x), 0)

        return jax.tree.map(clipped, message), memory

    return Transform(lambda message: (), update, lambda message: None)
