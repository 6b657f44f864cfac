"""The geometric median."""

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.aggregators.finite import of_the_cohort
from fedjax_sim.core.aggregate import Aggregator, mean, weighted_sum
from fedjax_sim.core.execute import over_lanes
from fedjax_sim.core.types import Array, PyTree, Scalar, squared_norm


def geometric_median(iterations: int = 8, nu: Scalar = 1e-6, weighting: str = "examples") -> Aggregator:
    """The point with the least weighted sum of distances to the messages, by the smoothed Weiszfeld algorithm
    (Pillutla et al. 2022, RFA).

    `v <- sum_i b_i m_i / sum_i b_i` with `b_i = a_i / max(nu, |m_i - v|)`, so many times, from 0: the first step takes
    the direction of each message alike, however long it is. `a_i` are numbers of examples as in the paper, or 1.

    Raises:
      InputError: `iterations` is no whole number of at least 1, `nu` is not over 0, or `weighting` is unknown.
    """
    _validate.whole("iterations", iterations)
    _validate.number("nu", nu, above=0)
    _validate.one_of("weighting", weighting, ("examples", "uniform"))

    def combine(messages: PyTree, weights: Array) -> PyTree:
        def step(_: Array, center: PyTree) -> PyTree:
            away = jax.tree.map(jnp.subtract, messages, center)
            pull = weights / jnp.maximum(nu, jnp.sqrt(over_lanes(squared_norm, away)))
            total = pull.sum()
            return weighted_sum(messages, pull / jnp.where(total > 0, total, 1))

        start = jax.tree.map(lambda m: jnp.zeros_like(m[0]), messages)
        return jax.lax.fori_loop(0, iterations, step, start)

    return of_the_cohort(combine, mean(weighting).receive)
