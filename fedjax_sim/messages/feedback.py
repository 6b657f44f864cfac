"""Error feedback around a compressor."""

from collections.abc import Callable

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

    return Transform(init, update, compressor.wire, _spent(compressor))


def ef21(compressor: Transform) -> Transform:
    """Sends what is new in the message, compressed (EF21; Richtarik, Sokolov and Fatkhullin 2021, algorithm 1).

    Each client keeps `g`, zero at the start, and the server a copy: the client sends `C(m - g)`, both add it to `g`,
    and the sum is what the server takes for the message. It is exact once messages have settled, where `error_feedback`
    is so on average only. `compressor` is to be a contraction: one that is unbiased may enlarge, `random_k(0.1)` say,
    and makes `g` run away. A client that takes no part keeps its `g`. Costs one model-sized array per client of the
    population, and no bits.
    """

    def init(message: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, message), compressor.init(message)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        known, inner = memory
        news, inner = compressor.update(jax.tree.map(jnp.subtract, message, known), inner, key)
        known = jax.tree.map(jnp.add, known, news)
        return known, (known, inner)

    return Transform(init, update, compressor.wire, _spent(compressor))


def _spent(compressor: Transform) -> Callable[[PyTree], Array] | None:
    """The compressor's own bits, of the memory around it."""
    bits = compressor.spent
    return None if bits is None else lambda memory: bits(memory[1])
