"""Dense and convolution layers in the form that is fastest where they run: the same numbers up to rounding.

Clients have parameters of their own, so a layer sees one client's small batch and is run for many clients at once. On a
CPU that makes two of XLA's usual choices slow, and each has another form here:

* a dense layer's weight gradient over a small batch costs more to write and read than to compute. As a sum of outer
products
  XLA fuses it into the optimizer's update, and no gradient is ever written;
* a convolution inside a loop runs many times slower than outside one. As patches times a matrix it does not.
"""

import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.types import Array

FORMS = ("patches", "native")
# Measured on two AVX2 cores, 784 x 200 weights: at batch 10, 46 us against 83 to 97; at 20, 99 to 120 against 110
# to 126; at 32 no gain. More than ten products in one fused loop are slower than two loops.
_OUTER_LIMIT, _OUTER_CHUNK = 24, 10


@jax.custom_vjp
def _small_batch_product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = jnp.zeros_like(kernel)
    for first in range(0, x.shape[0], _OUTER_CHUNK):
        rows = range(first, min(first + _OUTER_CHUNK, x.shape[0]))
        products = jnp.asarray(sum(x[i][:, None] * dy[i][None, :] for i in rows))
        gradient = products if first == 0 else lax.optimization_barrier(gradient) + products
    return dy @ kernel.T, gradient


_small_batch_product.defvjp(_product_forward, _product_backward)


def product(x: Array, kernel: Array) -> Array:
    """`x [B, I] @ kernel [I, O]`, with the weight gradient in the form that suits the backend."""
    small = x.ndim == 2 and x.shape[0] <= _OUTER_LIMIT
    if small and jax.default_backend() == "cpu":
        return _small_batch_product(x, kernel)
    return x @ kernel


def _patches(x: Array, size: int) -> Array:
    """The `size` x `size` neighbourhood of each position, zeros beyond the edge: [B, H, W, size * size * channels]."""
    height, width, before = x.shape[1], x.shape[2], (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (before, size - 1 - before), (before, size - 1 - before), (0, 0)))
    rows = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], -1)  # in two stages: fewer, longer copies
    return jnp.concatenate([rows[:, i : i + height] for i in range(size)], -1)


@jax.custom_vjp
def _patch_convolution(x: Array, kernel: Array) -> Array:
    flat = _patches(x, kernel.shape[0]).reshape(-1, int(np.prod(kernel.shape[:3])))
    return (flat @ kernel.reshape(-1, kernel.shape[3])).reshape(*x.shape[:3], kernel.shape[3])


def _patch_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _patch_convolution(x, kernel), (x, kernel)


def _patch_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (_, height, width, channels), size = x.shape, kernel.shape[0]
    flat_dy = dy.reshape(-1, kernel.shape[3])
    flat = _patches(x, size).reshape(flat_dy.shape[0], -1)  # the forward pass's own, which XLA reuses
    gradient = (flat.T @ flat_dy).reshape(kernel.shape)
    spread = (flat_dy @ kernel.reshape(-1, kernel.shape[3]).T).reshape(*x.shape[:3], size, size, channels)
    before = (size - 1) // 2
    after = size - 1 - before
    spread = jnp.pad(spread, ((0, 0), (after, before), (after, before), (0, 0), (0, 0), (0, 0)))
    last = size - 1
    shifted = [
        spread[:, last - i : last - i + height, last - j : last - j + width, i, j]
        for i in range(size)
        for j in range(size)
    ]
    return sum(shifted[1:], shifted[0]), gradient


_patch_convolution.defvjp(_patch_forward, _patch_backward)


def convolution(x: Array, kernel: Array, form: str) -> Array:
    """Stride 1, zero padding to the same size: `x [B, H, W, I]`, `kernel [K, K, I, O]` to [B, H, W, O].

    Args:
      form: "patches" or "native".
    """
    if form == "patches":
        return _patch_convolution(x, kernel)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def max_pool(x: Array) -> Array:
    """The largest of each 2 x 2 square, [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row is dropped."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


@cache
def fastest_convolution() -> str:
    """The form to use on the default backend.

    Patches on a CPU, where they were measured 10 to 13 times faster inside a loop (`python -m benchmarks.lanes
    --convolution`) and where trying the native form would take longer to compile than many runs take. Elsewhere both
    are timed once, on the gradients of 16 clients at once. Not to be called while tracing.
    """
    if jax.default_backend() == "cpu":
        return "patches"
    seconds = {form: time_convolution(form, lanes=16) for form in FORMS}
    return min(seconds, key=lambda form: seconds[form])


def time_convolution(form: str, *, lanes: int, steps: int = 20) -> float:
    """Seconds of a gradient step of 5 x 5 convolutions, 16 channels to 32 on 14 x 14, for `lanes` clients in a loop."""
    x, kernel = jnp.ones((lanes, 10, 14, 14, 16)), jnp.full((lanes, 5, 5, 16, 32), 0.01)

    @jax.jit
    def run(kernel: Array) -> Array:
        def loss(kernel: Array, x: Array) -> Array:
            return jnp.square(convolution(convolution(x, kernel, form)[..., :16], kernel, form)).mean()

        def step(_: Array, kernel: Array) -> Array:
            return kernel - 1e-3 * jax.vmap(jax.grad(loss))(kernel, x)

        return lax.fori_loop(0, steps, step, kernel)

    run(kernel).block_until_ready()
    trials = []
    for _ in range(3):
        start = time.perf_counter()
        run(kernel).block_until_ready()
        trials.append((time.perf_counter() - start) / steps)
    return min(trials)


def he_normal(rng: np.random.Generator, *shape: int) -> Array:
    """Normal with variance 2 over the inputs (He et al. 2015), drawn by NumPy: JAX would compile for seconds."""
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1]))))


class Dense(nnx.Module):
    """`x [B, I]` to [B, O]: He-normal weights, or zeros where `rng` is None; zero biases."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator | None):
        self.kernel = nnx.Param(he_normal(rng, inputs, outputs) if rng else jnp.zeros((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array) -> Array:
        return product(x, self.kernel[...]) + self.bias[...]


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

    def __init__(self, inputs: int, outputs: int, size: int, *, form: str, rng: np.random.Generator):
        _validate.one_of("form", form, FORMS)
        self.kernel = nnx.Param(he_normal(rng, size, size, inputs, outputs))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.convolve = partial(convolution, form=form)

    def __call__(self, x: Array) -> Array:
        return self.convolve(x, self.kernel[...]) + self.bias[...]
