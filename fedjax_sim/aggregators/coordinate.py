"""Robust means of each coordinate for itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.aggregators.finite import of_the_cohort, per_message
from fedjax_sim.aggregators.sorting import mean_of_ranks, rows_of, sum_of_rows
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.types import Array, PyTree, Scalar

SMALL = 2**13  # entries of a leaf up to which it is joined with others


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

        def mean(m: Array) -> Array:
            return mean_of_ranks(_counted(rows_of(m), rows_of(per_message(weights > 0, m))), cut, count - cut)

        return by_coordinate(mean, messages)

    return of_the_cohort(combine)


def coordinate_median() -> Aggregator:
    """The median of each coordinate, of an even number of values the mean of the middle two (Yin et al. 2018,
    definition 1). Uniform over clients."""
    return trimmed_mean(0.5)


def around_the_median(messages: PyTree, weights: Array, kept: Array) -> PyTree:
    """In each coordinate, the mean of the `kept` values closest to the median of those that count."""
    count, least = jnp.sum(weights > 0), jnp.maximum(kept - 1, 0)
    cut = jnp.maximum(count - 1, 0) // 2

    def mean(m: Array) -> Array:
        rows, counts = rows_of(m), rows_of(per_message(weights > 0, m))

        def rank(turn: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            """First the median, then how far the last of the kept values is from it."""
            _, median = found
            values = [jnp.where(turn == 0, row, jnp.abs(row - median)) for row in rows]
            first, last = jnp.where(turn == 0, cut, least), jnp.where(turn == 0, count - cut, least + 1)
            return median, mean_of_ranks(_counted(values, counts), first, last)

        # a loop, so that one network is compiled, and the median written to memory instead of found for each row anew
        median, farthest = lax.fori_loop(0, 2, rank, (jnp.zeros_like(m[0]), jnp.zeros_like(m[0])))
        away = _counted([jnp.abs(row - median) for row in rows], counts)
        within = [d < farthest for d in away]
        at = [(d == farthest) & c for d, c in zip(away, counts, strict=True)]
        # values equally far share what room is left, so that their order does not matter
        closer, equal = (sum_of_rows([x.astype(m.dtype) for x in which]) for which in (within, at))
        inner, edge = (
            sum_of_rows([jnp.where(w, row, 0) for w, row in zip(x, rows, strict=True)]) for x in (within, at)
        )
        room = (kept.astype(m.dtype) - closer) / jnp.maximum(equal, 1)
        return (inner + edge * room) / jnp.maximum(kept, 1).astype(m.dtype)

    return by_coordinate(mean, messages)


def by_coordinate(rule: Callable[[Array], Array], messages: PyTree) -> PyTree:
    """`rule`, of values [C, ...] of any shape and each coordinate for itself, of every leaf; small leaves in one, for
    what is compiled grows with their number."""
    leaves, structure = jax.tree.flatten(messages)
    results: dict[int, Array] = {}
    for dtype in {leaf.dtype for leaf in leaves}:
        small = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype and leaf[0].size < SMALL]
        if small:
            flat = [leaves[i].reshape(len(leaves[i]), -1) for i in small]
            ends = np.cumsum([x.shape[1] for x in flat])[:-1]
            parts = jnp.split(rule(jnp.concatenate(flat, axis=1)), ends)
            results |= {i: part.reshape(leaves[i].shape[1:]) for i, part in zip(small, parts, strict=True)}
    return structure.unflatten([results[i] if i in results else rule(leaf) for i, leaf in enumerate(leaves)])


def _counted(rows: list[Array], counts: list[Array]) -> list[Array]:
    """`rows` with infinity where a value does not count, which puts it last."""
    return [jnp.where(c, row, jnp.inf) for row, c in zip(rows, counts, strict=True)]
