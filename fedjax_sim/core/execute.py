"""Devices, blocks and lanes: how work on many items of unequal cost is spread and folded. Nothing here is about
learning.

Items are sorted by cost and cut into blocks of `lanes`; blocks go to devices so that loads are even; each device scans
its own blocks, and the lanes of a block run together under `vmap`. Results do not depend on any of it beyond the
rounding of float32: sums are made in another order, and what works on more lanes at once may round otherwise, so that
equal numbers to the last bit need equal lanes and devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from fedjax_sim.core.devices import AXIS, mesh
from fedjax_sim.core.types import Array, PyTree

_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def schedule(costs: Array, lanes: int, devices: int) -> Array:
    """Which item each slot runs, int32[devices, blocks, lanes]; `len(costs)` marks an empty slot.

    A block costs as much as its dearest item. Blocks are placed from the dearest to the cheapest, each on the device
    with the least to do that still has room (all have room for the same number of blocks).
    """
    items = costs.shape[0]
    blocks = -(-items // (lanes * devices))
    padding = blocks * lanes * devices - items
    order = jnp.concatenate([jnp.argsort(-costs), jnp.full(padding, items)]).astype(jnp.int32)
    order = order.reshape(blocks * devices, lanes)
    if devices == 1:
        return order[None]
    block_costs = jnp.concatenate([costs, jnp.zeros(1, costs.dtype)])[order[:, 0]]

    def place(carry: tuple[Array, Array], cost: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        load, count = carry
        device = jnp.argmin(jnp.where(count < blocks, load, jnp.iinfo(load.dtype).max))
        return (load.at[device].add(cost), count.at[device].add(1)), (device, count[device])

    start = (jnp.zeros(devices, costs.dtype), jnp.zeros(devices, jnp.int32))
    _, (device, position) = lax.scan(place, start, block_costs)
    return jnp.zeros((devices, blocks, lanes), jnp.int32).at[device, position].set(order)


def over_lanes(function: Callable[..., PyTree], items: PyTree) -> PyTree:
    """`function(item)` for each lane of `items` [L, ...]; a single lane runs without a batch axis, which is faster."""
    if jax.tree.leaves(items)[0].shape[0] > 1:
        return jax.vmap(function)(items)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], items)))


def fold(
    block: Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree]],
    zero: PyTree,
    shared: PyTree,
    items: PyTree,
    costs: Array,
    *,
    lanes: int,
    devices: Sequence[Any],
    place: Callable[[PyTree], PyTree] = lambda outputs: outputs,
) -> tuple[PyTree, PyTree]:
    """Folds `block` over all items.

    Args:
      block: `(acc, shared, items [L, ...], present bool[L]) -> (acc, outputs [L, ...])`. Slots that hold no item repeat
        some item, with `present` False.
      zero: the accumulator at the start, zeros; the devices' accumulators are added.
      shared: what every device sees whole.
      items: arrays [C, ...].
      costs: int32[C], what decides order and balance.
      lanes: items run at once on a device.
      devices: where; the first alone, and no communication, if there is one.
      place: where outputs [slots, ...], split over the devices by their slots, go before they are put in order.

    Returns:
      The accumulator, and the outputs in the order of `items`, [C, ...].
    """
    count = costs.shape[0]
    slots = schedule(costs, lanes, len(devices))

    def on_device(acc: PyTree, shared: PyTree, items: PyTree, slots: Array) -> tuple[PyTree, PyTree]:
        def look_up(slot: Array) -> tuple[PyTree, Array]:
            return jax.tree.map(lambda x: x.at[slot].get(mode="clip"), items), slot < count

        # Each step looks up the items of the next one: what a loop carries is written out, while a look-up in its own
        # step would be fused into whatever uses it, and be done again for every entry of every array.
        def step(carry: tuple[PyTree, PyTree], following: Array) -> tuple[PyTree, PyTree]:
            acc, (chosen, filled) = carry
            acc, outputs = block(acc, shared, chosen, filled)
            return (acc, look_up(following)), outputs

        (acc, _), outputs = lax.scan(step, (acc, look_up(slots[0, 0])), jnp.roll(slots[0], -1, axis=0))
        return acc, outputs

    if len(devices) == 1:
        acc, outputs = on_device(zero, shared, items, slots)
    else:

        def shard(acc: PyTree, shared: PyTree, items: PyTree, slots: Array) -> tuple[PyTree, PyTree]:
            acc, outputs = on_device(acc, shared, items, slots)
            return lax.psum(acc, AXIS), outputs

        specs = (_REPLICATED, _REPLICATED, _REPLICATED, _SPLIT)
        # unchecked, for what a client starts from (zeros, optimizer states) is not marked as varying over devices
        run = jax.shard_map(shard, mesh=mesh(devices), in_specs=specs, out_specs=(_REPLICATED, _SPLIT), check_vma=False)
        acc, outputs = run(zero, shared, items, slots)
    flat = place(jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), outputs))
    where = jnp.zeros(count, jnp.int32).at[slots.reshape(-1)].set(jnp.arange(slots.size, dtype=jnp.int32), mode="drop")
    return acc, jax.tree.map(lambda x: x[where], flat)
