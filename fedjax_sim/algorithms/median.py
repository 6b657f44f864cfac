"""Federated training with the coordinate-wise median."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer


def median(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
) -> Algorithm:
    """The median of each coordinate (Yin et al. 2018, algorithm 1, option I, there on gradients).

    Clients train as in FedAvg; of an even number of values the median is the mean of the middle two.

    Clients count alike, whatever number of examples they claim; messages that are not finite are left out. With one or
    two clients it is FedAvg with `weighting="uniform"`. Withstands wrong messages of fewer than half of the clients,
    but where honest clients differ, as with skewed labels, their median need not be near their mean.
    Sends one model, keeps nothing on clients; stores the cohort's messages and sorts each coordinate.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.coordinate_median(),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
