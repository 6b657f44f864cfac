"""Many runs as one compiled program: other seeds, learning rates or options are one more axis."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from fedjax_sim import _validate
from fedjax_sim.core.compile import tuned
from fedjax_sim.core.devices import AXIS, mesh
from fedjax_sim.core.types import PyTree

_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def default_width(runs: int, devices: Sequence[Any]) -> int:
    """Runs at once on a device: one on a CPU, where wider ones leave the cache, up to 64 elsewhere."""
    return 1 if devices[0].platform == "cpu" else max(1, min(64, -(-runs // len(devices))))


def make_many(
    advance: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    *,
    devices: Sequence[Any],
    width: int | None = None,
) -> Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, PyTree]]:
    """Advances many runs that differ in what they are given, but not in shape.

    Args:
      advance: `(state, given, shared) -> (state, outputs)`, of one run.
      devices: the runs are dealt to them.
      width: runs at once on a device under `vmap`; results do not depend on it beyond the rounding of float32.

    Returns:
      `many(states [T, ...], given [T, ...], shared, active bool[T]) -> (states, outputs [T, ...])`, jitted, where `T`
      is a multiple of the number of devices. Runs that are not active keep their state and give zeros; they cost
      nothing but by filling up the last slice of a device. The states are donated.

    Raises:
      InputError: when called, a number of runs that the devices do not divide.
    """

    def on_device(states: PyTree, given: PyTree, shared: PyTree, active: Any) -> tuple[PyTree, PyTree]:
        runs = active.shape[0]
        at_once = min(width or default_width(runs * len(devices), devices), runs)
        slices = -(-runs // at_once)
        first = jnp.argsort(~active, stable=True).astype(jnp.int32)  # those that are active come first
        slots = jnp.concatenate([first, jnp.full(slices * at_once - runs, runs, jnp.int32)])
        state, own = jax.tree.map(lambda x: x[0], (states, given))
        shapes = jax.eval_shape(advance, state, own, shared)[1]
        outputs = jax.tree.map(lambda s: jnp.zeros((runs, *s.shape), s.dtype), shapes)

        def one(i: Any, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            states, outputs = carry
            chosen = lax.dynamic_slice(slots, (i * at_once,), (at_once,))
            mine, own = jax.tree.map(lambda x: x.at[chosen].get(mode="clip"), (states, given))
            if at_once == 1:
                state, alone = jax.tree.map(lambda x: x[0], (mine, own))
                found = jax.tree.map(lambda x: x[None], advance(state, alone, shared))
            else:
                found = jax.vmap(advance, in_axes=(0, 0, None))(mine, own, shared)
            kept = jnp.where(active.at[chosen].get(mode="fill", fill_value=False), chosen, runs)
            return jax.tree.map(lambda o, n: o.at[kept].set(n, mode="drop"), (states, outputs), found)

        return lax.fori_loop(0, -(-active.sum() // at_once), one, (states, outputs))

    if len(devices) == 1:
        program = tuned(on_device, donate_argnums=0)
    else:
        specs = (_SPLIT, _SPLIT, _REPLICATED, _SPLIT)
        program = tuned(
            jax.shard_map(on_device, mesh=mesh(devices), in_specs=specs, out_specs=(_SPLIT, _SPLIT), check_vma=False),
            donate_argnums=0,
        )

    def many(states: PyTree, given: PyTree, shared: PyTree, active: Any) -> tuple[PyTree, PyTree]:
        if len(active) % len(devices):
            raise _validate.InputError(f"active: {len(active)} runs on {len(devices)} devices; give a multiple")
        return program(states, given, shared, jnp.asarray(active))

    return many
