"""FedNova: clients that did unequal local work count alike."""

import jax
import jax.numpy as jnp
import optax

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
from fedjax_sim.core.server import Server, optimizer, take
from fedjax_sim.core.types import Array, PyTree, trained, with_trained
from fedjax_sim.optimizers import per_unit, unit_displacement


def fednova(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """FedNova (Wang et al. 2020): the mean of normalised updates, `x <- x - (sum_k p_k s_k) sum_k p_k (x - y_k) / s_k`.

    `s_k` is `rate ||a_k||_1` of the paper, where `x - y_k = rate sum_j a_kj g_kj`: what `client_tx` makes of as many
    gradients of 1. With plain SGD it is the rate times the number of steps; momentum, schedules and weight decay are
    counted in too, leaf by leaf, and adaptive optimizers as if gradients were constant. `sum_k p_k s_k` is the paper's
    effective number of steps, times the rate. With equal steps it is FedAvg; with unequal ones FedAvg minimises a sum
    of losses weighted by steps, and FedNova the one weighted by `p_k`, up to an error that vanishes with the rate.

    A client sends `(x - y_k) / s_k`, in units of gradients, which is what update norms then tell, and one number for
    each array of the model. Statistics of `Variables` are averaged plainly. Keeps nothing on clients.
    """
    server = optimizer(server_tx)

    def run(model: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        result = train(loss_fn, client_tx, model, data, key)
        update = jax.tree.map(jnp.subtract, model, result.model)
        moved = unit_displacement(client_tx, trained(model), data.steps)
        return Message(with_trained(update, per_unit(trained(update), moved)), moved), memory, result.info

    def update(params: PyTree, memory: PyTree, aggregate: Message) -> tuple[PyTree, PyTree]:
        scaled = jax.tree.map(lambda d, s: (d * s).astype(d.dtype), trained(aggregate.update), aggregate.extra)
        return take(server_tx, params, memory, with_trained(aggregate.update, scaled))

    return Algorithm(
        Client(
            init=lambda params: (),
            like=lambda model: Message(model, unit_displacement(client_tx, trained(model), 0)),
            run=StepsOnly(loss_fn, run),
            roles=Message(UPDATE, GIVEN),
        ),
        mean(weighting),
        Server(server.init, server.broadcast, update),
        personal=fine_tuning(loss_fn, client_tx),
    )
