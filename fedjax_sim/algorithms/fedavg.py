"""Federated averaging."""

import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer


def fedavg(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """FedAvg (McMahan et al. 2017, algorithm 1), with any server optimizer (Reddi et al. 2021, algorithm 1).

    Client `k` runs `client_tx` from the received `x` to `y_k` and sends `x - y_k`; the server gives the mean to
    `server_tx`, by default `optax.sgd(1.0)`, which is `x <- sum_k n_k y_k / sum_k n_k`, or a plain mean with
    `weighting="uniform"`.
    One full-batch step with all clients is centralised gradient descent. Sends one model, keeps nothing on clients.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        mean(weighting),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
