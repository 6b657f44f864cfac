"""SCAFFOLD: control variates against client drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.aggregate import Aggregator, mean, weighted_sum
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, fine_tuning, train
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, trained


class Broadcast(NamedTuple):
    """What the server sends."""

    model: PyTree
    control: PyTree  # c, shaped like the differentiated part of the model


class Memory(NamedTuple):
    """What the server keeps."""

    optimizer: PyTree
    control: PyTree
    num_clients: Array  # f32[], N


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, trained(params))


def _aggregator(weighting: str) -> Aggregator:
    """The mean of the updates; of the control variates the plain sum, which the server divides by N."""
    updates = mean(weighting)

    def add(acc: PyTree, messages: Message, weights: Array) -> PyTree:
        update, control = acc
        controls = weighted_sum(messages.extra, (weights > 0).astype(weights.dtype))
        return updates.add(update, messages.update, weights), jax.tree.map(jnp.add, control, controls)

    return Aggregator(
        receive=updates.receive,
        init=lambda message: (updates.init(message.update), jax.tree.map(jnp.zeros_like, message.extra)),
        add=add,
        finish=lambda acc: Message(updates.finish(acc[0]), acc[1]),
    )


def scaffold(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II); all control variates start at zero.

    Clients step on `g - c_i + c`. With plain SGD option II is `c_i+ = c_i - c + (x - y_i) / (K eta)`, which equals the
    mean of the client's raw gradients along its path. That mean is what is computed here, so it stays right with any
    `client_tx` (with momentum, the displacement over `K eta` would be about ten times too large) and with unequal
    numbers of local steps. Then `c <- c + sum_{i in S} (c_i+ - c_i) / N`. With one client it is FedAvg. Sends two
    models, receives two, and keeps one model-sized array per client of the population.
    """

    def run(received: Broadcast, control: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def correct(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(lambda g, own, c: g - own + c, gradient, control, received.control)

        result = train(loss_fn, client_tx, received.model, data, key, correct=correct, mean_gradient=True)
        update = jax.tree.map(jnp.subtract, received.model, result.model)
        change = jax.tree.map(jnp.subtract, result.mean_gradient, control)
        return Message(update, change), result.mean_gradient, result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        params, optimizer = take(server_tx, params, memory.optimizer, aggregate.update)
        control = jax.tree.map(
            lambda c, change: c + change / memory.num_clients.astype(c.dtype), memory.control, aggregate.extra
        )
        return params, Memory(optimizer, control, memory.num_clients)

    return Algorithm(
        client=Client(init=_zeros, like=lambda received: Message(received.model, received.control), run=run),
        aggregator=_aggregator(weighting),
        server=Server(
            init=lambda params, n: Memory(server_tx.init(trained(params)), _zeros(params), jnp.float32(n)),
            broadcast=lambda params, memory: Broadcast(params, memory.control),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.model),
    )
