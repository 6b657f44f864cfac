"""Sending each entry of a message in fewer bits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree

SCALE_BITS = 32  # one float32 number for each leaf that is not empty


def leafwise(compress: Callable[[Array, Array], Array], bits: Callable[[int], int]) -> Transform:
    """`compress(leaf in float32, key)` of each leaf alone, cast back; a leaf of `n > 0` entries takes `bits(n)`."""

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(message)
        keys = jax.random.split(key, len(leaves))
        sent = [
            compress(x.astype(jnp.float32), k).astype(x.dtype) if x.size else x
            for x, k in zip(leaves, keys, strict=True)
        ]
        return structure.unflatten(sent), memory

    def wire(message: PyTree) -> int:
        return sum(bits(leaf.size) for leaf in jax.tree.leaves(message) if leaf.size)

    return Transform(lambda message: (), update, wire)


def _over(x: Array, scale: Array) -> Array:
    """`|x| / scale`, zero where all is zero."""
    return jnp.abs(x) / jnp.where(scale == 0, 1, scale)


def qsgd(levels: int = 15) -> Transform:
    """Rounds each entry at random to a multiple of its leaf's L2 norm over `levels` (Alistarh et al. 2017, section 3).

    Unbiased: of the two multiples next to an entry, the closer one is the more likely. The variance is at most `min(d /
    levels^2, sqrt(d) / levels)` times the squared norm of a leaf of `d` entries. On the wire: the norm in 32 bits, and
    each entry's number from `-levels` to `levels` in `ceil(log2(2 levels + 1))` bits, all alike: no Elias code. The
    default takes 5. An entry that is not finite spoils its leaf.

    Raises:
      InputError: `levels` is no whole number of at least 1.
    """
    levels = _validate.whole("levels", levels)

    def compress(x: Array, key: Array) -> Array:
        largest = jnp.abs(x).max()
        norm = largest * jnp.sqrt(jnp.sum(jnp.square(_over(x, largest))))  # squares of 1e-30 would vanish
        exact = jnp.minimum(_over(x, norm) * levels, levels)
        low = jnp.floor(exact)
        number = low + (jax.random.uniform(key, x.shape) < exact - low)
        return jnp.sign(x) * number * (norm / levels)

    return leafwise(compress, lambda entries: SCALE_BITS + entries * (2 * levels).bit_length())


def ternary() -> Transform:
    """Sends -1, 0 or 1 times the leaf's largest magnitude (TernGrad; Wen et al. 2017).

    Unbiased: an entry is sent with probability `|x| / max |x|`, so that the variance of a leaf is `max |x| |x|_1 -
    |x|_2^2`. On the wire: the largest magnitude in 32 bits, and five entries in each byte, for 3^5 = 243. An entry that
    is not finite spoils its leaf.
    """

    def compress(x: Array, key: Array) -> Array:
        largest = jnp.abs(x).max()
        sent = jax.random.uniform(key, x.shape) < _over(x, largest)
        return jnp.sign(x) * sent * largest

    return leafwise(compress, lambda entries: SCALE_BITS + 8 * (-(-entries // 5)))


def one_bit(scale: Callable[[Array], Array]) -> Transform:
    """The sign of each entry, that of 0 being 1, times `scale(leaf in float32) -> f32[]`."""

    def compress(x: Array, key: Array) -> Array:
        return jnp.where(x >= 0, 1, -1) * scale(x)

    return leafwise(compress, lambda entries: SCALE_BITS + entries)


def sign() -> Transform:
    """The sign of each entry times its leaf's mean magnitude (signSGD of Bernstein et al. 2018, scaled as in
    Karimireddy et al. 2019).

    That scale has the least error, `|x|_2^2 - |x|_1^2 / d` of a leaf of `d` entries. On the wire: the scale in 32 bits,
    and one bit for each entry, hence 0 goes as plus. Biased: put it inside `error_feedback` or `ef21`. An entry that is
    not finite spoils its leaf.
    """
    return one_bit(lambda x: jnp.abs(x).mean())


def half(dtype: str = "float16") -> Transform:
    """Rounds each entry to 16 bits, to the nearest "float16" or "bfloat16", and back to its dtype.

    Relative errors are at most 2^-11 for float16 between 6e-5 and 65504, and 2^-8 for bfloat16. What is larger than the
    largest number of the format becomes that; infinities and NaN go as they are.

    Raises:
      InputError: `dtype` is neither "float16" nor "bfloat16".
    """
    info = jnp.finfo(_validate.one_of("dtype", dtype, ("float16", "bfloat16")))
    largest, smallest, step = float(info.max), float(info.smallest_normal), float(info.smallest_subnormal)

    def compress(x: Array, key: Array) -> Array:
        # no pair of casts: a compiler may take it away
        inside = jnp.clip(x, -largest, largest)
        rounded = lax.reduce_precision(inside, info.nexp, info.nmant)
        if dtype == "float16":  # whose least numbers `reduce_precision` takes for 0
            rounded = jnp.where(jnp.abs(x) < smallest, jnp.round(x / step) * step, rounded)
        return jnp.where(jnp.isinf(x), x, rounded)

    return leafwise(compress, lambda entries: 16 * entries)
