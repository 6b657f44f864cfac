"""APFL: a mixture of a local and the global model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, batch_gradient, distance, mean_loss
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import Array, PyTree, Scalar, trained, with_trained


class Memory(NamedTuple):
    """What a client keeps."""

    own: PyTree  # v; its statistics, if any, are the mixture's
    alpha: PyTree  # f32[] where it is adaptive, else ()


def _mixed(own: PyTree, alpha: Scalar, model: PyTree) -> PyTree:
    """`alpha v + (1 - alpha) w`, with the statistics of `v`."""

    def mix(v: Array, w: Array) -> Array:
        share = jnp.asarray(alpha, v.dtype)
        return share * v + (1 - share) * w

    return with_trained(own, jax.tree.map(mix, trained(own), trained(model)))


def apfl(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    alpha: Scalar = 0.5,
    adaptive: bool = False,
    alpha_rate: Scalar = 0.1,
) -> Algorithm:
    """APFL (Deng et al. 2020, algorithm 1): clients predict with a mixture of their own and the global model.

    In each local step client `k` moves `w`, which starts at the received model, by `client_tx` as in FedAvg, and its
    own `v_k` by another `client_tx` on the gradient by `v_k` of `f(alpha v_k + (1 - alpha) w)`, both at the old values
    and on the same batch. It sends received minus `w` and keeps `v_k`. With `adaptive` each client also keeps its
    `alpha`, which in each local step becomes `alpha - alpha_rate <v_k - w, grad f>`, held from 0 to 1; the paper takes
    the learning rate here, which only the optimizer knows. With `alpha=0` the mixture is the global model, with
    `alpha=1` local training alone; the global model is FedAvg's with any. Defaults are ours. Sends one model, keeps one
    per client of the population, and computes two gradients a local step.

    A client predicts with the mixture of its `v_k` and the received model, without further training; for one that never
    took part `v_k` is the initial model. Losses are those of `w`.

    Raises:
      InputError: `alpha` is not from 0 to 1, `alpha_rate` is negative, or `adaptive` is neither true nor false.
    """
    _validate.number("alpha_rate", alpha_rate, least=0)
    if not isinstance(_validate.number("alpha", alpha, least=0), Tracer) and alpha > 1:
        raise _validate.InputError(f"alpha: {_validate.shown(alpha)} is out of range; give a number from 0 to 1")
    _validate.one_of("adaptive", adaptive, (False, True))

    def share_of(kept: PyTree) -> Scalar:
        return kept if adaptive else alpha

    def run(received: PyTree, memory: Memory, data: LocalData, key: Array) -> tuple[Message, Memory, Info]:
        def step(index: Array, carry: PyTree, batch: PyTree, mask: Array) -> PyTree:
            (model, (own, kept)), (model_state, own_state), (first, _) = carry
            w, v, share, step_key = trained(model), trained(own), share_of(kept), jax.random.fold_in(key, index)
            _, own, slope = batch_gradient(loss_fn, _mixed(own, share, model), batch, mask, step_key)
            by_own = jax.tree.map(lambda g: jnp.asarray(share, g.dtype) * g, slope)
            own_updates, own_state = client_tx.update(by_own, own_state, v)
            if adaptive:
                descent = alpha_rate * optax.tree.vdot(jax.tree.map(jnp.subtract, v, w), slope)
                kept = jnp.clip(kept - jnp.asarray(descent, jnp.float32), 0, 1)
            loss, model, slope = batch_gradient(loss_fn, model, batch, mask, step_key)
            updates, model_state = client_tx.update(slope, model_state, w)
            model = with_trained(model, optax.apply_updates(w, updates))
            memory = Memory(with_trained(own, optax.apply_updates(v, own_updates)), kept)
            return (model, memory), (model_state, own_state), (jnp.where(index == 0, loss, first), loss)

        zero = jnp.zeros((), jnp.float32)
        states = client_tx.init(trained(received)), client_tx.init(trained(memory.own))
        (model, memory), _, (first, last) = data.fold(step, ((received, memory), states, (zero, zero)))
        if data.full_losses:
            first, last = mean_loss(loss_fn, received, data, key), mean_loss(loss_fn, model, data, key)
        info = Info(first, last, distance(received, model))
        return Message(jax.tree.map(jnp.subtract, received, model)), memory, info

    return Algorithm(
        Client(init=lambda params: Memory(params, jnp.float32(alpha) if adaptive else ()), like=Message, run=run),
        mean(weighting),
        optimizer(server_tx),
        personal=lambda received, memory, data, key: _mixed(memory.own, share_of(memory.alpha), received),
    )
