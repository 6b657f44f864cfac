"""The devices a simulation runs on."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fedjax_sim import _validate
from fedjax_sim.core.types import Array, PyTree

AXIS = "devices"
SMALL = 2**15  # entries that all processes had better send to all than add up on the way


def use_cpu_devices(count: int | None = None) -> int:
    """Asks JAX for `count` CPU devices, by default one per core this process may use, and returns the count.

    A core that trains clients of its own is faster than two that share each product. It must come before JAX starts,
    and does not take a GPU's place where there is one.

    Raises:
      InputError: `count` is not a positive whole number.
      RuntimeError: JAX has started already.
    """
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = _validate.whole("count", count)
    jax.config.update("jax_num_cpu_devices", count)
    return count


def mesh(devices: Sequence[Any]) -> Mesh:
    """The one-axis mesh over `devices`."""
    return Mesh(np.array(devices), (AXIS,))


def span_processes(devices: Sequence[Any]) -> bool:
    """Whether `devices` belong to several processes, see `fedjax_sim.distributed`."""
    return len({device.process_index for device in devices}) > 1


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """`tree` placed as `sharding` says. Where that spans several processes, all have to call this with equal arrays, of
    which each hands over what its own devices hold."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(x: Any) -> Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x if x.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(x)
        whole = np.asarray(x)
        whole = whole.astype(jax.dtypes.canonicalize_dtype(whole.dtype), copy=False)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree)


def replicate(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """`tree` with a copy of every array on each of `devices`, where a round wants its state and population.

    Where the devices belong to several processes, all have to call this with equal arrays.
    """
    return put(tree, _over(devices, PartitionSpec()))


def split_entries(tree: PyTree, devices: Sequence[Any], kept: int = 1) -> PyTree:
    """Within a program, `tree` with each array split over `devices` along the first axis that divides evenly, the first
    `kept` axes aside; an array without such an axis is copied to all."""
    if len(devices) == 1:
        return tree

    def split(x: Array) -> Array:
        axis = next((i for i in range(kept, x.ndim) if x.shape[i] % len(devices) == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh(devices), spec))

    return jax.tree.map(split, tree)


def split_rows(x: Array, devices: Sequence[Any]) -> Array:
    """Within a program, `x` with its first axis split over `devices`; left alone without several."""
    if len(devices) <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh(devices), PartitionSpec(AXIS)))


def gather_rows(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """Within `shard_map`, the arrays [R, ...] of all `devices` one after another, [D R, ...]. Between processes they
    travel as one message, for it is the number of messages that takes time."""
    if not span_processes(devices):
        return jax.lax.all_gather(tree, AXIS, tiled=True)
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), _gathered(tree))


def sum_and_gather(total: PyTree, rows: PyTree, devices: Sequence[Any]) -> tuple[PyTree, PyTree]:
    """Within `shard_map`, the sum over `devices` of each array of `total`, and `gather_rows` of the others; in one
    message where the former are small."""
    if not span_processes(devices):
        return jax.lax.psum(total, AXIS), gather_rows(rows, devices)
    if sum(leaf.size for leaf in jax.tree.leaves(total)) <= SMALL:
        found, rows = _gathered((total, rows))
        return jax.tree.map(lambda x: x.sum(0), found), jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), rows)
    return _packed(lambda entries: jax.lax.psum(entries, AXIS), total), gather_rows(rows, devices)


def _gathered(tree: PyTree) -> PyTree:
    """Arrays [D, ...] of those of each device; whatever has four bytes an entry, and truth values, in one message."""

    def as_words(x: Array) -> Array:
        if x.dtype == jnp.bool_:
            return x.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x

    def back(words: Array, x: Array) -> Array:
        if x.dtype == jnp.bool_:
            return words != 0
        return words if words.dtype == x.dtype else jax.lax.bitcast_convert_type(words, x.dtype)

    found = _packed(lambda entries: jax.lax.all_gather(entries, AXIS), jax.tree.map(as_words, tree))
    return jax.tree.map(back, found, tree)


def _packed(collective: Callable[[Array], Array], tree: PyTree) -> PyTree:
    """`collective` of the arrays, called once for all entries of a dtype, n of them: `[n] -> [..., n]`."""
    leaves, structure = jax.tree.flatten(tree)
    found: list[Any] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        which = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        entries = collective(jnp.concatenate([leaves[i].ravel() for i in which]))
        ends = np.cumsum([leaves[i].size for i in which])[:-1]
        for i, part in zip(which, jnp.split(entries, ends, axis=-1), strict=True):
            found[i] = part.reshape((*part.shape[:-1], *leaves[i].shape))
    return jax.tree.unflatten(structure, found)


def gather_entries(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """Within a program, `tree` with a copy of every array on each of `devices`."""
    if len(devices) <= 1:
        return tree
    whole = NamedSharding(mesh(devices), PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), tree)


def deal(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """`tree` with the first axes of its arrays split over `devices`, as `make_many` returns its states."""
    return put(tree, _over(devices, PartitionSpec(AXIS)))


def own_places(devices: Sequence[Any]) -> list[int]:
    """Which of `devices`, by their places, are this process's."""
    return [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]


def split_parts(own: np.ndarray, devices: Sequence[Any]) -> Array:
    """Arrays [D, ...], a part for each device, made of the parts [own, ...] of those that are this process's."""
    shape = (len(devices), *own.shape[1:])
    place = {device: at for at, device in enumerate(own_places(devices))}
    sharding = NamedSharding(mesh(devices), PartitionSpec(AXIS))

    def part(index: Any) -> np.ndarray:
        return own[place[index[0].start or 0]][None]

    return jax.make_array_from_callback(shape, sharding, part)


def for_every_host(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """Within a program, `tree` such that every process can read all of it; nothing changes where there is only one."""
    return gather_entries(tree, devices) if span_processes(devices) else tree


def _over(devices: Sequence[Any], spec: PartitionSpec) -> Sharding:
    return SingleDeviceSharding(devices[0]) if len(devices) == 1 else NamedSharding(mesh(devices), spec)
