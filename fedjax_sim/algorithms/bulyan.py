"""Federated training with Bulyan."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer


def bulyan(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    attackers: int | None = None,
) -> Algorithm:
    """Bulyan (El Mhamdi et al. 2018): Krum first, then a trimmed mean of each coordinate.

    Of what FedAvg's clients send, Krum chooses `n - 2 f` messages one after another, each among those left; the server
    takes in each coordinate the mean of the `n - 4 f` values closest to their median.

    Clients count alike; messages that are not finite are left out. `f` is `attackers`, and needs `n >= 4 f + 3`
    messages: with fewer, and by default (ours), it is the largest that the `n` messages allow. Towards the end fewer
    messages are left than Krum asks for; a score then counts at least one neighbour. With `attackers=0` it is FedAvg
    with `weighting="uniform"`. Sends one model, keeps nothing on clients; stores the cohort's messages, computes all
    their distances and sorts each coordinate twice.

    Raises:
      InputError: `attackers` is no whole number of at least 0; when traced, a cohort with fewer than `4 f + 3` slots.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.bulyan(attackers),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
