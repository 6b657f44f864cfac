"""Per-FedAvg: a model that is good after a step of adapting."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
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
)
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained


def perfedavg(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    alpha: Scalar = 0.01,
    first_order: bool = False,
) -> Algorithm:
    """Per-FedAvg (Fallah et al. 2020, algorithm 1): federated training of a start from which clients adapt (MAML).

    In each local step `client_tx` sees the gradient by `w` of `f(w - alpha grad f(w; D'); D)`, which is `(I - alpha
    Hessian f(w; D')) grad f(w - alpha grad f(w; D'); D)`, computed by differentiating through the inner step; with
    `first_order` the Hessian is left out. `D` is the batch of the local step, `D'` the one that as many steps later
    would come; the paper draws a third for the Hessian, which here is that of the inner step itself. With `alpha=0` it
    is FedAvg. The default `alpha` is ours. Sends one model, keeps nothing on clients, and costs two gradients a local
    step, the exact version about twice that.

    A client predicts with the received model after plain gradient steps of rate `alpha` on its own examples, as many as
    it is given steps for adapting (the paper takes one). Losses are those of the adapted model on `D`; over all
    examples, those of the received and the trained model themselves.

    Raises:
      InputError: `alpha` is negative, or `first_order` is neither true nor false.
    """
    _validate.number("alpha", alpha, least=0)
    _validate.one_of("first_order", first_order, (False, True))

    def run(received: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        def step(index: Array, carry: PyTree, batch: PyTree, mask: Array) -> PyTree:
            model, state, first, _ = carry
            other, inner_batch = index + data.steps, data.batch(index + data.steps)

            def adapted(params: PyTree) -> PyTree:
                def inner(params: PyTree) -> Array:
                    variables = with_trained(model, params)
                    return batch_loss(loss_fn, variables, *inner_batch, jax.random.fold_in(key, other))[0]

                return jax.tree.map(lambda p, g: p - jnp.asarray(alpha, p.dtype) * g, params, jax.grad(inner)(params))

            def outer(params: PyTree) -> tuple[Array, PyTree]:
                return batch_loss(loss_fn, with_trained(model, params), batch, mask, jax.random.fold_in(key, index))

            def objective(params: PyTree) -> tuple[Array, PyTree]:
                return outer(adapted(params))

            params = trained(model)
            of, where = (outer, adapted(params)) if first_order else (objective, params)
            (loss, model), gradient = jax.value_and_grad(of, has_aux=True)(where)
            updates, state = client_tx.update(gradient, state, params)
            model = with_trained(model, optax.apply_updates(params, updates))
            loss = loss.astype(jnp.float32)
            return model, state, jnp.where(index == 0, loss, first), loss

        zero = jnp.zeros((), jnp.float32)
        model, _, first, last = data.fold(step, (received, client_tx.init(trained(received)), zero, zero))
        if data.full_losses:
            first, last = mean_loss(loss_fn, received, data, key), mean_loss(loss_fn, model, data, key)
        update = jax.tree.map(jnp.subtract, received, model)
        return Message(update), memory, Info(first, last, distance(received, model))

    return Algorithm(
        Client(init=lambda params: (), like=Message, run=run),
        mean(weighting),
        optimizer(server_tx),
        personal=fine_tuning(loss_fn, optax.sgd(alpha)),
    )
