"""Noise for the aggregate: fresh in every round, or correlated from round to round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.messages import noise_like


class Noise(NamedTuple):
    """Noise of scale 1, as pure functions: `init(message) -> memory`; `draw(message, memory, key) -> (noise, memory)`.

    `order` is the norm in which what it hides must be bounded, `variance` that of one entry of fresh noise.
    """

    init: Callable[[PyTree], PyTree]
    draw: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    order: int
    variance: float


def _fresh(draw: Callable[..., Array], order: int, variance: float) -> Noise:
    return Noise(
        lambda message: (), lambda message, memory, key: (noise_like(message, key, draw), memory), order, variance
    )


def gaussian() -> Noise:
    """Standard normal noise, for a bounded L2 norm."""
    return _fresh(jax.random.normal, 2, 1.0)


def laplace() -> Noise:
    """Laplace noise of scale 1, of variance 2, for a bounded L1 norm."""
    return _fresh(jax.random.laplace, 1, 2.0)


def banded(coefficients: Any) -> Noise:
    """Gaussian noise correlated over rounds: DP-FTRL by a banded Toeplitz matrix (Choquette-Choo et al. 2023).

    With `z_t` fresh standard normal noise and `C` the lower-triangular Toeplitz matrix of `coefficients`, round `t`
    gets row `t` of `C^-1 z`: what one round adds, later ones partly take back, so that the sum over rounds, which is
    where the model is, carries less noise than fresh draws of the same guarantee. Keeps one model-sized array per band
    but the first. The inverse is that of `jax_privacy`.

    Args:
      coefficients: f32[bands], the first column of `C`, such as `matrix.toeplitz` gives; the first over 0.
    """
    from jax_privacy.matrix_factorization import toeplitz  # a heavy import, wanted by few

    inverse = toeplitz.inverse_as_streaming_matrix(jnp.asarray(coefficients, jnp.float32))

    def draw(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        fresh = noise_like(jax.tree.map(lambda m: m.astype(jnp.float32), message), key, jax.random.normal)
        noise, memory = inverse.multiply_next(fresh, memory)
        return jax.tree.map(lambda n, m: n.astype(m.dtype), noise, message), memory

    def init(message: PyTree) -> PyTree:
        return inverse.init_multiply(jax.tree.map(lambda m: m.astype(jnp.float32), message))

    _validate.number("coefficients[0]", float(coefficients[0]), above=0)
    return Noise(init, draw, 2, float(1 / coefficients[0]) ** 2)
