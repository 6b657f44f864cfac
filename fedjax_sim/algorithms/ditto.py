"""Ditto: a personal model beside the global one, tied to it."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, train
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Array, PyTree, Scalar, trained

OWN = 2**31 - 3  # no step's number


def ditto(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    lam: Scalar = 0.1,
) -> Algorithm:
    """Ditto (Li et al. 2021, "Ditto", algorithm 1): FedAvg, and on each client a model of its own.

    Client `k` sends as in FedAvg; then its own `v_k` takes steps of `client_tx` on `grad f_k(v_k) + lam (v_k - x)` over
    the same batches, `x` being the received model. The paper leaves the number of these steps free, here it is that of
    the local steps. With `lam=0` the personal model is local training alone, over the rounds that the client takes part
    in; the global model is FedAvg's with any. The default 0.1 is ours; the paper tunes it. Sends one model, keeps one
    per client of the population, and trains twice.

    A client predicts with its `v_k` as it stands; one that never took part has the initial model.

    Raises:
      InputError: `lam` is negative.
    """
    _validate.number("lam", lam, least=0)

    def run(received: PyTree, own: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def pull(gradient: PyTree, params: PyTree) -> PyTree:
            return jax.tree.map(
                lambda g, v, x: g + jnp.asarray(lam, g.dtype) * (v - x), gradient, params, trained(received)
            )

        result = train(loss_fn, client_tx, received, data, key)
        own_key = jax.random.fold_in(key, OWN)
        # its losses are not reported, hence not worth further passes
        own = train(loss_fn, client_tx, own, data._replace(full_losses=False), own_key, correct=pull).model
        return Message(jax.tree.map(jnp.subtract, received, result.model)), own, result.info

    return Algorithm(
        Client(init=lambda params: params, like=Message, run=run),
        mean(weighting),
        optimizer(server_tx),
        personal=lambda received, own, data, key: own,
    )
