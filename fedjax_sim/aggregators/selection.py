"""Rules that choose whole messages by their distances to the others."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.aggregators.coordinate import around_the_median
from fedjax_sim.aggregators.finite import of_the_cohort
from fedjax_sim.core.aggregate import Aggregator, weighted_sum
from fedjax_sim.core.types import Array, PyTree


def krum(attackers: int | None = None) -> Aggregator:
    """The one message closest to its neighbours (Blanchard et al. 2017): `multi_krum` that selects 1."""
    return multi_krum(attackers, 1)


def multi_krum(attackers: int | None = None, selected: int | None = None) -> Aggregator:
    """The mean of the `selected` messages with the least scores (Blanchard et al. 2017, Multi-Krum).

    A message's score is the sum of squared distances to its `n - f - 2` nearest others, at least one, of `n` messages
    with `f` attackers among them. Uniform. Who is not selected weighs 0 in the round's metrics, which thus tell whom
    the rule chose. Equal scores go by client id.

    Args:
      attackers: `f`; where fewer than `2 f + 3` messages arrive, and for None, the largest that `n` allows.
      selected: `m`, or None for `n - f`.

    Raises:
      InputError: a number out of range; when traced, a cohort of fewer than `2 f + 3` slots.
    """
    _count("attackers", attackers, 0)
    _count("selected", selected, 1)

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        counts = sizes > 0
        count, f = _how_many(counts, attackers, 2)
        scores = _scores(*_neighbours(messages, counts), counts, f)
        order = jnp.lexsort((ids, scores, ~counts))
        chosen = jnp.minimum(count - f if selected is None else selected, count)
        weights = (jnp.arange(len(ids)) < chosen).astype(sizes.dtype)
        return messages, jnp.zeros_like(sizes).at[order].set(weights)

    def mean(messages: PyTree, weights: Array) -> PyTree:
        return weighted_sum(messages, weights / jnp.maximum(weights.sum(), 1))

    return of_the_cohort(mean, receive)


def bulyan(attackers: int | None = None) -> Aggregator:
    """Krum chooses `n - 2 f` messages one after another, each among those left; then in each coordinate the mean of the
    `n - 4 f` values closest to their median (El Mhamdi et al. 2018).

    With `f = 0` it is the mean. Uniform. Who is not chosen weighs 0 in the round's metrics.

    Args:
      attackers: `f`; where fewer than `4 f + 3` messages arrive, and for None, the largest that `n` allows.

    Raises:
      InputError: `attackers` is no whole number of at least 0; when traced, a cohort of fewer than `4 f + 3` slots.
    """
    _count("attackers", attackers, 0)

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        counts = sizes > 0
        count, f = _how_many(counts, attackers, 4)
        distances, order = _neighbours(messages, counts)

        def choose(turn: Array, left: Array) -> Array:
            scores = _scores(distances, order, left, f)
            first = jnp.lexsort((ids, scores, ~left))[0]
            return left.at[first].set(left[first] & (turn >= count - 2 * f))

        left = jax.lax.fori_loop(0, len(ids), choose, counts)
        # alike, and summing to the number of values that are averaged, which `add` has to know
        share = (count - 4 * f) / jnp.maximum(count - 2 * f, 1)
        return messages, jnp.where(counts & ~left, share, 0).astype(sizes.dtype)

    def combine(messages: PyTree, weights: Array) -> PyTree:
        return around_the_median(messages, weights, jnp.round(weights.sum()).astype(jnp.int32))

    return of_the_cohort(combine, receive)


def _count(name: str, value: int | None, least: int) -> None:
    if value is not None:
        _validate.whole(name, value, least=least)


def _how_many(counts: Array, attackers: int | None, times: int) -> tuple[Array, Array]:
    """How many messages count, and the attackers among them: at most what `times * f + 3` messages allow."""
    slots, count = counts.shape[0], counts.sum()
    if attackers is not None and slots < times * attackers + 3:
        raise _validate.InputError(
            f"attackers: {attackers} in a cohort of {slots} breaks n >= {times} f + 3; give at most "
            f"{max(slots - 3, 0) // times}, or a cohort of {times * attackers + 3}"
        )
    allowed = jnp.maximum(count - 3, 0) // times
    return count, allowed if attackers is None else jnp.minimum(attackers, allowed)


def _neighbours(messages: PyTree, counts: Array) -> tuple[Array, Array]:
    """Squared distances of each message [C, C] to the others, in ascending order, and whose they are."""

    def products(leaf: Array) -> Array:
        leaf = leaf.astype(jnp.float32)
        if leaf.ndim > 2 and leaf.shape[1] % 2:  # which several devices split along a later axis, and could not flatten
            axes = tuple(range(1, leaf.ndim))
            return lax.dot_general(leaf, leaf, ((axes, axes), ((), ())), precision=lax.Precision.HIGHEST)
        flat = leaf.reshape(leaf.shape[0], -1)
        return jnp.matmul(flat, flat.T, precision="highest")

    gram = jnp.stack([products(leaf) for leaf in jax.tree.leaves(messages)]).sum(0)
    gram = (gram + gram.T) / 2  # so that two nearest neighbours tie exactly, whatever the order of the cohort
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares - 2 * gram, 0)
    others = counts & ~jnp.eye(len(counts), dtype=bool)
    distances = jnp.where(others & ~jnp.isnan(distances), distances, jnp.inf)  # an overflow is far away
    order = jnp.argsort(distances, axis=1)
    return jnp.take_along_axis(distances, order, axis=1), order


def _scores(distances: Array, order: Array, among: Array, f: Array) -> Array:
    """Krum's score of each message with regard to those `among` which it is chosen."""
    count = among.sum()
    neighbours = jnp.clip(count - f - 2, 1, jnp.maximum(count - 1, 1))
    there = among[order]
    nearest = there & (jnp.cumsum(there, axis=1) <= neighbours)
    return jnp.where(nearest, distances, 0).sum(1)
