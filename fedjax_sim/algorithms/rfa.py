"""Federated training with the geometric median."""

import optax

from fedjax_sim import aggregators
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar


def rfa(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    iterations: int = 8,
    nu: Scalar = 1e-6,
    weighting: str = "examples",
) -> Algorithm:
    """RFA (Pillutla et al. 2022): the geometric median of what FedAvg's clients send.

    By the smoothed Weiszfeld algorithm: the server repeats `v <- sum_i b_i m_i / sum_i b_i` with
    `b_i = a_i / max(nu, |m_i - v|)`, `iterations` times, from 0, the model it sent out: no message decides where it
    starts. `a_i` are numbers of examples as in the paper, so that a client may gain weight by claiming many, or 1 with
    `weighting="uniform"`. Messages that are not finite are left out. With one client, or a `nu` over all distances, it
    is FedAvg. Withstands wrong messages of less than half of the weight. The paper spends a secure sum on every
    iteration, and hence few; here one costs two passes over the messages, and 8 iterations from 0 are our choice.
    Sends one model, keeps nothing on clients; stores the cohort's messages.

    Raises:
      InputError: `iterations` is no whole number of at least 1, `nu` is not over 0, or `weighting` is unknown.
    """
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        aggregators.geometric_median(iterations, nu, weighting),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
