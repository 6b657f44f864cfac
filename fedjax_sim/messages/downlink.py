"""Compression of what the server broadcasts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Message
from fedjax_sim.core.message import Transform, dense_bits
from fedjax_sim.core.round import DOWNLINK, stage_key
from fedjax_sim.core.server import Server
from fedjax_sim.core.types import Array, PyTree


class Shown(NamedTuple):
    """What the server keeps."""

    own: PyTree  # the algorithm's memory
    model: PyTree  # as all clients know it
    compressor: PyTree  # its memory
    sent: Array  # int32[], broadcasts so far


def compressed_broadcast(algorithm: Algorithm, compressor: Transform, *, seed: Any = 0) -> Algorithm:
    """`algorithm` whose server broadcasts what is new in the model, compressed.

    Server and clients both hold the model `x` as the clients know it, the initial one at first. After a round that led
    to `w` the server sends `C(w - x)` and all add it to `x`, on which the next round starts: what was not sent remains
    to be sent (EF21-P of Gruntkowska, Tyurin and Richtarik 2023; "model shift compression"). Every client is taken to
    hear every broadcast, chosen or not, and `downlink_bits` counts one for each that takes part. What is broadcast
    beside the model, SCAFFOLD's control variate say, goes as it is.

    Args:
      algorithm: whose clients send once a round.
      compressor: of a tree shaped like the model.
      seed: of a random compressor's draws; may be traced.

    Raises:
      InputError: an algorithm whose clients send twice a round, or that broadcasts a part of the model only.
    """
    if algorithm.survey is not None:
        raise _validate.InputError("algorithm: its server broadcasts twice a round; take one that does so once")
    server = algorithm.server

    def init(params: PyTree, num_clients: int) -> Shown:
        own = server.init(params, num_clients)
        if dense_bits(server.broadcast(params, own)) < dense_bits(params):
            raise _validate.InputError("algorithm: it broadcasts a part of the model only; leave the downlink as it is")
        return Shown(own, params, compressor.init(params), jnp.zeros((), jnp.int32))

    def broadcast(params: PyTree, memory: Shown) -> PyTree:
        return server.broadcast(memory.model, memory.own)

    def update(params: PyTree, memory: Shown, aggregate: Message) -> tuple[PyTree, Shown]:
        params, own = server.update(params, memory.own, aggregate)
        key = stage_key(jax.random.key(seed), memory.sent, DOWNLINK)
        news, kept = compressor.update(jax.tree.map(jnp.subtract, params, memory.model), memory.compressor, key)
        return params, Shown(own, jax.tree.map(jnp.add, memory.model, news), kept, memory.sent + 1)

    def wire(sent: PyTree) -> int | None:
        like = algorithm.client.like(sent).update  # a message is shaped like the model
        bits = compressor.wire(like)
        return None if bits is None else dense_bits(sent) - dense_bits(like) + bits

    return algorithm._replace(server=Server(init, broadcast, update, wire, lambda params, memory: memory.model))
