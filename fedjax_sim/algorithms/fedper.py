"""FedPer: personal layers on shared ones."""

import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LocalData, LossFn, fine_tuning
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.personal import check_pattern, merge, partial_client, partial_server


def fedper(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    personal: str | None = None,
) -> Algorithm:
    """FedPer (Arivazhagan et al. 2019): base layers as in FedAvg, and personalization layers that never leave a client.

    Client `k` joins the received `x` with its own `h_k`, runs `client_tx` on both together to `(y_k, h_k)`, keeps
    `h_k` and sends `x - y_k`. `personal` is a regular expression, searched in paths like "layer0/kernel"; by default
    the last layer is personal, which is our choice. With one client and `optax.sgd(1.0)` on the server it is FedAvg.
    Sends and receives the shared part only, keeps the personal part of every client of
    the population, and the server's model keeps it as it was at the start.

    A client predicts with the received part and its own, trained on its own examples as in a round; one that never
    took part begins with the initial personal layers.

    Raises:
      InputError: `personal` is no regular expression; from `init`, it leaves nothing to share or nothing to keep.
    """
    check_pattern(personal)
    adapt = fine_tuning(loss_fn, client_tx)

    def predictor(received: PyTree, own: PyTree, data: LocalData, key: Array) -> PyTree:
        return adapt(merge(received, own), (), data, key)

    return Algorithm(
        partial_client(loss_fn, client_tx, personal),
        mean(weighting),
        partial_server(server_tx, personal),
        personal=predictor,
    )
