"""Compressing a message in a random basis, in which its entries are of similar size."""

import jax
import jax.numpy as jnp

from fedjax_sim.core.message import Transform, dense_bits
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.messages.quantize import one_bit, sign


def hadamard(x: Array) -> Array:
    """The orthonormal Walsh-Hadamard transform of `x` [d], `d` a power of two or 0, in O(d log d). Its own inverse."""
    width = 1
    while width < x.size:
        first, second = jnp.moveaxis(x.reshape(-1, 2, width), 1, 0)
        x = jnp.stack([first + second, first - second], axis=1).reshape(-1)
        width *= 2
    return x / max(x.size, 1) ** 0.5


def _padded_size(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0


def _padded_like(message: PyTree) -> PyTree:
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct((_padded_size(m.size),), m.dtype), message)


def rotated(compressor: Transform) -> Transform:
    """`compressor` of each leaf rotated at random, and rotated back (Suresh et al. 2017; Vargaftik et al. 2021).

    A leaf is raveled, filled up with zeros to a power of two, its entries' signs flipped at random, and transformed as
    in `hadamard`: entries become alike in size, which is what a quantizer with one scale wants. The compressor sees
    vectors of the leaf's dtype. On the wire: what the compressor sends of the padded leaves, and 32 bits of a seed.
    """

    def init(message: PyTree) -> PyTree:
        return compressor.init(jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), _padded_like(message)))

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(message)
        sign_key, inner_key = jax.random.split(key)
        keys = jax.random.split(sign_key, len(leaves))
        sizes = [_padded_size(x.size) for x in leaves]
        signs = [jax.random.rademacher(k, (size,), jnp.float32) for k, size in zip(keys, sizes, strict=True)]

        def forth(x: Array, flip: Array) -> Array:
            flat = jnp.pad(x.astype(jnp.float32).ravel(), (0, flip.size - x.size))
            return hadamard(flip * flat).astype(x.dtype)

        def back(y: Array, flip: Array, x: Array) -> Array:
            flat = flip * hadamard(y.astype(jnp.float32))
            return flat[: x.size].reshape(x.shape).astype(x.dtype)

        turned = structure.unflatten(map(forth, leaves, signs))
        sent, memory = compressor.update(turned, memory, inner_key)
        return structure.unflatten(map(back, jax.tree.leaves(sent), signs, leaves)), memory

    def wire(message: PyTree) -> int:
        like = _padded_like(message)
        bits = compressor.wire(like)
        return (dense_bits(like) if bits is None else bits) + 32

    return Transform(init, update, wire)


def drive(unbiased: bool = True) -> Transform:
    """One bit for each entry of the rotated leaf (DRIVE; Vargaftik et al. 2021).

    The signs are multiplied by `|x|_2^2 / |R x|_1` where `unbiased`, so that what is sent has the right length along
    `x`, or else by `|R x|_1 / d`, which has the least error and is `rotated(sign())`. The paper proves the former
    unbiased for uniformly random rotations. The Hadamard ones here are close to that only where a leaf has many entries
    and no few of them dominate: of two entries the smaller one is always sent as 0. On the wire: one bit for each entry
    of the padded leaf, 32 for its scale, and 32 for the seed of the message. An entry that is not finite spoils its
    leaf.
    """

    def scale(y: Array) -> Array:
        largest = jnp.abs(y).max()
        unit = y / jnp.where(largest == 0, 1, largest)  # squares of 1e-30 would vanish
        total = jnp.abs(unit).sum()
        return largest * jnp.square(unit).sum() / jnp.where(total == 0, 1, total)

    return rotated(one_bit(scale) if unbiased else sign())
