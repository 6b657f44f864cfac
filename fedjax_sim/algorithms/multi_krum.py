"""Federated training with Multi-Krum."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer


def multi_krum(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    attackers: int | None = None,
    selected: int | None = None,
) -> Algorithm:
    """Multi-Krum (Blanchard et al. 2017): the mean of the messages in the densest places.

    Of what FedAvg's clients send, the server averages the `selected` messages with the least sums of squared distances
    to their `n - f - 2` nearest others.

    Clients count alike; messages that are not finite are left out. `f` is `attackers`, and needs `n >= 2 f + 3`
    messages: with fewer, and by default (ours), it is the largest that the `n` messages allow. `selected` is by default
    `n - f`, our choice. With as many as the cohort has it is FedAvg with `weighting="uniform"`, with 1 it is Krum.
    `RoundMetrics.weight` tells whom it took. Sends one model, keeps nothing on clients; stores the cohort's messages
    and computes all their distances.

    Raises:
      InputError: a number out of range; when traced, a cohort with fewer than `2 f + 3` slots.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.multi_krum(attackers, selected),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
