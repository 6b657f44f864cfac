"""Robustness by clipping: no client moves the aggregate further than a radius allows."""

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.aggregators.finite import finite_only, of_the_cohort, per_message
from fedjax_sim.core.aggregate import Aggregator, mean, weighted_sum
from fedjax_sim.core.execute import over_lanes
from fedjax_sim.core.types import Array, PyTree, Scalar, squared_norm


def shrinking(messages: PyTree, radius: Scalar) -> Array:
    """What each message [L, ...] is multiplied by so that its L2 norm, over all leaves, is at most `radius`, f32[L]."""
    norms = jnp.sqrt(over_lanes(squared_norm, messages))
    return jnp.minimum(1, radius / jnp.where(norms > 0, norms, radius))


def norm_bounding(bound: Scalar, weighting: str = "uniform") -> Aggregator:
    """The mean of the messages, each scaled down to an L2 norm of at most `bound` (Sun et al. 2019, section 4).

    It streams: no message is stored. The norms that the round reports are those after clipping.

    Raises:
      InputError: `bound` is not over 0, or `weighting` is unknown.
    """
    _validate.number("bound", bound, above=0)
    average = mean(weighting)

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        scale = shrinking(messages, bound)
        clipped = jax.tree.map(lambda m: m * per_message(scale, m).astype(m.dtype), messages)
        return average.receive(clipped, ids, sizes, key)

    return finite_only(average._replace(receive=receive))


def centered_clipping(tau: Scalar, iterations: int = 3) -> Aggregator:
    """`v <- v + mean_i (m_i - v) min(1, tau / |m_i - v|)`, so many times, from 0 (Karimireddy et al. 2021).

    The paper starts from its last aggregate. An aggregator keeps nothing between rounds, so this one starts from the
    model that was sent out, and takes more than one step. Once from 0 is norm bounding. Uniform over clients.

    Raises:
      InputError: `tau` is not over 0, or `iterations` is no whole number of at least 1.
    """
    _validate.number("tau", tau, above=0)
    _validate.whole("iterations", iterations)

    def combine(messages: PyTree, weights: Array) -> PyTree:
        shares = weights / jnp.maximum(weights.sum(), 1)

        def step(_: Array, center: PyTree) -> PyTree:
            pull = shares * shrinking(jax.tree.map(jnp.subtract, messages, center), tau)
            # not the sum of how far they are away, times `pull`, which would be as large as the cohort
            rest = jax.tree.map(lambda c: c * (1 - pull.sum()).astype(c.dtype), center)
            return jax.tree.map(jnp.add, rest, weighted_sum(messages, pull))

        start = jax.tree.map(lambda m: jnp.zeros_like(m[0]), messages)
        return jax.lax.fori_loop(0, iterations, step, start)

    return of_the_cohort(combine)
