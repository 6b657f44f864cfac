"""FedBN: local batch normalisation."""

import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn
from fedjax_sim.personal import check_pattern, merge, partial_client, partial_server


def fedbn(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    personal: str = r"(?i)norm|(^|/)bn|statistics",
) -> Algorithm:
    """FedBN (Li et al. 2021, "FedBN"): FedAvg, but normalisation layers and their statistics stay with the client.

    Client `k` joins the received `x` with its own `b_k`, runs `client_tx` on both together to `(y_k, b_k)`, keeps
    `b_k` and sends `x - y_k`. `personal` is a regular expression, searched in paths like "params/norm0/scale" and
    "statistics/norm0/mean"; by default it finds whatever has norm in its name or begins with bn, and all `statistics`
    of `Variables`. With one client and `optax.sgd(1.0)` on the server it is FedAvg. Sends and receives the shared
    part only, keeps the personal part of every client of the population, and the server's model keeps it as it was at
    the start.

    A client predicts with the received part and its own as it stands, without further training. One that never took
    part has the initial normalisation and statistics, which may fit it badly.

    Raises:
      InputError: `personal` is no regular expression; from `init`, it leaves nothing to share or nothing to keep.
    """
    check_pattern(personal)
    return Algorithm(
        partial_client(loss_fn, client_tx, personal),
        mean(weighting),
        partial_server(server_tx, personal),
        personal=lambda received, own, data, key: merge(received, own),
    )
