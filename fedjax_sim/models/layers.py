"""Layers as anybody would write them: the round takes each in the form that is quickest where it runs, see
`core/forms.py`."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fedjax_sim.core.types import Array


def max_pool(x: Array) -> Array:
    """The largest of each 2 x 2 square, [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row is dropped."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def he_normal(rng: np.random.Generator, *shape: int) -> Array:
    """Normal with variance 2 over the inputs (He et al. 2015), drawn by NumPy: JAX would compile for seconds."""
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1]))))


class Dense(nnx.Module):
    """`x [B, I]` to [B, O]: He-normal weights, or zeros where `rng` is None; zero biases."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator | None):
        self.kernel = nnx.Param(he_normal(rng, inputs, outputs) if rng else jnp.zeros((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]


class Norm(nnx.Module):
    """Layer normalisation of `x [B, I]` over its last axis (Ba et al. 2016), with a scale and a shift per entry."""

    def __init__(self, width: int):
        self.scale, self.shift = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        return centred / deviation * self.scale[...] + self.shift[...]


class Conv(nnx.Module):
    """A square convolution of stride 1 that keeps height and width: [B, H, W, I] to [B, H, W, O]."""

    def __init__(self, inputs: int, outputs: int, size: int, *, rng: np.random.Generator):
        self.kernel = nnx.Param(he_normal(rng, size, size, inputs, outputs))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, self.kernel[...], (1, 1), "SAME", dimension_numbers=numbers)
        return y + self.bias[...]
