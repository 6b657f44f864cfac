"""FedSGD: one gradient of all a client's examples."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import (
    Client,
    Info,
    LocalData,
    LossFn,
    Message,
    batch_loss,
    distance,
    fine_tuning,
    mean_loss,
    over_examples,
)
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Array, PyTree, trained, with_trained


def fedsgd(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
) -> Algorithm:
    """FedSGD (McMahan et al. 2017, section 2): `x <- x - rate sum_k n_k grad f_k(x) / sum_k n_k`.

    Each client takes one step of `client_tx` with the gradient of its mean loss over all its examples, whatever epochs
    or local steps are asked for; the batch size says only how many examples are held at once. With all clients it is
    centralised gradient descent, and FedAvg with one local step and a batch that holds everybody's examples. Statistics
    of `Variables` are the means over the batches. Sends one model, keeps nothing on clients, passes once over the
    examples.
    """

    def gradient(model: PyTree, data: LocalData, key: Array) -> tuple[Array, PyTree]:
        """The mean loss, and `model` with the gradient in place of what is differentiated."""

        def value(batch: PyTree, mask: Array, key: Array) -> tuple[Array, PyTree]:
            def objective(params: PyTree) -> tuple[Array, PyTree]:
                return batch_loss(loss_fn, with_trained(model, params), batch, mask, key)

            (loss, renewed), slope = jax.value_and_grad(objective, has_aux=True)(trained(model))
            return loss.astype(jnp.float32), with_trained(renewed, slope)

        return over_examples(value, data, key)

    def run(model: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        loss, mean_gradient = gradient(model, data, key)
        params = trained(model)
        updates, _ = client_tx.update(trained(mean_gradient), client_tx.init(params), params)
        result = with_trained(mean_gradient, optax.apply_updates(params, updates))
        after = mean_loss(loss_fn, result, data, key) if data.full_losses else loss
        return Message(jax.tree.map(jnp.subtract, model, result)), memory, Info(loss, after, distance(model, result))

    return Algorithm(
        Client(init=lambda params: (), like=Message, run=run),
        mean(weighting),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, client_tx),
    )
