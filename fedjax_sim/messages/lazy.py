"""Sending nothing while a message resembles the last one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform, dense_bits, identity
from fedjax_sim.core.types import Array, PyTree, Scalar, squared_norm


class Memory(NamedTuple):
    """What a client keeps."""

    message: PyTree  # when it last sent one
    sent: PyTree  # what became of it, where it was compressed
    inner: PyTree  # the compressor's memory
    bits: Array  # uint32[], of the last round


def lazy(threshold: Scalar, compressor: Transform | None = None) -> Transform:
    """Uploads a message `m` only if it differs enough from the last one uploaded: `|m - m'|^2 > threshold |m|^2`.

    Otherwise one bit says so, and the server takes the client's last message once more. After LAG (Chen et al. 2018,
    "LAG: Lazily aggregated gradient", whose yardstick is how far the model has moved lately; here it is the message
    itself, which clients know). What is sent goes through `compressor`. The simulated clock counts a full message,
    for on the host nobody knows who will skip. Costs one model-sized array per client of the population, or two with a
    compressor.

    Raises:
      InputError: `threshold` is not from 0 to below 1, from where on nothing would ever be sent.
    """
    _validate.decay("threshold", threshold)
    inner = identity() if compressor is None else compressor

    def full(message: PyTree) -> int:
        bits = inner.wire(message)
        return 1 + (dense_bits(message) if bits is None else bits)

    def init(message: PyTree) -> Memory:
        zeros = jax.tree.map(jnp.zeros_like, message)
        return Memory(zeros, () if compressor is None else zeros, inner.init(message), jnp.uint32(0))

    def update(message: PyTree, memory: Memory, key: Array) -> tuple[PyTree, Memory]:
        change = squared_norm(jax.tree.map(jnp.subtract, message, memory.message))
        skips = change <= threshold * squared_norm(message)
        sent, kept = inner.update(message, memory.inner, key)
        last = memory.message if compressor is None else memory.sent
        before, after = (memory.message, last, memory.inner), (message, sent, kept)
        message, sent, kept = jax.tree.map(lambda old, new: jnp.where(skips, old, new), before, after)
        bits = jnp.where(skips, jnp.uint32(1), jnp.uint32(full(message)))
        return sent, Memory(message, () if compressor is None else sent, kept, bits)

    return Transform(init, update, full, lambda memory: memory.bits)
