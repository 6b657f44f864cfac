"""FedDC: local drift kept apart from the model, and control variates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, StepsOnly, fine_tuning, train
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained
from fedjax_sim.optimizers import mean_and_sum, per_unit, unit_displacement


class Own(NamedTuple):
    """What a client keeps, shaped like the differentiated part of the model; the server keeps the means."""

    drift: PyTree  # h_k
    control: PyTree  # c_k


class Broadcast(NamedTuple):
    """What the server sends."""

    model: PyTree
    control: PyTree  # c


class Memory(NamedTuple):
    """What the server keeps."""

    optimizer: PyTree
    mean: Own
    num_clients: Array  # f32[], N


def _zeros(params: PyTree) -> Own:
    zeros = jax.tree.map(jnp.zeros_like, trained(params))
    return Own(zeros, zeros)


def feddc(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    alpha: Scalar = 0.01,
    weighting: str = "uniform",
) -> Algorithm:
    """FedDC (Gao et al. 2022), as the authors' code has it where clients are equally large.

    Clients minimise `f_k(y) + alpha ||y + h_k - x||^2 / 2 + <c - c_k, y>` from the received `x`. Then `h_k <- h_k + y_k
    - x`, `c_k <- c_k - c + (x - y_k) / (K eta)` and `x <- mean_{k in S} y_k + h`, where `c` and `h` are the means of
    all `c_k` and `h_k` in the population; all start at zero. In place of `K eta` stands what `client_tx` makes of `K`
    gradients of 1, which counts momentum in. It is FedDyn (`h_k` is its `-g_k / alpha`) with the control variates of
    SCAFFOLD, and like them stands still only at the optimum of the plain mean of the clients' losses.

    `alpha` defaults to the value of the authors' CIFAR-10 example; uniform weights are theirs. Sends and receives two
    models, and keeps two model-sized arrays per client of the population.

    Raises:
      InputError: `alpha` is not over 0.
    """
    _validate.number("alpha", alpha, above=0)

    def run(received: Broadcast, own: Own, data: LocalData, key: Array) -> tuple[Message, Own, Info]:
        start = trained(received.model)

        def correct(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(
                lambda g, y, x, h, c_k, c: g + jnp.asarray(alpha, g.dtype) * (y + h - x) + c - c_k,
                gradient, params, start, *own, received.control,
            )  # fmt: skip

        result = train(loss_fn, client_tx, received.model, data, key, correct=correct)
        update = jax.tree.map(jnp.subtract, received.model, result.model)
        gradient = per_unit(trained(update), unit_displacement(client_tx, start, data.steps))
        change = jax.tree.map(jnp.subtract, gradient, received.control)
        drift = jax.tree.map(jnp.subtract, own.drift, trained(update))
        return Message(update, change), Own(drift, jax.tree.map(jnp.add, own.control, change)), result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        mean = jax.tree.map(lambda m, s: m + s / memory.num_clients.astype(m.dtype), memory.mean, aggregate.extra)
        step = with_trained(aggregate.update, jax.tree.map(jnp.subtract, trained(aggregate.update), mean.drift))
        params, optimizer = take(server_tx, params, memory.optimizer, step)
        return params, Memory(optimizer, mean, memory.num_clients)

    return Algorithm(
        client=Client(
            init=_zeros, like=lambda received: Message(received.model, received.control), run=StepsOnly(loss_fn, run)
        ),
        aggregator=mean_and_sum(weighting, lambda m: Own(jax.tree.map(jnp.negative, trained(m.update)), m.extra)),
        server=Server(
            init=lambda params, n: Memory(server_tx.init(trained(params)), _zeros(params), jnp.float32(n)),
            broadcast=lambda params, memory: Broadcast(params, memory.mean.control),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.model),
    )
