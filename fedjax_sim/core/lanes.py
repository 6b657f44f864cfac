"""Loops of unequal length side by side: as lanes finish, those that have not go on in a narrower block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fedjax_sim.core.types import Array, PyTree

# With all clients in one block, 65 and 59 % of the lane-steps of "2nn" and "ragged" (`benchmarks.workloads`) are of
# use; in one width 26 and 7 %. Halving gets to 77 % with twice as many widths, each of which takes a second to compile
# (a CNN's four).
FACTOR, NARROWEST = 3, 6


def ladder(lanes: int) -> tuple[int, ...]:
    """The widths in which a block of so many lanes of unequal length is run, from all of them downwards.

    Each width compiles the body once more.
    """
    widths = [lanes]
    while widths[-1] > 1 and -(-widths[-1] // FACTOR) >= NARROWEST:
        widths.append(-(-widths[-1] // FACTOR))
    return tuple(widths)


def ends(times: Any, widths: Sequence[int]) -> list[Any]:
    """After how many steps each width is left: when nothing remains to be done beyond the next narrower one.

    `times` int32[L], steps of each lane, from the most to the least if the ladder is to be of use.
    """
    return [times[next_width:].max() for next_width in (*widths[1:], 0)]


def lane_steps(times: Any, widths: Sequence[int]) -> int:
    """Steps that are executed over all lanes, those that change nothing included."""
    last = np.array([0, *ends(np.asarray(times), widths)])
    return int(np.diff(last) @ np.array(widths))


@custom_vmap
def _common(last: Array) -> Array:
    """`last`, for a single block; the largest over blocks that are mapped over, so that all leave a width together."""
    return last


@_common.def_vmap
def _(axis_size: int, batched: list[bool], last: Array) -> tuple[Array, bool]:
    return _common(last.max(0)), False


def repeat(step: Callable[[Array, PyTree], PyTree], carry: PyTree, times: Array, widths: tuple[int, ...]) -> PyTree:
    """`carry = step(index, carry)` for each `index` from 0 to `times - 1`, of one lane of a block.

    Args:
      step: what is repeated. It may refer to arrays from around it, of the lane or of all.
      carry: where it starts.
      times: int32[], of this lane.
      widths: of the block, as `ladder` says; `(1,)` for a lane without others, which is then a plain loop. With others,
        the next `vmap` around over which `times` differ is taken to be over the lanes.
    """
    if widths == (1,):
        return lax.fori_loop(0, times, step, carry)
    shapes = jax.eval_shape(step, jnp.int32(0), carry)
    carry = jax.tree.map(lambda x, s: jnp.asarray(x, s.dtype) if getattr(x, "weak_type", True) else x, carry, shapes)
    traced: Any = jax.make_jaxpr(step)(jnp.int32(0), carry)
    structure = jax.tree.structure(shapes)

    def apply(around: list[Array], index: Array, carry: PyTree) -> PyTree:
        run = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, around))
        return jax.tree.unflatten(structure, run(index, *jax.tree.leaves(carry)))

    @custom_vmap
    def loop(around: list[Array], carry: PyTree, times: Array) -> PyTree:
        return lax.fori_loop(0, times, lambda index, carry: apply(around, index, carry), carry)

    @loop.def_vmap
    def _(lanes: int, batched: list[Any], around: list[Array], carry: PyTree, times: Array) -> tuple[PyTree, PyTree]:
        def of_lanes(x: Array, own: bool) -> Array:
            return x if own else jnp.broadcast_to(x, (lanes, *x.shape))

        axes = [0 if own else None for own in batched[0]]
        carry = jax.tree.map(of_lanes, carry, batched[1])
        if not batched[2]:  # not over lanes, but over what each of them does several times, models of clusters say

            def together(index: Array, carry: PyTree) -> PyTree:
                return jax.vmap(apply, in_axes=(axes, None, 0))(around, index, carry)

            result = repeat(together, carry, times, widths)
            return result, jax.tree.map(lambda _: True, result)
        last = _common(jnp.stack(ends(times, widths)))

        def masked(around: list[Array], times: Array, index: Array, carry: PyTree) -> PyTree:
            new = apply(around, index, carry)
            return jax.tree.map(lambda a, b: jnp.where(index < times, a, b), new, carry)

        def descend(level: int, first: Array | int, carry: PyTree) -> PyTree:
            """`carry` at this width from step `first` on, to the end."""
            width = widths[level]
            here = [x if axis is None else x[:width] for x, axis in zip(around, axes, strict=True)]

            def step(index: Array, carry: PyTree) -> PyTree:
                return jax.vmap(masked, in_axes=(axes, 0, None, 0))(here, times[:width], index, carry)

            carry = lax.fori_loop(first, last[level], step, carry)
            if level + 1 == len(widths):
                return carry
            rest = descend(level + 1, last[level], jax.tree.map(lambda x: x[: widths[level + 1]], carry))
            return jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, 0, 0), carry, rest)

        result = descend(0, 0, carry)
        return result, jax.tree.map(lambda _: True, result)

    return loop(traced.consts, carry, times)
