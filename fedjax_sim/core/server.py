"""What the server broadcasts, and how it takes the aggregate."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.client import Message
from fedjax_sim.core.types import PyTree, Variables, trained, with_trained


class Server(NamedTuple):
    """The server's part of an algorithm, as pure functions.

    `init(params, num_clients) -> memory`; `broadcast(params, memory) -> what every client receives`; `update(params,
    memory, aggregate) -> (params, memory)`; `wire(broadcast) -> bits` on the way to a client, None if sent as it is;
    `shown(params, memory) -> params`, the model as clients receive it, which is `params` unless it was compressed.
    """

    init: Callable[[PyTree, int], PyTree]
    broadcast: Callable[[PyTree, PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    wire: Callable[[PyTree], int | None] = lambda broadcast: None
    shown: Callable[[PyTree, PyTree], PyTree] = lambda params, memory: params


def take(
    server_tx: optax.GradientTransformation, model: PyTree, memory: PyTree, update: PyTree
) -> tuple[PyTree, PyTree]:
    """The server optimizer on the pseudo-gradient (Reddi et al. 2021, algorithm 1); statistics are averaged plainly."""
    updates, memory = server_tx.update(trained(update), memory, trained(model))
    new = with_trained(model, optax.apply_updates(trained(model), updates))
    if isinstance(model, Variables):
        new = new._replace(statistics=jax.tree.map(jnp.subtract, model.statistics, update.statistics))
    return new, memory


def optimizer(server_tx: optax.GradientTransformation) -> Server:
    """Broadcasts the model; gives the mean pseudo-gradient to `server_tx`, whose `optax.sgd(1.0)` is averaging."""

    def update(params: PyTree, memory: PyTree, aggregate: Message) -> tuple[PyTree, PyTree]:
        return take(server_tx, params, memory, aggregate.update)

    return Server(lambda params, num_clients: server_tx.init(trained(params)), lambda params, memory: params, update)
