"""SCAFFOLD: control variates against client drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import (
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    StepsOnly,
    fine_tuning,
    full_gradient,
    train,
)
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, trained
from fedjax_sim.optimizers import mean_and_sum


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


def scaffold(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    option: int = 2,
    weighting: str = "examples",
) -> Algorithm:
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1); all control variates start at zero.

    Clients step on `g - c_i + c`. With `option=2`, the paper's cheaper one, and plain SGD `c_i+ = c_i - c + (x - y_i) /
    (K eta)`, which equals the mean of the client's raw gradients along its path. That mean is what is computed here, so
    it stays right with any `client_tx` (with momentum, the displacement over `K eta` would be about ten times too
    large) and with unequal numbers of local steps. With `option=1` `c_i+` is the gradient of the client's mean loss at
    the received `x`, for one more pass over its examples. Then `c <- c + sum_{i in S} (c_i+ - c_i) / N`. With one
    client it is FedAvg. Its fixed point is the optimum of the plain mean of the clients' losses, whatever the
    weighting of the updates. Sends two models, receives two, and keeps one model-sized array per client of the
    population.

    Raises:
      InputError: `option` is neither 1 nor 2.
    """
    _validate.one_of("option", option, (1, 2))

    def run(received: Broadcast, control: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def correct(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(lambda g, own, c: g - own + c, gradient, control, received.control)

        result = train(loss_fn, client_tx, received.model, data, key, correct=correct, mean_gradient=option == 2)
        update = jax.tree.map(jnp.subtract, received.model, result.model)
        new = result.mean_gradient if option == 2 else full_gradient(loss_fn, received.model, data, key)[1]
        return Message(update, jax.tree.map(jnp.subtract, new, control)), new, result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        params, optimizer = take(server_tx, params, memory.optimizer, aggregate.update)
        control = jax.tree.map(
            lambda c, change: c + change / memory.num_clients.astype(c.dtype), memory.control, aggregate.extra
        )
        return params, Memory(optimizer, control, memory.num_clients)

    return Algorithm(
        client=Client(
            init=_zeros,
            like=lambda received: Message(received.model, received.control),
            run=run if option == 1 else StepsOnly(loss_fn, run),
        ),
        aggregator=mean_and_sum(weighting),
        server=Server(
            init=lambda params, n: Memory(server_tx.init(trained(params)), _zeros(params), jnp.float32(n)),
            broadcast=lambda params, memory: Broadcast(params, memory.control),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.model),
    )
