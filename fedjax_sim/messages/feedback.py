"""Error feedback around a compressor."""

import jax
import jax.numpy as jnp

from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree


def error_feedback(compressor: Transform) -> Transform:
    """Adds what was not sent before, and remembers what is not sent now (Seide et al. 2014; Karimireddy et al. 2019).

    Each client keeps `e`, zero at the start: it sends `C(m + e)` and keeps `m + e - C(m + e)`. Costs one model-sized
    array per client of the population, and no bits.
    """

    def init(message: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, message), compressor.init(message)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        error, inner = memory
        wanted = jax.tree.map(jnp.add, message, error)
        sent, inner = compressor.update(wanted, inner, key)
        return sent, (jax.tree.map(jnp.subtract, wanted, sent), inner)

    return Transform(init, update, compressor.wire)
