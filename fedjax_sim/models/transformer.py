"""A small vision transformer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_sim.core.types import Array
from fedjax_sim.models.layers import Dense, Norm

WIDTH, DEPTH, HEADS, EXPANSION = 64, 4, 4, 2


def patch_side(height: int, width: int) -> int | None:
    """4 pixels, or 7 or 2 where only these divide both sides; None where none does."""
    return next((side for side in (4, 7, 2) if height % side == 0 and width % side == 0), None)


def attention(queries: Array, keys: Array, values: Array) -> Array:
    """Scaled dot products, all [B, heads, T, D] (Vaswani et al. 2017, equation 1)."""
    scores = jnp.einsum("bhtd,bhsd->bhts", queries, keys) / queries.shape[-1] ** 0.5
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores), values)


class Layer(nnx.Module):
    """Self-attention and an MLP with GELU, each behind a normalisation and beside a shortcut: `x [B, T, W]`."""

    def __init__(self, *, rng: np.random.Generator):
        self.norm0, self.norm1 = Norm(WIDTH), Norm(WIDTH)
        self.into, self.out = Dense(WIDTH, 3 * WIDTH, rng=rng), Dense(WIDTH, WIDTH, rng=rng)
        self.up, self.down = Dense(WIDTH, EXPANSION * WIDTH, rng=rng), Dense(EXPANSION * WIDTH, WIDTH, rng=rng)
        for dense in (self.into, self.out, self.up, self.down):  # as Glorot and Bengio would, no ReLU being near
            dense.kernel[...] = dense.kernel[...] / 2**0.5

    def __call__(self, x: Array) -> Array:
        heads = self.into(self.norm0(x)).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        mixed = attention(*jnp.moveaxis(heads, (2, 3), (0, 2)))
        x = x + self.out(jnp.moveaxis(mixed, 1, 2).reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norm1(x))))


class ViT(nnx.Module):
    """Patches of 4 x 4 pixels (7 or 2 where only these divide the image), width 64, four layers of four heads, learned
    positions, and the mean over patches (Dosovitskiy et al. 2021, which has a class token instead)."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, rng: np.random.Generator):
        self.side = patch_side(*shape[:2]) or 1
        patches = (shape[0] // self.side) * (shape[1] // self.side)
        self.embed = Dense(self.side**2 * shape[2], WIDTH, rng=rng)
        self.positions = nnx.Param(jnp.asarray(0.02 * rng.standard_normal((patches, WIDTH), np.float32)))
        for i in range(DEPTH):
            setattr(self, f"layer{i}", Layer(rng=rng))
        self.norm = Norm(WIDTH)
        setattr(self, f"layer{DEPTH}", Dense(WIDTH, classes, rng=rng))

    def __call__(self, x: Array) -> Array:
        batch, height, width, depth = x.shape
        x = x.reshape(batch, height // self.side, self.side, width // self.side, self.side, depth)
        x = jnp.swapaxes(x, 2, 3).reshape(batch, -1, self.side**2 * depth)
        x = self.embed(x) + self.positions[...]
        for i in range(DEPTH):
            x = getattr(self, f"layer{i}")(x)
        return getattr(self, f"layer{DEPTH}")(self.norm(x).mean(1))
