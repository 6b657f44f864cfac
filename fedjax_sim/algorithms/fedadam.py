"""FedAdam: Adam on the server."""

import optax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar
from fedjax_sim.optimizers import checked_rate, fed_adam


def fedadam(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_learning_rate: Scalar | optax.Schedule = 0.01,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.99,
    tau: Scalar = 1e-3,
    weighting: str = "examples",
) -> Algorithm:
    """FedAdam (Reddi et al. 2021, algorithm 2): FedAvg with Adam on the server.

    With the mean pseudo-gradient `d`: `m <- beta1 m + (1 - beta1) d`, `v <- beta2 v + (1 - beta2) d^2` and `x <- x -
    rate m / (sqrt(v) + tau)`, without bias correction and with `v` starting at `tau^2`. Where `tau` is far above the
    pseudo-gradients and `beta1 = 0`, it is FedAvg, at a server rate that grows from `rate / (2 tau)` to `rate / tau`.

    The betas are the paper's; `tau` is what it recommends where one tunes only the rates. The rate may be a schedule
    over rounds; its default is ours, of the order of the paper's tuned rates. Costs two models on the server, nothing
    on clients and on the wire.

    Raises:
      InputError: the rate or `tau` is not over 0, or a beta is not from 0 to below 1.
    """
    checked_rate("server_learning_rate", server_learning_rate)
    _validate.decay("beta1", beta1)
    _validate.decay("beta2", beta2)
    _validate.number("tau", tau, above=0)
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        mean(weighting),
        optimizer(fed_adam(server_learning_rate, beta1, beta2, tau)),
        personal=fine_tuning(loss_fn, client_tx),
    )
