"""AFL: the worst mixture of clients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.projections import projection_simplex

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import Aggregator, mean
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
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Scalar, trained

LEAST_WEIGHT = 1e-12  # so that a client whose weight is 0 is still heard, and its weight may come back


class Known(NamedTuple):
    """What the server keeps and what it broadcasts beside a model."""

    of: PyTree  # kept: the server optimizer's state; broadcast: the model
    weights: Array  # f32[N], lambda


class Report(NamedTuple):
    """What a client sends beside its update."""

    loss: Any
    weight: Any
    id: Any


def _aggregator() -> Aggregator:
    """The mean of the updates by the weights that clients report, and the reports themselves, [C]."""
    plain = mean("uniform")

    def receive(messages: Message, ids: Array, sizes: Array, key: Array) -> tuple[Message, Array]:
        return messages, jnp.where(sizes > 0, jnp.maximum(messages.extra.weight, LEAST_WEIGHT), 0)

    def add(acc: PyTree, messages: Message, weights: Array) -> PyTree:
        return plain.add(acc, messages.update, weights), (messages.extra, weights > 0)

    init, finish = lambda message: plain.init(message.update), lambda acc: Message(plain.finish(acc[0]), acc[1])
    return Aggregator(receive, init, add, finish, whole=True)


def afl(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    gamma: Scalar = 0.01,
) -> Algorithm:
    """Agnostic federated learning (Mohri et al. 2019, algorithm 1) with local training in place of single gradients:
    `min over x of max over lambda of sum_k lambda_k F_k(x)`.

    The server keeps a weight `lambda_k` for every client of the population, on the simplex, at first all alike. `x`
    moves by the mean of the cohort's updates weighted by them (alike where all are 0), then `lambda <- project(lambda +
    gamma F)`, where `F_k` is the mean loss of the received model over the client's examples, and 0 for who is not in
    the cohort. With `gamma=0` it is FedAvg with uniform weights. The default `gamma` is ours, for some tens of clients:
    the paper thinks of few, all present.

    Receives a model and `N` numbers, sends a model and three; the messages of the whole cohort are held at once. Keeps
    nothing on clients; costs one more pass over all examples.

    Raises:
      InputError: `gamma` is negative.
    """
    _validate.number("gamma", gamma, least=0)

    def run(received: Known, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        loss, own = mean_loss(loss_fn, received.of, data, key), received.weights.at[data.id].get(mode="clip")
        result = train(loss_fn, client_tx, received.of, data, key)
        update = jax.tree.map(jnp.subtract, received.of, result.model)
        return Message(update, Report(loss, own, data.id)), memory, result.info

    def update(params: PyTree, memory: Known, aggregate: Message) -> tuple[PyTree, Known]:
        reports, counted = aggregate.extra
        params, optimizer = take(server_tx, params, memory.of, aggregate.update)
        places = jnp.where(counted, reports.id, memory.weights.size)
        weights = memory.weights.at[places].add(gamma * reports.loss, mode="drop")
        return params, Known(optimizer, projection_simplex(weights))

    return Algorithm(
        client=Client(
            init=lambda params: (),
            like=lambda received: Message(received.of, Report(jnp.float32(0), jnp.float32(0), jnp.int32(0))),
            run=run,
            roles=Message(UPDATE, Report(CLAIM, GIVEN, GIVEN)),
        ),
        aggregator=_aggregator(),
        server=Server(
            init=lambda params, n: Known(server_tx.init(trained(params)), jnp.full(n, 1 / n, jnp.float32)),
            broadcast=lambda params, memory: Known(params, memory.weights),
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.of),
    )
