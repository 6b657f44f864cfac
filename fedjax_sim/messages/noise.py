"""Noise on every entry of a message. It says nothing about privacy: `fedjax_sim.privacy` does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree

Draw = Callable[[Array, tuple[int, ...], Any], Array]  # (key, shape, dtype)


def noise_like(tree: PyTree, key: Array, draw: Draw) -> PyTree:
    """Independent noise for every entry of `tree`, at scale 1, each leaf from a key of its own."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([draw(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)])


def _adding(name: str, scale: Any, draw: Draw) -> Transform:
    _validate.number(name, scale, above=0)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        noise = noise_like(message, key, draw)
        return jax.tree.map(lambda m, n: m + jnp.asarray(scale, m.dtype) * n, message, noise), memory

    return Transform(lambda message: (), update, lambda message: None)


def add_laplace(scale: Any) -> Transform:
    """Adds independent Laplace noise of the given scale (standard deviation `sqrt(2) * scale`) to every entry.

    Raises:
      InputError: `scale` is not over 0.
    """
    return _adding("scale", scale, jax.random.laplace)


def add_gaussian(stddev: Any) -> Transform:
    """Adds independent Gaussian noise of the given standard deviation to every entry.

    Raises:
      InputError: `stddev` is not over 0.
    """
    return _adding("stddev", stddev, jax.random.normal)
