"""MimeLite: local steps that imitate the server's optimizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, fine_tuning, full_gradient, train
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, trained


class Broadcast(NamedTuple):
    """What the server sends."""

    model: PyTree
    base: PyTree  # s, the state of the base optimizer


class Memory(NamedTuple):
    """What the server keeps."""

    optimizer: PyTree
    base: PyTree


def mimelite(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """MimeLite (Karimireddy et al. 2021, algorithm 1) with `client_tx` as the base optimizer, whose state is the
    server's.

    Clients step `y <- y + U(g(y), s)` with the state `s` of the base optimizer as it was received and never changed,
    and also send their full gradient at the received model. The server takes the mean of the `y` through `server_tx`
    and renews `s` with the mean of those gradients. With a base optimizer that remembers nothing, such as plain SGD, it
    is FedAvg; `optax.sgd(rate, momentum)` gives MimeLiteSGDm, `optax.adam` MimeLiteAdam. The paper weighs clients
    alike; `weighting` is that of both means.

    Receives a model and `s`, sends two models, keeps nothing on clients; costs one more pass over all examples.
    """

    def run(received: Broadcast, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def frozen(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            return client_tx.update(updates, received.base, params)[0], state

        result = train(loss_fn, optax.GradientTransformation(lambda params: (), frozen), received.model, data, key)
        _, gradient = full_gradient(loss_fn, received.model, data, key)
        update = jax.tree.map(jnp.subtract, received.model, result.model)
        return Message(update, gradient), memory, result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        _, base = client_tx.update(aggregate.extra, memory.base, trained(params))
        params, optimizer = take(server_tx, params, memory.optimizer, aggregate.update)
        return params, Memory(optimizer, base)

    return Algorithm(
        client=Client(
            init=lambda params: (), like=lambda received: Message(received.model, trained(received.model)), run=run
        ),
        aggregator=mean(weighting),
        server=Server(
            init=lambda params, n: Memory(server_tx.init(trained(params)), client_tx.init(trained(params))),
            broadcast=lambda params, memory: Broadcast(params, memory.base),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.model),
    )
