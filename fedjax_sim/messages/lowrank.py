"""Sending matrices as products of thin ones."""

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree

BASIS = 2**32 - 1  # no round's number: a run of seed 0 has other keys


def power_sgd(rank: int = 2) -> Transform:
    """Sends each matrix `M` as `P Q^T` of the given rank, after one power iteration (PowerSGD; Vogels et al. 2019,
    algorithm 1).

    `P` is `M Q` orthonormalised, with the `Q` of the client's last message, and the new `Q` is `M^T P`: hence what is
    sent, a projection of `M`, gets better while messages resemble each other. The first `Q` is the same random one for
    all. Biased: it is meant to be inside `error_feedback`. There, as here, each client has a `Q` of its own, so that
    messages are summed after they are decompressed, where the paper's workers share one `Q` and sum `P` and `Q`.

    A leaf of two or more axes is a matrix [product of the others, last axis]. Leaves of fewer axes, or whose factors
    would not be smaller than they are, go whole. On the wire: `rank * (rows + columns)` numbers of the leaf's dtype.

    Raises:
      InputError: `rank` is no whole number of at least 1.
    """
    rank = _validate.whole("rank", rank)

    def factored(leaf: Array) -> bool:
        return leaf.ndim >= 2 and leaf.size > 0 and numbers(leaf) < leaf.size

    def numbers(leaf: Array) -> int:
        return rank * (leaf.size // leaf.shape[-1] + leaf.shape[-1])

    def init(message: PyTree) -> PyTree:
        leaves = [leaf for leaf in jax.tree.leaves(message) if factored(leaf)]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), BASIS), len(leaves))
        return tuple(jax.random.normal(k, (x.shape[-1], rank)) for x, k in zip(leaves, keys, strict=True))

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(message)
        remembered, sent, kept = iter(memory), [], []
        for leaf in leaves:
            if factored(leaf):
                leaf, right = _iterate(leaf, next(remembered))
                kept.append(right)
            sent.append(leaf)
        return structure.unflatten(sent), tuple(kept)

    def wire(message: PyTree) -> int:
        leaves = jax.tree.leaves(message)
        return sum((numbers(x) if factored(x) else x.size) * x.dtype.itemsize * 8 for x in leaves)

    return Transform(init, update, wire)


def _iterate(leaf: Array, right: Array) -> tuple[Array, Array]:
    """What is sent of `leaf`, and the next `right` [columns, rank], its columns of length 1, which changes nothing."""
    matrix = leaf.reshape(-1, leaf.shape[-1]).astype(jnp.float32)
    left = jnp.linalg.qr(jnp.matmul(matrix, right, precision="highest"))[0].astype(leaf.dtype)
    new = jnp.matmul(matrix.T, left.astype(jnp.float32), precision="highest").astype(leaf.dtype)
    left, new = left.astype(jnp.float32), new.astype(jnp.float32)
    sent = jnp.matmul(left, new.T, precision="highest").reshape(leaf.shape).astype(leaf.dtype)
    largest = jnp.abs(new).max(0)
    use = (largest > 0) & jnp.isfinite(largest)  # a column of zeros, or of NaN, would stay so
    unit = new / jnp.where(use, largest, 1)
    length = jnp.sqrt(jnp.square(unit).sum(0))
    return sent, jnp.where(use, unit / jnp.where(use, length, 1), right)
