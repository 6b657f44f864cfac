"""FedDyn: each client's regulariser is renewed so that local optima agree with the global one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, StepsOnly, fine_tuning, train
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained
from fedjax_sim.optimizers import mean_and_sum


class Memory(NamedTuple):
    """What the server keeps."""

    optimizer: PyTree
    drift: PyTree  # mean over the population of what the clients keep
    num_clients: Array  # f32[], N


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, trained(params))


def feddyn(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    alpha: Scalar = 0.01,
    weighting: str = "uniform",
) -> Algorithm:
    """FedDyn (Acar et al. 2021, algorithm 1), with its local minimisation done by `client_tx`.

    Clients minimise `f_k(y) - <g_k, y> + alpha ||y - x||^2 / 2` from the received `x`, and `g_k <- g_k - alpha (y_k -
    x)`; then `h <- h - alpha sum_{k in S} (y_k - x) / N` and `x <- mean_{k in S} y_k - h / alpha`, all from zero. Kept
    are `g_k / alpha` and `h / alpha`, so that `alpha` appears in local training alone. Where it converges, every client
    stands still, at the optimum of the plain mean of the clients' losses, whatever the weighting of the updates;
    "uniform" is the paper's. `server_tx` is given the whole step.

    `alpha` defaults to the value of the authors' CIFAR-10 example. Larger is stabler and slower; when few of many
    clients take part, the plain sum in `h` is known to grow. Sends and receives one model, keeps one model-sized array
    per client of the population.

    Raises:
      InputError: `alpha` is not over 0.
    """
    _validate.number("alpha", alpha, above=0)

    def run(model: PyTree, drift: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def correct(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(
                lambda g, y, x, own: g + jnp.asarray(alpha, g.dtype) * (y - x - own),
                gradient, params, trained(model), drift,
            )  # fmt: skip

        result = train(loss_fn, client_tx, model, data, key, correct=correct)
        update = jax.tree.map(jnp.subtract, model, result.model)
        return Message(update), jax.tree.map(jnp.add, drift, trained(update)), result.info

    def update(params: PyTree, memory: Memory, aggregate: Message) -> tuple[PyTree, Memory]:
        drift = jax.tree.map(
            lambda h, total: h + total / memory.num_clients.astype(h.dtype), memory.drift, aggregate.extra
        )
        step = with_trained(aggregate.update, jax.tree.map(jnp.add, trained(aggregate.update), drift))
        params, optimizer = take(server_tx, params, memory.optimizer, step)
        return params, Memory(optimizer, drift, memory.num_clients)

    return Algorithm(
        client=Client(init=_zeros, like=Message, run=StepsOnly(loss_fn, run)),
        aggregator=mean_and_sum(weighting, lambda message: trained(message.update)),
        server=Server(
            init=lambda params, n: Memory(server_tx.init(trained(params)), _zeros(params), jnp.float32(n)),
            broadcast=lambda params, memory: params,
            update=update,
        ),
        personal=fine_tuning(loss_fn, client_tx),
    )
