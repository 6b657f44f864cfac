"""Adaptive server optimizers, and what algorithms against client drift share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import Aggregator, mean, weighted_sum
from fedjax_sim.core.client import Message
from fedjax_sim.core.types import Array, PyTree, Scalar

Rate = Scalar | optax.Schedule


class Moments(NamedTuple):
    """What an adaptive server optimizer keeps, in float32 at least."""

    first: PyTree  # m
    second: PyTree  # v


def checked_rate(name: str, value: Any) -> Any:
    """`value`, a number over 0 or a schedule."""
    return value if callable(value) else _validate.number(name, value, above=0)


def fed_adam(
    learning_rate: Rate, beta1: Scalar = 0.9, beta2: Scalar = 0.99, tau: Scalar = 1e-3
) -> optax.GradientTransformation:
    """`v <- beta2 v + (1 - beta2) d^2` (Reddi et al. 2021, algorithm 2).

    Like all three: `m <- beta1 m + (1 - beta1) d` and `x <- x - rate m / (sqrt(v) + tau)` on the pseudo-gradient `d`.
    There is no bias correction, and `v` starts at `tau^2`: that sets them apart from `optax.adam` and its kin.
    """
    return _adaptive(learning_rate, beta1, tau, lambda v, square: beta2 * v + (1 - beta2) * square)


def fed_yogi(
    learning_rate: Rate, beta1: Scalar = 0.9, beta2: Scalar = 0.99, tau: Scalar = 1e-3
) -> optax.GradientTransformation:
    """`v <- v - (1 - beta2) d^2 sign(v - d^2)`, otherwise as `fed_adam` (Reddi et al. 2021, algorithm 2)."""
    return _adaptive(learning_rate, beta1, tau, lambda v, square: v - (1 - beta2) * square * jnp.sign(v - square))


def fed_adagrad(learning_rate: Rate, beta1: Scalar = 0.0, tau: Scalar = 1e-3) -> optax.GradientTransformation:
    """`v <- v + d^2`, otherwise as `fed_adam` (Reddi et al. 2021, algorithm 2)."""
    return _adaptive(learning_rate, beta1, tau, lambda v, square: v + square)


def _adaptive(
    learning_rate: Rate, beta1: Scalar, tau: Scalar, renew: Callable[[Array, Array], Array]
) -> optax.GradientTransformation:
    def filled(params: PyTree, value: Scalar) -> PyTree:
        return jax.tree.map(lambda p: jnp.full(p.shape, value, jnp.promote_types(p.dtype, jnp.float32)), params)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, PyTree]:
        def first(m: Array, d: Array) -> Array:
            return (beta1 * m + (1 - beta1) * d.astype(m.dtype)).astype(m.dtype)

        def second(v: Array, d: Array) -> Array:
            return renew(v, d.astype(v.dtype) ** 2).astype(v.dtype)

        state = Moments(jax.tree.map(first, state.first, updates), jax.tree.map(second, state.second, updates))
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), *state), state

    scale = optax.GradientTransformation(lambda params: Moments(filled(params, 0.0), filled(params, tau**2)), update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def unit_displacement(tx: optax.GradientTransformation, params: PyTree, steps: Array | int) -> PyTree:
    """How far `tx` moves an entry in `steps` steps whose gradient is always 1; `rate * steps` for plain SGD.

    For any optimizer that is linear in the gradients this is the sum of their weights in the displacement: dividing by
    it makes a displacement a weighted mean of gradients, whatever momentum or schedule. One entry per leaf of `params`,
    float32 at least, that broadcasts against it, for masks and rates may differ by leaf.
    """
    zero = jax.tree.map(lambda p: jnp.zeros((1,) * p.ndim, jnp.promote_types(p.dtype, jnp.float32)), params)
    one = jax.tree.map(jnp.ones_like, zero)

    def step(_: Array, carry: PyTree) -> PyTree:
        moved, memory = carry
        updates, memory = tx.update(one, memory, moved)
        return optax.apply_updates(moved, updates), memory

    moved, _ = lax.fori_loop(0, steps, step, (zero, tx.init(zero)))
    return jax.tree.map(jnp.negative, moved)


def per_unit(update: PyTree, moved: PyTree) -> PyTree:
    """`update / moved`, leaf by leaf, in the dtype of `update`; where nothing can move, `update` itself."""
    return jax.tree.map(lambda u, s: (u / jnp.where(s > 0, s, 1)).astype(u.dtype), update, moved)


def mean_and_sum(
    weighting: str = "examples", summed: Callable[[Message], PyTree] = lambda message: message.extra
) -> Aggregator:
    """The mean of the updates and, in `extra`, the plain sum of `summed(message)` over the clients that count.

    Such a sum over the number of clients in the population moves a mean over all of them (Karimireddy et al. 2020).
    """
    updates = mean(weighting)

    def add(acc: PyTree, messages: Message, weights: Array) -> PyTree:
        update, total = acc
        new = weighted_sum(summed(messages), (weights > 0).astype(weights.dtype))
        return updates.add(update, messages.update, weights), jax.tree.map(jnp.add, total, new)

    return Aggregator(
        receive=updates.receive,
        init=lambda message: (updates.init(message.update), jax.tree.map(jnp.zeros_like, summed(message))),
        add=add,
        finish=lambda acc: Message(updates.finish(acc[0]), acc[1]),
        of_mean=lambda mean, count: Message(mean.update, jax.tree.map(lambda m: m * count, summed(mean))),
    )
