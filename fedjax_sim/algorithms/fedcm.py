"""FedCM: the last round's direction as momentum in every local step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import (
    GIVEN,
    UPDATE,
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    StepsOnly,
    fine_tuning,
    train,
)
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Scalar, trained
from fedjax_sim.optimizers import per_unit, unit_displacement


class Broadcast(NamedTuple):
    """What the server sends."""

    model: PyTree
    momentum: PyTree  # shaped like the differentiated part of the model


class Memory(NamedTuple):
    """What the server keeps."""

    optimizer: PyTree
    momentum: PyTree


def fedcm(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    alpha: Scalar = 0.1,
    weighting: str = "examples",
) -> Algorithm:
    """FedCM (Xu et al. 2021): clients step on `alpha g + (1 - alpha) m`, where `m <- mean_k (x - y_k) / (K eta)` is the
    mean direction of the last round, zero at the start; the server averages the models.

    `alpha = 1` is FedAvg. `m` is in units of gradients: the mean displacement over the mean of what `client_tx` makes
    of as many gradients of 1, which is `K eta` with plain SGD and equal steps, and stays right with others. The paper's
    global rate is `K eta` times that of `server_tx`; clients count alike there (`weighting="uniform"`).

    The default of `alpha` is ours. Sends one number for each array of the model beside it, receives two models, keeps
    nothing on clients.

    Raises:
      InputError: `alpha` is not over 0 and at most 1.
    """
    _validate.number("alpha", alpha, above=0)
    if not isinstance(alpha, Tracer) and alpha > 1:
        raise _validate.InputError(f"alpha: {_validate.shown(alpha)} is out of range; give a number over 0, at most 1")

    def run(received: Broadcast, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def correct(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(lambda g, m: m + jnp.asarray(alpha, g.dtype) * (g - m), gradient, received.momentum)

        result = train(loss_fn, client_tx, received.model, data, key, correct=correct)
        update = jax.tree.map(jnp.subtract, received.model, result.model)
        return Message(update, unit_displacement(client_tx, trained(received.model), data.steps)), memory, result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        params, optimizer = take(server_tx, params, memory.optimizer, aggregate.update)
        return params, Memory(optimizer, per_unit(trained(aggregate.update), aggregate.extra))

    def init(params: PyTree, num_clients: int) -> Memory:
        return Memory(server_tx.init(trained(params)), jax.tree.map(jnp.zeros_like, trained(params)))

    def like(received: Broadcast) -> Message:
        return Message(received.model, unit_displacement(client_tx, received.momentum, 0))

    return Algorithm(
        client=Client(init=lambda params: (), like=like, run=StepsOnly(loss_fn, run), roles=Message(UPDATE, GIVEN)),
        aggregator=mean(weighting),
        server=Server(
            init=init,
            broadcast=lambda params, memory: Broadcast(params, memory.momentum),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.model),
    )
