"""What a private message carries beside the algorithm's own: whether it had to be clipped.

It never reaches a server: it is what the simulator, and nobody in the federation, sees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._validate import InputError
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.client import GIVEN, Client, LocalData, Message
from fedjax_sim.core.execute import over_lanes
from fedjax_sim.core.message import Transform, dense_bits
from fedjax_sim.core.types import Array, PyTree


class Carried(NamedTuple):
    """The `extra` of a private message."""

    extra: PyTree  # the algorithm's own
    fits: Any  # f32[]: the clip norm; once clipped 1, or 0 if that changed it; in the aggregate a Tally


class Tally(NamedTuple):
    """Of the messages of a round."""

    fitting: Array  # f32[], how many had not to be clipped
    count: Array  # f32[], of how many

    def clipped(self) -> Array:
        """Share of the messages that were clipped, f32[]; 0 of none."""
        return (self.count - self.fitting) / jnp.maximum(self.count, 1)


def only_floating(message: PyTree) -> None:
    """Raises InputError where a message holds numbers that noise cannot hide."""
    found = {str(x.dtype) for x in jax.tree.leaves(message)}
    wrong = sorted(name for name in found if not jnp.issubdtype(name, jnp.floating))
    if wrong:
        raise InputError(f"algorithm: its messages hold {', '.join(wrong)}, which no noise hides; take another")


def opened(message: Message) -> Message:
    """The algorithm's own message."""
    return Message(message.update, message.extra.extra)


def closed(message: Message, fits: Any) -> Message:
    """The algorithm's own message, with what it carries."""
    return Message(message.update, Carried(message.extra, fits))


def carrying_client(client: Client, told: Callable[[PyTree], tuple[PyTree, Array]]) -> Client:
    """`client` whose messages carry the clip norm; `told(broadcast) -> (the client's own broadcast, clip norm)`."""

    def run(broadcast: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, PyTree]:
        own, clip_norm = told(broadcast)
        message, memory, info = client.run(own, memory, data, key)
        return closed(message, jnp.asarray(clip_norm, jnp.float32)), memory, info

    def like(broadcast: PyTree) -> Message:
        return closed(client.like(told(broadcast)[0]), jnp.zeros((), jnp.float32))

    roles = Message(client.roles.update, Carried(client.roles.extra, GIVEN))
    return Client(client.init, like, run, roles)


def carrying_transform(
    inner: Transform, privatise: Callable[[Message, Array, Array], tuple[Message, Array]], more_bits: int = 0
) -> Transform:
    """`inner`, then `privatise(message, clip norm, key) -> (message, fits bool[])`, last so that nothing undoes it."""

    def update(message: Message, memory: PyTree, key: Array) -> tuple[Message, PyTree]:
        sent, memory = inner.update(opened(message), memory, jax.random.fold_in(key, 0))
        sent, fits = privatise(sent, message.extra.fits, jax.random.fold_in(key, 1))
        return closed(sent, fits.astype(jnp.float32)), memory

    def wire(message: Message) -> int:
        own = opened(message)
        bits = inner.wire(own)
        return more_bits + (dense_bits(own) if bits is None else bits)

    return Transform(lambda message: inner.init(opened(message)), update, wire)


def carrying_aggregator(
    aggregator: Aggregator, bound: Callable[[Message, Array], tuple[Message, Array]] | None = None
) -> Aggregator:
    """`aggregator` of the algorithm's own messages; the aggregate carries a `Tally`.

    Args:
      aggregator: of the messages as they are, or as they are bounded.
      bound: `(message, clip norm) -> (message, fits bool[])`, done to each as it arrives, whoever sent it.
    """

    def bounded(message: Message) -> Message:
        assert bound is not None
        own, fits = bound(opened(message), message.extra.fits)
        return closed(own, fits.astype(jnp.float32))

    def receive(messages: Message, ids: Array, sizes: Array, key: Array) -> tuple[Message, Array]:
        messages = messages if bound is None else over_lanes(bounded, messages)
        own, weights = aggregator.receive(opened(messages), ids, sizes, key)
        return closed(own, messages.extra.fits), weights

    def init(message: Message) -> PyTree:
        zero = jnp.zeros((), jnp.float32)
        return aggregator.init(opened(message)), Tally(zero, zero)

    def add(acc: PyTree, messages: Message, weights: Array) -> PyTree:
        own, tally = acc
        counted = (weights > 0).astype(jnp.float32)
        tally = Tally(tally.fitting + jnp.sum(messages.extra.fits * counted), tally.count + counted.sum())
        return aggregator.add(own, opened(messages), weights), tally

    def finish(acc: PyTree) -> Message:
        return closed(aggregator.finish(acc[0]), acc[1])

    return Aggregator(receive, init, add, finish, aggregator.whole)
