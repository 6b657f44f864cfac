"""Federated training with Krum."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer


def krum(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    attackers: int | None = None,
) -> Algorithm:
    """Krum (Blanchard et al. 2017): one message, the one in the densest place.

    Of what FedAvg's clients send, the server takes the message with the least sum of squared distances to its
    `n - f - 2` nearest others.

    Clients count alike; messages that are not finite are left out. `f` is `attackers`, and needs `n >= 2 f + 3`
    messages: with fewer, and by default (ours), it is the largest that the `n` messages allow. With one client it is
    FedAvg. The model only ever learns from one client at a time, which is slow where clients differ; `multi_krum`
    averages several. `RoundMetrics.weight` tells whom it took. Sends one model, keeps nothing on clients; stores the
    cohort's messages and computes all their distances.

    Raises:
      InputError: `attackers` is no whole number of at least 0; when traced, a cohort with fewer than `2 f + 3` slots.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.krum(attackers),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
