"""Federated training with centred clipping."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar


def centered_clipping(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    tau: Scalar = 1.0,
    iterations: int = 3,
) -> Algorithm:
    """Centred clipping (Karimireddy et al. 2021) of what FedAvg's clients send.

    The server repeats `v <- v + mean_i (m_i - v) min(1, tau / |m_i - v|)`, `iterations` times.

    The paper starts from its last aggregate and lets clients send momenta; here `v` starts at 0 in each round, the
    model the server sent out, which needs no memory and no client's word, and clients send what they changed. A
    momentum in `server_tx` is the server's. Clients count alike; messages that are not finite are left out. With a
    `tau` over every norm it is FedAvg with `weighting="uniform"`, with one iteration norm bounding. The aggregate is at
    most `iterations * tau` long. `tau` has the scale of an update's norm (`RoundMetrics.update_norm`); both defaults
    are ours. Sends one model, keeps nothing on clients; stores the cohort's messages.

    Raises:
      InputError: `tau` is not over 0, or `iterations` is no whole number of at least 1.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.centered_clipping(tau, iterations),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
