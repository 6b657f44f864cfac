"""FedAvgM: momentum on the server."""

import optax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar
from fedjax_sim.optimizers import checked_rate


def fedavgm(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_learning_rate: Scalar | optax.Schedule = 1.0,
    server_momentum: Scalar = 0.9,
    weighting: str = "examples",
) -> Algorithm:
    """FedAvgM (Hsu et al. 2019): FedAvg with momentum on the server.

    With the mean pseudo-gradient `d`: `v <- momentum v + d` and `x <- x - rate v`. Momentum 0 and rate 1 is FedAvg; a
    constant `d` in the end moves the model `1 / (1 - momentum)` times as far. The rate of 1 is FedAvg's, and of the
    paper's momenta 0.9 is the usual one. The rate may be a schedule over rounds. Costs one model on
    the server, nothing on clients and on the wire.

    Raises:
      InputError: the rate is not over 0, or the momentum is not from 0 to below 1.
    """
    checked_rate("server_learning_rate", server_learning_rate)
    _validate.decay("server_momentum", server_momentum)
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        mean(weighting),
        optimizer(optax.sgd(server_learning_rate, server_momentum)),
        personal=fine_tuning(loss_fn, client_tx),
    )
