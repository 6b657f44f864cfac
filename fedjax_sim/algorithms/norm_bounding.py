"""Federated training with bounded updates."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar


def norm_bounding(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    bound: Scalar = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """Norm bounding (Sun et al. 2019): the mean of what FedAvg's clients send, `m_i min(1, bound / |m_i|)`.

    Clients count alike unless `weighting="examples"`; messages that are not finite are left out. With a `bound` over
    every norm it is FedAvg. A client moves the mean of `n` by at most `bound / n`, and no vote stops many clients.
    `bound` has the scale of an update's norm; its default is ours. The norms that the round reports are those after
    clipping. Sends one model, keeps nothing on clients, stores no messages.

    Raises:
      InputError: `bound` is not over 0, or `weighting` is unknown.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.norm_bounding(bound, weighting),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
