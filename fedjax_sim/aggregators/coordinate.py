"""Robust means of each coordinate for itself."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.aggregators.finite import of_the_cohort, per_message
from fedjax_sim.aggregators.sorting import sorted_rows
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.types import Array, PyTree, Scalar


def trimmed_mean(fraction: Scalar) -> Aggregator:
    """In each coordinate, the mean without the `floor(fraction * n)` largest and as many smallest of `n` values (Yin et
    al. 2018, definition 2). One half leaves the median. Uniform over clients.

    Raises:
      InputError: `fraction` is not from 0 to 1/2.
    """
    if not isinstance(_validate.number("fraction", fraction, least=0), Tracer) and fraction > 0.5:
        raise _validate.InputError(f"fraction: {_validate.shown(fraction)} is out of range; give one from 0 to 0.5")

    def combine(messages: PyTree, weights: Array) -> PyTree:
        count = jnp.sum(weights > 0)
        # 0.29 * 100 is just below 29 in floating point; never is everything cut
        cut = jnp.minimum(jnp.floor(fraction * count + 1e-4).astype(count.dtype), jnp.maximum(count - 1, 0) // 2)
        return jax.tree.map(lambda m: _between(_ascending(m, weights), cut, count - cut), messages)

    return of_the_cohort(combine)


def coordinate_median() -> Aggregator:
    """The median of each coordinate, of an even number of values the mean of the middle two (Yin et al. 2018,
    definition 1). Uniform over clients."""
    return trimmed_mean(0.5)


def around_the_median(messages: PyTree, weights: Array, kept: Array) -> PyTree:
    """In each coordinate, the mean of the `kept` values closest to the median of those that count."""
    count = jnp.sum(weights > 0)

    def mean(leaf: Array) -> Array:
        cut = jnp.maximum(count - 1, 0) // 2
        away = jnp.abs(leaf - _between(_ascending(leaf, weights), cut, count - cut))
        present = per_message(weights > 0, leaf)
        away = jnp.where(present, away, jnp.inf)
        farthest = jnp.take(sorted_rows(away), jnp.maximum(kept - 1, 0), axis=0)
        within, at = away < farthest, (away == farthest) & present
        # values equally far share what room is left, so that their order does not matter
        room = (kept - within.sum(0)) / jnp.maximum(at.sum(0), 1)
        total = jnp.where(within, leaf, 0).sum(0) + jnp.where(at, leaf, 0).sum(0) * room.astype(leaf.dtype)
        return total / jnp.maximum(kept, 1).astype(leaf.dtype)

    return jax.tree.map(mean, messages)


def _ascending(leaf: Array, weights: Array) -> Array:
    """Values of each coordinate in order, those that do not count last."""
    return sorted_rows(jnp.where(per_message(weights > 0, leaf), leaf, jnp.inf))


def _between(ordered: Array, first: Array, last: Array) -> Array:
    """Mean of rows `first` up to `last`, 0 if there are none."""
    rank = per_message(jnp.arange(ordered.shape[0]), ordered)
    total = jnp.where((rank >= first) & (rank < last), ordered, 0).sum(0)
    return total / jnp.maximum(last - first, 1).astype(ordered.dtype)
