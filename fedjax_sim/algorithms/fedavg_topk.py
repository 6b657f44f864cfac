"""Federated averaging with sparse messages."""

import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.messages import error_feedback, top_k


def fedavg_topk(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    fraction: float = 0.05,
) -> Algorithm:
    """FedAvg whose clients send the `fraction` of entries largest in magnitude, with error feedback.

    As in sparsified SGD with memory (Stich et al. 2018, algorithm 1) on pseudo-gradients: what a client does not send,
    it adds next time it takes part. With `fraction=1` it is FedAvg. By default a twentieth of the entries is sent.
    Keeps one model-sized array per client of the population.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        mean(weighting),
        optimizer(server_tx),
        error_feedback(top_k(fraction)),
        personal=fine_tuning(loss_fn, client_tx),
    )
