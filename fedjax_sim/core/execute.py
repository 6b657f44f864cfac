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

from fedjax_sim.core.devices import AXIS, gather_rows, mesh, span_processes, sum_and_gather
from fedjax_sim.core.types import Array, PyTree

MESSAGE_ENTRIES = 2**18  # about how many entries of clients' memory a device sends at once
FEW_ENTRIES = 1024  # of an item, up to which its outputs are sent to other processes in one message
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


def schedule_at_home(costs: Array, homes: Array, lanes: int, devices: int) -> Array:
    """`schedule` where it is settled on which device each item runs, int32[C]: for none more than `C / devices` rounded
    up."""
    items = costs.shape[0]
    blocks = -(-items // (lanes * devices))
    order = jnp.lexsort((-costs, homes)).astype(jnp.int32)
    device = homes[order]
    place = jnp.arange(items) - jnp.searchsorted(device, device, side="left")  # among those of its device
    slots = jnp.full((devices, blocks * lanes), items, jnp.int32).at[device, place].set(order)
    return slots.reshape(devices, blocks, lanes)


def over_lanes(function: Callable[..., PyTree], items: PyTree) -> PyTree:
    """`function(item)` for each lane of `items` [L, ...]; a single lane runs without a batch axis, which is faster."""
    if jax.tree.leaves(items)[0].shape[0] > 1:
        return jax.vmap(function)(items)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], items)))


def rows_of(memory: PyTree, rows: Array) -> PyTree:
    """These rows of arrays [N, ...]; some other where there is none of that number."""
    return jax.tree.map(lambda m: m.at[rows].get(mode="clip"), memory)


def with_rows(memory: PyTree, rows: Array, new: PyTree) -> PyTree:
    """`memory` with these rows replaced, those aside of which there is none."""
    return jax.tree.map(lambda m, n: m.at[rows].set(n, mode="drop"), memory, new)


def fold(
    block: Callable[[PyTree, PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree, PyTree]],
    zero: PyTree,
    memory: PyTree,
    shared: PyTree,
    items: PyTree,
    rows: Array,
    costs: Array,
    *,
    lanes: int,
    devices: Sequence[Any],
    place: Callable[[PyTree], PyTree] = lambda outputs: outputs,
    homes: Array | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Folds `block` over all items.

    Args:
      block: `(acc, shared, items [L, ...], own [L, ...], present bool[L]) -> (acc, own, outputs [L, ...])`. Slots that
        hold no item repeat some item, with `present` False.
      zero: the accumulator at the start, zeros; the devices' accumulators are added.
      memory: arrays [N, ...], of which each item has a row of its own; `()` for none. Blocks are handed the rows of
        their items, and those that they return are put in place at once.
      shared: what every device sees whole.
      items: arrays [C, ...].
      rows: int32[C], where each item's row is, no two alike; one beyond the last for an item whose row is not kept.
      costs: int32[C], what decides order and balance.
      lanes: items run at once on a device.
      devices: where; the first alone, and no communication, if there is one.
      place: where outputs [slots, ...], split over the devices by their slots, go before they are put in order.
      homes: int32[C], where each item runs, see `schedule_at_home`; `shared` is then a pair, whose second member are
        arrays [D, ...], and each device sees its own part of them, [...], in their place.

    Returns:
      The accumulator, the memory, and the outputs in the order of `items`, [C, ...].
    """
    count = costs.shape[0]
    parts: PyTree = None
    if homes is None:
        slots = schedule(costs, lanes, len(devices))
    else:
        (shared, parts), slots = shared, schedule_at_home(costs, homes, lanes, len(devices))

    def seen(shared: PyTree, parts: PyTree) -> PyTree:
        return shared if homes is None else (shared, jax.tree.map(lambda x: x[0], parts))

    places = rows.at[slots].get(mode="fill", fill_value=jnp.iinfo(jnp.int32).max)

    def on_device(
        acc: PyTree, memory: PyTree, shared: PyTree, items: PyTree, slots: Array, places: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        def look_up(memory: PyTree, turn: tuple[Array, Array]) -> tuple[PyTree, PyTree, Array]:
            slot, place = turn
            return rows_of(items, slot), rows_of(memory, place), slot < count

        # Each step looks up what the next one needs: what a loop carries is written out, while a look-up in its own
        # step would be fused into whatever uses it, be done again for every entry of every array, and where it reads
        # the memory that the step writes, have all of that copied first.
        def step(carry: tuple[PyTree, ...], turn: tuple[Array, tuple[Array, Array]]) -> tuple[PyTree, PyTree]:
            (acc, memory, (chosen, own, filled)), (place, following) = carry, turn
            acc, own, outputs = block(acc, shared, chosen, own, filled)
            memory = with_rows(memory, place, own)
            return (acc, memory, look_up(memory, following)), outputs

        turns = slots[0], places[0]
        following = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), turns)
        first = look_up(memory, jax.tree.map(lambda x: x[0], turns))
        (acc, memory, _), outputs = lax.scan(step, (acc, memory, first), (places[0], following))
        return acc, memory, outputs

    if len(devices) == 1:
        acc, memory, outputs = on_device(zero, memory, seen(shared, parts), items, slots, places)
    else:

        def exchange(memory: PyTree, place: Array) -> tuple[PyTree, None]:
            """What the devices' blocks of one turn have left in their own copies is put into all."""
            return with_rows(memory, *gather_rows((place, rows_of(memory, place)), devices)), None

        def shard(
            acc: PyTree, memory: PyTree, shared: PyTree, parts: PyTree, items: PyTree, slots: Array, places: Array
        ) -> tuple[PyTree, PyTree, PyTree, PyTree]:
            mine = lax.axis_index(AXIS)
            slots, places = (lax.dynamic_slice_in_dim(x, mine, 1) for x in (slots, places))
            acc, memory, outputs = on_device(acc, memory, seen(shared, parts), items, slots, places)
            if jax.tree.leaves(memory):  # some blocks at a time, for all rows at once would be as large as the cohort
                memory, _ = lax.scan(exchange, memory, _some_at_once(places[0], memory, devices))
            few, many = _by_size(outputs) if span_processes(devices) else (None, outputs)
            acc, few = sum_and_gather(acc, few, devices)
            return acc, memory, few, many

        specs = (_REPLICATED, _REPLICATED, _REPLICATED, _SPLIT, _REPLICATED, _REPLICATED, _REPLICATED)
        out_specs = (_REPLICATED, _REPLICATED, _REPLICATED, _SPLIT)
        # unchecked, for what a client starts from (zeros, optimizer states) is not marked as varying over devices
        run = jax.shard_map(shard, mesh=mesh(devices), in_specs=specs, out_specs=out_specs, check_vma=False)
        acc, memory, few, many = run(zero, memory, shared, parts, items, slots, places)
        outputs = many if few is None else jax.tree.map(_either, few, many, is_leaf=lambda x: x is None)
    flat = place(jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), outputs))
    where = jnp.zeros(count, jnp.int32).at[slots.reshape(-1)].set(jnp.arange(slots.size, dtype=jnp.int32), mode="drop")
    return acc, memory, jax.tree.map(lambda x: x[where], flat)


def _some_at_once(places: Array, memory: PyTree, devices: Sequence[Any]) -> Array:
    """Rows int32[blocks, lanes] as int32[messages, M], those that are exchanged together; between processes as many as
    a message of moderate size holds, with places of no row at the end."""
    if not span_processes(devices):
        return places
    blocks, lanes = places.shape
    row = sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(memory))
    together = lanes * max(1, min(blocks, MESSAGE_ENTRIES // max(1, row * lanes)))
    missing = -places.size % together
    return jnp.pad(places.ravel(), (0, missing), constant_values=jnp.iinfo(jnp.int32).max).reshape(-1, together)


def _by_size(outputs: PyTree) -> tuple[PyTree, PyTree]:
    """Arrays [blocks, L, ...] of few entries an item, which travel together, and the others; each with None for the
    rest."""

    def few(x: Array) -> bool:
        return x.size <= FEW_ENTRIES * x.shape[0] * x.shape[1]

    return jax.tree.map(lambda x: x if few(x) else None, outputs), jax.tree.map(
        lambda x: None if few(x) else x, outputs
    )


def _either(first: Array | None, second: Array | None) -> Array | None:
    return second if first is None else first
