"""Convolutions, max-pooling and small products in forms that are quick inside compiled loops: the same numbers up to
rounding.

XLA's CPU backend has a quick kernel for convolutions of one arrangement: one or two axes of space, an image [batch,
space, channels], a window [space, inputs, outputs], one group. Outside loops it arranges others so by itself. Inside
one it folds the transposes back into the convolution, and falls back on a plain loop that takes 10 to 40 times as long;
the gradient by the window is always of another arrangement. So everything is arranged here, behind barriers that
nothing is folded over, and no image is copied once for each place of the window.

Elsewhere a convolution is one product of the image at all places, as far as that fits: a CUDA graph has no place for
cuDNN's convolutions.

A weight gradient over a small batch costs more to write and read than to compute. As a sum of outer products it is
fused into the optimizer's update, and never written.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, reduce
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.core.types import Array

# Operations that a window is unrolled into at most.
UNROLLED = 64
# Bytes of an image at all places of its window at most, of all clients that are trained at once.
LARGEST = 2**31
# Outputs of a group below which its convolution would leave most of a vector unit idle.
NARROW = 16
# Rows of a batch at most and entries of a weight at least for which outer products pay, and how many go into one loop.
# Measured on two AVX2 cores, 784 x 200 weights: at batch 10, 46 us against 83 to 97; at 20, 99 to 120 against 110 to
# 126; at 32 no gain. More than ten products in one loop are slower than two loops. With AVX-512 vectors must be 512
# bits wide (`xla_cpu_prefer_vector_width`); then FedAvg takes 0.78 (784 x 10), 0.77 (784 x 64), 1.06 (784 x 200) and
# 0.93 (a CNN with 3136 x 512) of the time. 64 x 10 weights take 3.8 us against 2.1.
OUTER_LIMIT, OUTER_LEAST, OUTER_CHUNK = 24, 2**12, 10


class Window(NamedTuple):
    """How a window moves over an image, one entry per axis of space."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]  # of the image
    spread: tuple[int, ...]  # dilation of the window

    def places(self, image: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
        """Where the window fits, per axis."""
        return tuple(
            max(0, (low + high + (n - 1) * d - (k - 1) * s) // stride + 1)
            for n, k, stride, (low, high), d, s in zip(image, window, *self, strict=True)
        )

    def written_out(self, x: Array, axes: Sequence[int], *, fill: Any = 0) -> tuple[Array, "Window"]:
        """`x [B, space, ...]` with the padding and dilation of some axes of space written out, and the window over it.

        Args:
          x: the image.
          axes: which, counted from the first axis of space.
          fill: what the padding is filled with.
        """
        config, padding, dilation = [(0, 0, 0)] * x.ndim, list(self.padding), list(self.dilation)
        for axis in axes:
            config[1 + axis] = (*padding[axis], dilation[axis] - 1)
            padding[axis], dilation[axis] = (0, 0), 1
        x = lax.pad(x, jnp.asarray(fill, x.dtype), config)
        return x, self._replace(padding=tuple(padding), dilation=tuple(dilation))


def _cut(x: Array, axis: int, first: int, count: int, stride: int) -> Array:
    """`count` entries from `first` on, every `stride`-th."""
    return lax.slice_in_dim(x, first, first + (count - 1) * stride + 1, stride, axis)


@cache
def _arranged(window: Window, precision: Any, dtype: Any) -> Callable[[Array, Array], Array]:
    """`convolve(x [B, space, I], kernel [space, I, O]) -> [B, places, O]`, for one or two axes of space. Lanes with
    kernels of their own go one after another, for a convolution of groups has no quick kernel."""
    space = "HW"[: len(window.strides)]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")

    @jax.custom_batching.custom_vmap
    def convolve(x: Array, kernel: Array) -> Array:
        x, kernel = lax.optimization_barrier((x, kernel))
        y = lax.conv_general_dilated(
            x, kernel, window.strides, window.padding, window.dilation, window.spread, numbers,
            precision=precision, preferred_element_type=dtype,
        )  # fmt: skip
        return lax.optimization_barrier(y)

    @convolve.def_vmap
    def lanes(size: int, batched: list[bool], x: Array, kernel: Array) -> tuple[Array, bool]:
        if all(batched):
            return lax.map(lambda lane: convolve(*lane), (x, kernel)), True
        if batched[0]:
            y = convolve(x.reshape((-1, *x.shape[2:])), kernel)
            return y.reshape((size, -1, *y.shape[1:])), True
        outputs = kernel.shape[-1]
        y = convolve(x, jnp.moveaxis(kernel, 0, -2).reshape((*kernel.shape[1:-1], -1)))
        return jnp.moveaxis(y.reshape((*y.shape[:-1], size, outputs)), -2, 0), True

    return convolve


def _without_first_axis(x: Array, kernel: Array, window: Window) -> tuple[Array, Array, Window]:
    """The first axis of space unrolled: its places go into the batch, its offsets in the window into the channels."""
    places = window.places(x.shape[1:-1], kernel.shape[:-2])[0]
    offsets, stride, spread = kernel.shape[0], window.strides[0], window.spread[0]
    x, window = window.written_out(x, [0])
    if offsets <= places:
        x = jnp.stack([_cut(x, 1, k * spread, places, stride) for k in range(offsets)], -2)
    else:
        x = jnp.moveaxis(jnp.stack([_cut(x, 1, p * stride, offsets, spread) for p in range(places)], 1), 2, -2)
    x = x.reshape((-1, *x.shape[2:-2], offsets * x.shape[-1]))
    kernel = jnp.moveaxis(kernel, 0, -3).reshape((*kernel.shape[1:-2], -1, kernel.shape[-1]))
    rest = (window.strides[1:], window.padding[1:], window.dilation[1:], window.spread[1:])
    return x, kernel, Window(*rest)


def _patches(x: Array, kernel: Array, *, window: Window, precision: Any, dtype: Any) -> Array:
    """`x [B, space, I]`, `kernel [space, I, O]` to [B, places, O], as one product of the image at each place."""
    batch, places = x.shape[0], window.places(x.shape[1:-1], kernel.shape[:-2])
    while window.strides:
        x, kernel, window = _without_first_axis(x, kernel, window)
    y = jnp.matmul(x, kernel, precision=precision, preferred_element_type=dtype)
    return y.reshape((batch, *places, kernel.shape[-1]))


def _one_group(x: Array, kernel: Array, *, window: Window, precision: Any, dtype: Any) -> Array:
    """`x [B, space, I]`, `kernel [space, I, O]` to [B, places, O], for one to three axes of space."""
    if len(window.strides) == 3:
        batch = x.shape[0]
        x, kernel, window = _without_first_axis(x, kernel, window)
        y = _one_group(x, kernel, window=window, precision=precision, dtype=dtype)
        return y.reshape((batch, -1, *y.shape[1:]))
    if max(window.dilation) > 1 and math.prod(kernel.shape[:-2]) > UNROLLED:  # the kernel is slow for these
        x, window = window.written_out(x, range(len(window.strides)))
    return _arranged(window, precision, dtype)(x, kernel)


def _narrow_groups(x: Array, kernel: Array, *, window: Window, dtype: Any) -> Array:
    """`x [G, B, space, I]`, `kernel [G, space, I, O]` to [G, B, places, O], a product for each offset and channel."""
    axes = range(len(window.strides))
    offsets = kernel.shape[1:-2]
    places = window.places(x.shape[2:-1], offsets)
    x, _ = window.written_out(jnp.moveaxis(x, 0, -2), axes)  # [B, space, G, I]
    kernel = jnp.moveaxis(kernel, 0, -3)  # [space, G, I, O]
    x, kernel = (x, kernel) if dtype is None else (x.astype(dtype), kernel.astype(dtype))
    total: Any = 0
    for at in product(*map(range, offsets)):
        cut = x
        for axis in axes:
            cut = _cut(cut, 1 + axis, at[axis] * window.spread[axis], places[axis], window.strides[axis])
        for i in range(x.shape[-1]):
            total = total + cut[..., i, None] * kernel[at][:, i]
    return jnp.moveaxis(total, -2, 0)


def patches_fit(lhs: Any, rhs: Any, out: Any, dimension_numbers: Any) -> bool:
    """Whether the image at all places of a convolution's window fits in `LARGEST`, of operands and result so shaped."""
    window = math.prod(rhs.shape[i] for i in dimension_numbers.rhs_spec[2:])
    places = math.prod(out.shape[i] for i in dimension_numbers.out_spec[2:])
    batch, inputs = (lhs.shape[i] for i in dimension_numbers.lhs_spec[:2])
    return min(window, places) <= UNROLLED and batch * inputs * window * places * lhs.dtype.itemsize <= LARGEST


def convolution(
    lhs: Array, rhs: Array, *, window_strides: Sequence[int], padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int], rhs_dilation: Sequence[int], dimension_numbers: Any, feature_group_count: int,
    batch_group_count: int, precision: Any, preferred_element_type: Any, arranged: bool, **_: Any,
) -> Array:  # fmt: skip
    """What `lax.conv_general_dilated` computes, given the parameters of its primitive, for one to three axes of space
    and floating-point numbers: for XLA's CPU backend if `arranged`, else as products."""
    batch, feature, *space = dimension_numbers.lhs_spec
    outputs, inputs, *offsets = dimension_numbers.rhs_spec
    window = Window(
        tuple(window_strides), tuple((low, high) for low, high in padding), tuple(lhs_dilation), tuple(rhs_dilation)
    )
    x, kernel = lax.transpose(lhs, (batch, *space, feature)), lax.transpose(rhs, (*offsets, inputs, outputs))
    single = partial(
        _one_group if arranged else _patches, window=window, precision=precision, dtype=preferred_element_type
    )
    groups = feature_group_count * batch_group_count  # one of them is 1
    if groups == 1:
        y = single(x, kernel)
    else:
        axis = 0 if batch_group_count > 1 else x.ndim - 1
        x = jnp.moveaxis(x.reshape((*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])), axis, 0)
        kernel = jnp.moveaxis(kernel.reshape((*kernel.shape[:-1], groups, -1)), -2, 0)
        if kernel.shape[-1] < NARROW and math.prod(kernel.shape[1:-1]) <= UNROLLED:
            y = _narrow_groups(x, kernel, window=window, dtype=preferred_element_type)
        else:
            y = jax.vmap(single)(x, kernel)
        y = jnp.moveaxis(y, 0, -2)
        y = y.reshape((*y.shape[:-2], -1))
    order = (dimension_numbers.out_spec[0], *dimension_numbers.out_spec[2:], dimension_numbers.out_spec[1])
    return lax.transpose(y, np.argsort(order).tolist())


def _cuts(x: Array, window: Sequence[int], strides: Sequence[int], spread: Sequence[int]) -> Iterator[Array]:
    """For each offset in a window that moves over all axes of `x`, what it sees of each place."""
    sizes = zip(x.shape, window, strides, spread, strict=True)
    places = [(n - (k - 1) * s - 1) // stride + 1 for n, k, stride, s in sizes]
    for at in product(*map(range, window)):
        cut = x
        for axis, offset in enumerate(at):
            cut = _cut(cut, axis, offset * spread[axis], places[axis], strides[axis])
        yield cut


def _lowest(x: Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int]) -> Array:
    """`x` padded with what no maximum takes."""
    return lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(*p, d - 1) for p, d in zip(padding, dilation, strict=True)])


def max_pool(
    x: Array, *, window_dimensions: Sequence[int], window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]], base_dilation: Sequence[int], window_dilation: Sequence[int], **_: Any,
) -> Array:  # fmt: skip
    """What `lax.reduce_window_max_p` computes, of floating-point numbers."""
    x = _lowest(x, padding, base_dilation)
    return reduce(lax.max, _cuts(x, window_dimensions, window_strides, window_dilation))


def max_pool_gradient(
    source: Array, operand: Array, *, select_prim: Any, window_dimensions: Sequence[int],
    window_strides: Sequence[int], padding: Sequence[tuple[int, int]], **_: Any,
) -> Array:  # fmt: skip
    """What `lax.select_and_scatter_add_p` computes, of floating-point numbers: of equal entries the first is taken."""
    ones = (1,) * operand.ndim
    x = _lowest(operand, padding, ones)
    first, *others = _cuts(x, window_dimensions, window_strides, ones)
    best, taken = first, jnp.zeros(first.shape, jnp.int32)
    for number, cut in enumerate(others, 1):
        keep = select_prim.bind(best, cut)
        best, taken = lax.select(keep, best, cut), lax.select(keep, taken, jnp.full_like(taken, number))
    total: Any = 0
    for number, at in enumerate(product(*map(range, window_dimensions))):
        part = jnp.where(taken == number, source, 0)
        config = [
            (offset - low, n + low - offset - (places - 1) * stride - 1, stride - 1)
            for offset, (low, _), n, places, stride in zip(
                at, padding, operand.shape, source.shape, window_strides, strict=True
            )
        ]
        total = total + lax.pad(part, jnp.zeros((), part.dtype), config)
    return total


def outer_products(lhs: Array, rhs: Array) -> Array:
    """`lhs.T @ rhs` for `lhs [..., B, I]` and `rhs [..., B, O]`, as a sum over `B`."""
    total: Any = 0
    for first in range(0, lhs.shape[-2], OUTER_CHUNK):
        rows = range(first, min(first + OUTER_CHUNK, lhs.shape[-2]))
        chunk: Any = sum(lhs[..., i, :, None] * rhs[..., i, None, :] for i in rows)
        total = chunk if first == 0 else lax.optimization_barrier(total) + chunk
    return total


def leading_sum(x: Array) -> Array:
    """The sum over the first axis, which XLA's CPU backend takes seconds for where the others are a large matrix."""
    if not 0 < x.shape[0] <= UNROLLED:
        return x.reshape(x.shape[0], math.prod(x.shape[1:])).sum(0).reshape(x.shape[1:])
    return reduce(lax.add, [x[i] for i in range(x.shape[0])])
