"""A character model of text."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fedjax_sim.core.types import Array
from fedjax_sim.models.layers import Dense

EMBEDDING, UNITS, LAYERS = 8, 256, 2


class LSTM(nnx.Module):
    """`x [B, T, I]` to the states [B, T, H] (Hochreiter and Schmidhuber 1997); gates are input, forget, cell, output.

    Weights uniform within `1 / sqrt(H)`; the forget gate starts at a bias of 1 (Jozefowicz et al. 2015).
    """

    def __init__(self, inputs: int, units: int, *, rng: np.random.Generator):
        def uniform(rows: int) -> Array:
            return jnp.asarray(rng.uniform(-1, 1, (rows, 4 * units)).astype(np.float32) / np.float32(units**0.5))

        self.kernel, self.recurrent = nnx.Param(uniform(inputs)), nnx.Param(uniform(units))
        self.bias = nnx.Param(jnp.zeros(4 * units).at[units : 2 * units].set(1.0))

    def __call__(self, x: Array) -> Array:
        recurrent = self.recurrent[...]
        fed = jnp.moveaxis(x, 1, 0) @ self.kernel[...] + self.bias[...]  # of all times at once, out of the loop

        def step(carry: tuple[Array, Array], now: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            entry, forget, new, leave = jnp.split(now + hidden @ recurrent, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(entry) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zero = jnp.zeros((x.shape[0], recurrent.shape[0]), fed.dtype)
        return jnp.moveaxis(lax.scan(step, (zero, zero), fed)[1], 0, 1)


def rows_of(table: Array, codes: Array) -> Array:
    """`table [V, H]` at `codes` int32[...], each within 0 to V - 1: f32[..., H].

    The gradient of a look-up is a scatter, which a GPU adds up in another order every time; there it is a product.
    """
    if jax.default_backend() == "cpu":
        return table[codes]
    return jnp.matmul(jax.nn.one_hot(codes, table.shape[0], dtype=table.dtype), table, precision="highest")


class CharLSTM(nnx.Module):
    """The class of a text, such as the next character after it, of McMahan et al. (2017) and LEAF: an embedding of 8,
    two LSTM layers of 256 units, and the output on the last state. `x` int[B, T] of codes below `vocabulary`.

    Where texts are padded, codes 0 at their end are no part of them: an LSTM forgets a tweet over a hundred zeros.
    """

    def __init__(self, vocabulary: int, classes: int, *, padded: bool, rng: np.random.Generator):
        self.padded = padded
        self.embedding = nnx.Param(jnp.asarray(rng.standard_normal((vocabulary, EMBEDDING), np.float32)))
        for i in range(LAYERS):
            setattr(self, f"layer{i}", LSTM(UNITS if i else EMBEDDING, UNITS, rng=rng))
        setattr(self, f"layer{LAYERS}", Dense(UNITS, classes, rng=rng))

    def __call__(self, x: Array) -> Array:
        states = rows_of(self.embedding[...], x.astype(jnp.int32))
        for i in range(LAYERS):
            states = getattr(self, f"layer{i}")(states)
        last = states[:, -1]
        if self.padded:
            places = jnp.arange(x.shape[1])
            ends = jnp.where(x != 0, places, 0).max(1, keepdims=True)
            last = jnp.where((places == ends)[..., None], states, 0).sum(1)
        return getattr(self, f"layer{LAYERS}")(last)
