"""Noise on every entry of a message. It says nothing about privacy: `fedjax_sim.privacy` does."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree


def add_laplace(scale: Any) -> Transform:
    """Adds independent Laplace noise of the given scale (standard deviation `sqrt(2) * scale`) to every entry.

    Raises:
      InputError: `scale` is not over 0.
    """
    _validate.number("scale", scale, above=0)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(message)
        keys = jax.random.split(key, len(leaves))

        def noisy(x: Array, key: Array) -> Array:
            return x + jnp.asarray(scale, x.dtype) * jax.random.laplace(key, x.shape, x.dtype)

        return jax.tree.unflatten(structure, map(noisy, leaves, keys)), memory

    return Transform(lambda message: (), update, lambda message: None)
