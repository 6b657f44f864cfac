"""q-FFL: fairness by more weight for clients with large losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import (
    CLAIM,
    GIVEN,
    UPDATE,
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    fine_tuning,
    mean_loss,
    train,
)
from fedjax_sim.core.server import Server, optimizer, take
from fedjax_sim.core.types import Array, PyTree, Scalar, squared_norm, trained, with_trained
from fedjax_sim.optimizers import mean_and_sum, unit_displacement

LEAST_LOSS = 1e-10  # added to every loss: a power of zero may be infinite


class Report(NamedTuple):
    """What a client sends beside its update."""

    weight: Any  # L F_k^q
    scale: Any  # h_k


def qffl(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    q: Scalar = 1.0,
    lipschitz: Scalar | None = None,
) -> Algorithm:
    """q-FedAvg (Li et al. 2020, algorithm 2), for `min sum_k F_k^(q+1) / (q+1)`: the larger `q`, the more alike the
    clients' losses.

    With `F_k` the mean loss of the received `x` over the client's examples and `y_k` what it trained, `D_k = F_k^q L (x
    - y_k)` and `h_k = q F_k^(q-1) ||L (x - y_k)||^2 + L F_k^q`; then `x <- x - sum_k D_k / sum_k h_k`, whose step
    `server_tx` sees as pseudo-gradient. `L`, `lipschitz`, is by default the paper's, one over the learning rate: over
    the farthest that `client_tx` moves an entry for first gradients of 1. Statistics of `Variables` are averaged by
    `F_k^q`. With `q=0` it is FedAvg with uniform weights. The default `q` is ours: the paper tunes it.

    A client sends `x - y_k`, `L F_k^q`, which is its weight in the metrics, and `h_k`: a model and two numbers. Keeps
    nothing on clients; costs one more pass over all examples.

    Raises:
      InputError: `q` is negative, or `lipschitz` is not over 0.
    """
    _validate.number("q", q, least=0)
    if lipschitz is not None:
        _validate.number("lipschitz", lipschitz, above=0)
    server, plain = optimizer(server_tx), mean_and_sum("uniform")

    def smoothness(params: PyTree) -> Scalar:
        if lipschitz is not None:
            return lipschitz
        rates = jax.tree.leaves(unit_displacement(client_tx, params, 1))
        rate = jnp.stack([r.max().astype(jnp.float32) for r in rates]).max()
        return 1 / jnp.where(rate > 0, rate, 1)

    def run(model: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        bound, loss = smoothness(trained(model)), mean_loss(loss_fn, model, data, key) + LEAST_LOSS
        result = train(loss_fn, client_tx, model, data, key)
        update = jax.tree.map(jnp.subtract, model, result.model)
        weight = bound * loss**q
        scale = q * loss ** (q - 1) * bound**2 * squared_norm(trained(update)) + weight
        return Message(update, Report(weight, scale)), memory, result.info

    def receive(messages: Message, ids: Array, sizes: Array, key: Array) -> tuple[Message, Array]:
        return messages, jnp.where(sizes > 0, messages.extra.weight, 0)

    def update(params: PyTree, memory: PyTree, aggregate: Message) -> tuple[PyTree, PyTree]:
        weight, scale = aggregate.extra  # summed over the cohort
        ratio = weight / jnp.where(scale > 0, scale, 1)
        step = jax.tree.map(lambda u: u * ratio.astype(u.dtype), trained(aggregate.update))
        return take(server_tx, params, memory, with_trained(aggregate.update, step))

    return Algorithm(
        Client(
            lambda params: (),
            lambda model: Message(model, Report(jnp.zeros(()), jnp.zeros(()))),
            run,
            Message(UPDATE, Report(GIVEN, CLAIM)),
        ),
        plain._replace(receive=receive, of_mean=None),
        Server(server.init, server.broadcast, update),
        personal=fine_tuning(loss_fn, client_tx),
    )
