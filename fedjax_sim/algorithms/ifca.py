"""IFCA: clients in clusters, a model for each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import Aggregator, mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, mean_loss, train
from fedjax_sim.core.round import START, stage_key
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained


class Memory(NamedTuple):
    """What the server keeps, arrays [clusters, ...]."""

    models: PyTree
    optimizer: PyTree


def _aggregator(clusters: int, weighting: str) -> Aggregator:
    """The mean update and, in `extra`, each cluster's with its weight; `extra` of a message is the client's cluster."""
    plain = mean(weighting)

    def init(message: Message) -> PyTree:
        return jax.tree.map(lambda a: jnp.zeros((clusters, *a.shape), a.dtype), plain.init(message.update))

    def add(acc: PyTree, messages: Message, weights: Array) -> PyTree:
        of_cluster = (messages.extra == jnp.arange(clusters)[:, None]) * weights
        return jax.vmap(lambda own, weights: plain.add(own, messages.update, weights))(acc, of_cluster)

    def finish(acc: PyTree) -> Message:
        return Message(plain.finish(jax.tree.map(lambda a: a.sum(0), acc)), (jax.vmap(plain.finish)(acc), acc[1]))

    return Aggregator(plain.receive, init, add, finish)


def ifca(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    clusters: int = 2,
    spread: Scalar = 0.1,
    seed: int | Array = 0,
) -> Algorithm:
    """IFCA (Ghosh et al. 2020, algorithm 1, with model averaging): `clusters` models, each client joins the best one.

    The server sends all `K` models; a client picks the one with the least mean loss over its examples, trains it, and
    sends the update and which it was. Each cluster takes the mean of its own clients through `server_tx`; one that
    nobody chose stays. The first model starts as the given one, the others at `spread` times normal noise from it,
    drawn from `seed`, which in a run of a configuration is that of the run: clusters come apart only if they start
    apart, and it depends on the seed which. `spread` is ours.
    The paper weighs clients alike; `weighting` is that of the means. After a round `state.params` is the plain mean of
    the models, for those who want a single one. With `clusters=1` it is FedAvg.

    Receives `K` models, sends one and a number, keeps nothing on clients; costs `K` more passes over all examples. A
    client predicts with the best of the models, without training it further.

    Raises:
      InputError: `clusters` or `seed` is no whole number in range, or `spread` is negative.
    """
    _validate.whole("clusters", clusters)
    _validate.number("spread", spread, least=0)
    if not isinstance(seed, Tracer):
        _validate.whole("seed", seed, least=0)

    def best(models: PyTree, data: LocalData, key: Array) -> tuple[Array, PyTree]:
        losses = jax.vmap(lambda model: mean_loss(loss_fn, model, data, key))(models)
        chosen = jnp.argmin(losses).astype(jnp.int32)
        return chosen, jax.tree.map(lambda m: m[chosen], models)

    def run(models: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        chosen, model = best(models, data, key)
        result = train(loss_fn, client_tx, model, data, key)
        return Message(jax.tree.map(jnp.subtract, model, result.model), chosen), memory, result.info

    def start(params: PyTree, num_clients: int) -> Memory:
        same = jax.tree.map(lambda x: jnp.broadcast_to(x, (clusters, *x.shape)), params)
        noise = optax.tree.random_like(stage_key(jax.random.key(seed), 0, START), trained(same))
        apart = jax.tree.map(lambda x, n: x + jnp.asarray(spread, x.dtype) * n.at[0].set(0), trained(same), noise)
        return Memory(with_trained(same, apart), jax.vmap(server_tx.init)(apart))

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        def one(model: PyTree, kept: PyTree, mean: PyTree, weight: Array) -> tuple[PyTree, PyTree]:
            new = take(server_tx, model, kept, mean)
            return jax.tree.map(lambda n, old: jnp.where(weight > 0, n, old), new, (model, kept))

        memory = Memory(*jax.vmap(one)(*memory, *aggregate.extra))
        return jax.tree.map(lambda m: m.mean(0), memory.models), memory

    return Algorithm(
        Client(lambda params: (), lambda models: Message(jax.tree.map(lambda m: m[0], models), jnp.int32(0)), run),
        _aggregator(clusters, weighting),
        Server(start, lambda params, memory: memory.models, update),
        personal=lambda models, memory, data, key: best(models, data, key)[1],
    )
