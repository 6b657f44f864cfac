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


def clipped(tree: PyTree, clip_norm: Any, order: int = 2, per_leaf: bool = False) -> tuple[PyTree, Array]:
    """`tree` scaled down to an L1 or L2 norm of at most `clip_norm`, and whether it was as it is already, bool[].

    With `per_leaf` each of the `n` leaves is scaled to its share alone, `clip_norm / n` of an L1 norm and `clip_norm /
    sqrt(n)` of an L2 norm, so that one large layer does not silence the others ("flat" per-layer clipping of McMahan et
    al. 2018, section 3). A tree, or leaf, whose norm is not a finite float32 becomes zeros: whatever comes in, the
    norm of what comes out is at most `clip_norm`.
    """
    leaves, structure = jax.tree.flatten(tree)
    if per_leaf:
        share = clip_norm / (len(leaves) if order == 1 else len(leaves) ** 0.5)
        parts = [clipped(leaf, share, order) for leaf in leaves]
        return structure.unflatten([part for part, _ in parts]), jnp.stack([fits for _, fits in parts]).all()
    size = norm(tree, order)
    scale, finite = clip_norm / jnp.where(size > 0, size, 1), jnp.isfinite(size)

    def shrunk(x: Array) -> Array:  # in float32, and short by one rounding of the message's own precision
        scaled = (x.astype(jnp.float32) * scale * (1 - jnp.finfo(x.dtype).eps)).astype(x.dtype)
        return jnp.where(finite, jnp.where(size > clip_norm, scaled, x), 0)

    return structure.unflatten(map(shrunk, leaves)), finite & (size <= clip_norm)


def clip(clip_norm: Any, order: int = 2, per_leaf: bool = False) -> Transform:
    """Scales the message down to an L1 (`order=1`) or L2 norm of at most `clip_norm`, see `clipped`.

    Raises:
      InputError: `clip_norm` is not over 0, or `order` is neither 1 nor 2.
    """
    _validate.number("clip_norm", clip_norm, above=0)
    _validate.one_of("order", order, (1, 2))

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        return clipped(message, clip_norm, order, per_leaf)[0], memory

    return Transform(lambda message: (), update, lambda message: None)
