"""FedExP: the server's step from how much the clients disagree."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import (
    CLAIM,
    UPDATE,
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    StepsOnly,
    fine_tuning,
    sgd_client,
)
from fedjax_sim.core.server import Server, optimizer, take
from fedjax_sim.core.types import Array, PyTree, Scalar, squared_norm, trained, with_trained


def fedexp(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    eps: Scalar = 1e-3,
    weighting: str = "examples",
) -> Algorithm:
    """FedExP (Jhunjhunwala et al. 2023): FedAvg with an extrapolated step.

    The mean pseudo-gradient `d` is multiplied by `max(1, mean_k ||d_k||^2 / (2 (||d||^2 + eps)))`, so that the model
    moves further where the clients' updates cancel; both means are weighted alike. With identical clients it is FedAvg.
    The paper reports the mean of the last two models; here the model is the last one.

    The default of `eps` is ours: the paper tunes it. It should be small beside `||d||^2`. Sends one number more than
    FedAvg and keeps nothing on clients.

    Raises:
      InputError: `eps` is not over 0.
    """
    _validate.number("eps", eps, above=0)
    plain, server = sgd_client(loss_fn, client_tx), optimizer(server_tx)

    def run(model: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        message, memory, info = plain.run(model, memory, data, key)
        return message._replace(extra=squared_norm(trained(message.update))), memory, info

    def update(params: PyTree, memory: PyTree, aggregate: Message) -> tuple[PyTree, PyTree]:
        direction = trained(aggregate.update)
        step = jnp.maximum(1, aggregate.extra / (2 * (squared_norm(direction) + eps)))
        direction = jax.tree.map(lambda d: d * step.astype(d.dtype), direction)
        return take(server_tx, params, memory, with_trained(aggregate.update, direction))

    return Algorithm(
        Client(
            init=plain.init,
            like=lambda model: Message(model, jnp.zeros((), jnp.float32)),
            run=StepsOnly(loss_fn, run),
            roles=Message(UPDATE, CLAIM),
        ),
        mean(weighting),
        Server(server.init, server.broadcast, update),
        personal=fine_tuning(loss_fn, client_tx),
    )
