"""Federated training with the coordinate-wise trimmed mean."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar


def trimmed_mean(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    fraction: Scalar = 0.2,
) -> Algorithm:
    """The trimmed mean of each coordinate (Yin et al. 2018, algorithm 1, option II, there on gradients).

    Clients train as in FedAvg; of `n` values the server leaves out the `floor(fraction * n)` largest and as many
    smallest, and takes the mean of the rest.

    Clients count alike, whatever number of examples they claim; messages that are not finite are left out. With
    `fraction=0` it is FedAvg with `weighting="uniform"`, with 1/2 the median. Withstands wrong messages of up to that
    fraction of the clients; the default of a fifth is ours. Sends one model, keeps nothing on clients; stores the
    cohort's messages and sorts each coordinate.

    Raises:
      InputError: `fraction` is not from 0 to 1/2.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.trimmed_mean(fraction),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
