"""Mime: local steps that imitate the server's optimizer, with variance reduction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm, Survey
from fedjax_sim.core.client import (
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    batch_gradient,
    distance,
    fine_tuning,
    full_gradient,
    mean_loss,
)
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, trained, with_trained


class Known(NamedTuple):
    """What the server keeps, and what it broadcasts."""

    of: PyTree  # kept: the server optimizer's state; broadcast: the model
    base: PyTree  # s, the state of the base optimizer
    control: PyTree = ()  # c, the cohort's mean gradient at the model; nothing outside a round


def mime(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """Mime (Karimireddy et al. 2021, algorithm 1) with `client_tx` as the base optimizer, whose state is the server's.

    A round has two exchanges. The cohort first answers with its full gradients at the received `x`, whose mean is `c`;
    then every client steps `y <- y + U(g(y) - g(x) + c, s)`, both gradients on the batch of the step, with the state
    `s` of the base optimizer as it was received and never changed. The server takes the mean of the `y` through
    `server_tx`, and renews `s` with `c`. Any optax transformation will do: `optax.sgd(rate, momentum)` is MimeSGDm,
    `optax.adam` MimeAdam. With one client, full batches and plain SGD it is FedAvg; with all clients, full batches and
    plain SGD the optimum is a fixed point, however many local steps. The paper weighs clients alike; `weighting` is
    that of both means. A client adapts by `client_tx` from a fresh state.

    Receives two models and `s` (`x` and `s` are counted in both exchanges), sends two models, keeps nothing on clients;
    costs one more pass over all examples, and two gradients a local step.
    """

    def ask(received: Known, data: LocalData, key: Array) -> Message:
        return Message(full_gradient(loss_fn, received.of, data, key)[1])

    def run(received: Known, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def step(index: Array, carry: PyTree, batch: PyTree, mask: Array) -> PyTree:
            model, first, _ = carry
            at = batch, mask, jax.random.fold_in(key, index)
            params = trained(model)
            loss, model, here = batch_gradient(loss_fn, model, *at)
            _, _, there = batch_gradient(loss_fn, received.of, *at)
            direction = jax.tree.map(lambda g, g_x, c: g - g_x + c, here, there, received.control)
            updates, _ = client_tx.update(direction, received.base, params)
            return with_trained(model, optax.apply_updates(params, updates)), jnp.where(index == 0, loss, first), loss

        zero = jnp.zeros((), jnp.float32)
        model, first, last = data.fold(step, (received.of, zero, zero))
        if data.full_losses:
            first, last = mean_loss(loss_fn, received.of, data, key), mean_loss(loss_fn, model, data, key)
        update = jax.tree.map(jnp.subtract, received.of, model)
        return Message(update), memory, Info(first, last, distance(received.of, model))

    def update(params: PyTree, memory: Known, aggregate: Message) -> tuple[PyTree, Known]:
        _, base = client_tx.update(memory.control, memory.base, trained(params))
        params, optimizer = take(server_tx, params, memory.of, aggregate.update)
        return params, Known(optimizer, base)

    return Algorithm(
        client=Client(init=lambda params: (), like=lambda received: Message(received.of), run=run),
        aggregator=mean(weighting),
        server=Server(
            init=lambda params, n: Known(server_tx.init(trained(params)), client_tx.init(trained(params))),
            broadcast=lambda params, memory: memory._replace(of=params),
            update=update,
        ),
        survey=Survey(
            ask=ask,
            like=lambda received: Message(trained(received.of)),
            aggregator=mean(weighting),
            tell=lambda memory, told: memory._replace(control=told.update),
        ),
        personal=fine_tuning(loss_fn, client_tx, lambda received: received.of),
    )
