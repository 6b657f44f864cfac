"""pFedMe: personal models by Moreau envelopes."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, batch_gradient, distance, mean_loss
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained


def pfedme(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    lam: Scalar = 1.0,
    eta: Scalar = 0.1,
    inner_steps: int = 5,
) -> Algorithm:
    """pFedMe (Dinh et al. 2020, algorithm 1): the server seeks a model from which personal ones are near.

    For each local step and its batch, `theta` takes `inner_steps` steps (K) of `client_tx` on `grad f(theta) + lam
    (theta - w)`, which makes it nearly `argmin f(theta) + lam / 2 |theta - w|^2`; then `w <- w - eta lam (w - theta)`.
    Client `k` sends received minus `w`; the paper's `beta` is the rate of `server_tx`, as in `optax.sgd(beta)`. `theta`
    starts at the received model and goes on from one local step to the next. With `lam=0` the global model stands still
    and `theta` is local training. Keep `lam` times the rate of `client_tx` under 1 and `eta lam` at most 1, else steps
    overshoot. K = 5 is the paper's; it pairs a `lam` of about 15 with small rates, and `lam=1` and `eta=0.1`, which
    suit larger ones, are ours. Sends one model, keeps nothing on clients, and computes K gradients a local step.

    A client predicts with `theta` after local work that starts from the received model, as in a round, whether it ever
    took part or not. Losses are those of `theta`.

    Raises:
      InputError: `lam` or `eta` is negative, or `inner_steps` is no positive whole number.
    """
    _validate.number("lam", lam, least=0)
    _validate.number("eta", eta, least=0)
    _validate.whole("inner_steps", inner_steps)

    def work(received: PyTree, data: LocalData, key: Array) -> tuple[PyTree, PyTree, Info]:
        """`w`, `theta` and what was measured."""

        def step(index: Array, carry: PyTree, batch: PyTree, mask: Array) -> PyTree:
            local, *personal, first, _ = carry
            step_key = jax.random.fold_in(key, index)  # of all inner steps, for they minimise one function

            def inner(number: Array, carry: PyTree) -> PyTree:
                theta, memory, before = carry
                params = trained(theta)
                loss, theta, gradient = batch_gradient(loss_fn, theta, batch, mask, step_key)
                pulled = jax.tree.map(lambda g, t, w: g + jnp.asarray(lam, g.dtype) * (t - w), gradient, params, local)
                updates, memory = client_tx.update(pulled, memory, params)
                theta = with_trained(theta, optax.apply_updates(params, updates))
                return theta, memory, jnp.where(number == 0, loss, before)

            theta, memory, loss = lax.fori_loop(0, inner_steps, inner, (*personal, zero))
            local = jax.tree.map(lambda w, t: w - jnp.asarray(eta * lam, w.dtype) * (w - t), local, trained(theta))
            return local, theta, memory, jnp.where(index == 0, loss, first), loss

        zero, params = jnp.zeros((), jnp.float32), trained(received)
        start = (params, received, client_tx.init(params), zero, zero)
        local, theta, _, first, last = data.fold(step, start)
        if data.full_losses:
            first, last = mean_loss(loss_fn, received, data, key), mean_loss(loss_fn, theta, data, key)
        local = with_trained(theta, local)  # with the statistics that its neighbour has seen
        return local, theta, Info(first, last, distance(received, local))

    def run(received: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        local, _, info = work(received, data, key)
        return Message(jax.tree.map(jnp.subtract, received, local)), memory, info

    return Algorithm(
        Client(init=lambda params: (), like=Message, run=run),
        mean(weighting),
        optimizer(server_tx),
        personal=lambda received, memory, data, key: work(received, data, key)[1],
    )
