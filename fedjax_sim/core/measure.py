"""Directions of updates, compared without keeping the updates: sketches that fit a stream of blocks.

A sketch is a random projection to `ENTRIES` numbers that needs one pass over the update: its entries times random signs
of the round, summed in groups (the count sketch of Charikar et al. 2004 with buckets in turn). The cosine of two
sketches differs from that of the updates, `c`, by a standard deviation of `(1 - c^2) / sqrt(ENTRIES)`, 0.022 at most,
and a bias of at most `1 / ENTRIES`: over the signs of many rounds, for within a round all updates share theirs, so that
clients who send alike err alike. An update of at most `ENTRIES` numbers is its own sketch, hence exact. Where an
aggregator stores the messages there is nothing to sketch, and cosines are exact, too.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.core.execute import over_lanes
from fedjax_sim.core.permute import mixed
from fedjax_sim.core.types import Array, PyTree, inner, squared_norm

ENTRIES = 2039  # prime, so that the entries of one column of a matrix do not meet in a few groups


def random_signs(key: Array, tree: PyTree) -> PyTree:
    """-1 or 1 for every entry of `tree`, int8, hashed from its place: drawing them would cost more than using them."""
    words = jax.random.key_data(key).reshape(-1).astype(jnp.uint32)
    leaves, structure = jax.tree.flatten(tree)
    signs, before = [], 0
    for leaf in leaves:
        place = jnp.arange(before, before + leaf.size, dtype=jnp.uint32)
        bit = mixed(mixed(place ^ words[0]) + words[-1]) >> 31
        signs.append((2 * bit.astype(jnp.int8) - 1).reshape(leaf.shape))
        before += leaf.size
    return jax.tree.unflatten(structure, signs)


def _folded(flat: Array) -> Array:
    """Entries summed in groups, [ENTRIES], as a product with ones: on a CPU any other sum over rows is fused into what
    uses it, entry by entry, and takes several times as long."""
    rows = flat.size // ENTRIES
    rest = jnp.pad(flat[rows * ENTRIES :], (0, (rows + 1) * ENTRIES - flat.size))
    if rows == 0:
        return rest
    return jnp.dot(jnp.ones(rows), flat[: rows * ENTRIES].reshape(rows, ENTRIES), precision="highest") + rest


def sketch(update: PyTree, signs: PyTree) -> Array:
    """The sketch of one update, f32[min(entries of the update, ENTRIES)]."""
    parts = [(x.astype(jnp.float32) * s.astype(jnp.float32)).ravel()
             for x, s in zip(jax.tree.leaves(update), jax.tree.leaves(signs), strict=True)]  # fmt: skip
    if sum(part.size for part in parts) <= ENTRIES:
        return jnp.concatenate(parts)
    return sum(map(_folded, parts), jnp.zeros(ENTRIES, jnp.float32))


def cosines(updates: PyTree, aggregate: PyTree) -> Array:
    """Cosine of each update to the aggregate, f32[C], from sketches [C, K] and [K] or from updates [C, ...] and the
    aggregate themselves; 0 for a zero."""
    products = over_lanes(lambda update: inner(update, aggregate), updates)
    scale = jnp.sqrt(over_lanes(squared_norm, updates)) * jnp.sqrt(squared_norm(aggregate))
    return jnp.clip(products / jnp.where(scale > 0, scale, 1), -1, 1)
