"""What all robust rules share: messages that are not finite are left out, and a rule may need the cohort whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.execute import over_lanes
from fedjax_sim.core.types import Array, PyTree, squared_norm


def finite_only(aggregator: Aggregator) -> Aggregator:
    """`aggregator` without the messages whose squared norm, over all their leaves, is not a finite float32.

    They weigh 0, `aggregator` sees zeros of a client without examples in their place, and the round counts them in
    `RoundMetrics.rejected`. One NaN would otherwise be everybody's.
    """

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        finite = jnp.isfinite(over_lanes(squared_norm, messages))
        zeroed = jax.tree.map(lambda m: jnp.where(per_message(finite, m), m, 0), messages)
        seen, weights = aggregator.receive(zeroed, ids, jnp.where(finite, sizes, 0), key)

        def restored(seen: Array, zeroed: Array, m: Array) -> Array:
            """The round measures what came, so what was not finite goes on as it is."""
            return m if seen is zeroed else jnp.where(per_message(finite, m), seen, m)

        return jax.tree.map(restored, seen, zeroed, messages), jnp.where(finite, weights, 0)

    return aggregator._replace(receive=receive, of_mean=None)


def per_message(values: Any, leaf: Array) -> Array:
    """`values` [L] shaped to multiply a leaf [L, ...]."""
    return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def uniform(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
    """Every client that takes part counts alike: an attacker may claim any number of examples."""
    return messages, (sizes > 0).astype(sizes.dtype)


def of_the_cohort(
    combine: Callable[[PyTree, Array], PyTree],
    receive: Callable[[PyTree, Array, Array, Array], tuple[PyTree, Array]] = uniform,
) -> Aggregator:
    """The finite messages of the whole cohort at once: `combine(messages [C, ...], weights f32[C]) -> aggregate`."""
    return finite_only(
        Aggregator(
            receive=receive,
            init=lambda message: jax.tree.map(jnp.zeros_like, message),
            add=lambda acc, messages, weights: jax.tree.map(jnp.add, acc, combine(messages, weights)),
            finish=lambda acc: acc,
            whole=True,
        )
    )
