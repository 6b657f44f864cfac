"""Signs by majority vote."""

import optax

from fedjax_sim.aggregators import majority_vote
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, fine_tuning, sgd_client
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Scalar
from fedjax_sim.messages import sign
from fedjax_sim.optimizers import checked_rate


def signsgd(
    loss_fn: LossFn, *, client_tx: optax.GradientTransformation, server_learning_rate: Scalar | optax.Schedule = 0.001
) -> Algorithm:
    """signSGD with majority vote (Bernstein et al. 2019, algorithm 1), on pseudo-gradients instead of gradients.

    Clients train as in FedAvg and send the signs of what has changed; each entry of the model moves by
    `server_learning_rate` the way most clients say, and stays where they are even. One local step is signSGD. With one
    client and rate 1 the model moves by the signs of its update. The default rate is a round figure near the paper's
    1e-4 for images: set it, and let it fall, for no step is ever smaller.

    Clients count alike, whatever number of examples they claim; messages that are not finite are left out. Sends one
    bit for each parameter and 32 for each array, and keeps nothing on clients.

    Raises:
      InputError: the rate is not over 0.
    """
    checked_rate("server_learning_rate", server_learning_rate)
    return Algorithm(
        sgd_client(loss_fn, client_tx),
        majority_vote(),
        optimizer(optax.sgd(server_learning_rate)),
        sign(),
        personal=fine_tuning(loss_fn, client_tx),
    )
