"""From a cohort to one aggregate: each client produces a message, and what arrives is measured on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import devices, execute, measure
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.client import LocalData, Message
from fedjax_sim.core.lanes import ladder
from fedjax_sim.core.rewrite import suited
from fedjax_sim.core.types import Array, PyTree, squared_norm, trained


class Item(NamedTuple):
    """What blocks are made of: the clients of a cohort, arrays [C]."""

    ids: Array
    starts: Array
    sizes: Array
    rows: Array
    steps: Array
    present: Array
    key: Array  # uint32[C, ...], as data: typed keys do not pass through every collective
    transform_key: Array
    version: Any = ()  # int32[C], which of several broadcasts each received, where there are several


class Work(NamedTuple):
    """Where and how the work of a round is done."""

    examples: PyTree  # arrays [total, ...]
    batch_size: int
    full_losses: bool
    lanes: int
    devices: Sequence[Any]
    wrap: Callable[[Array], Array]  # makes a key of its data
    poisson: bool = False
    rewrite: bool | None = None  # as of `make_round`
    equal: bool = False  # whether all clients that are present do equally many local steps
    homes: Array | None = None  # int32[C], of `Cohort`


class Arrival(NamedTuple):
    """What was measured of the messages as the server received them; arrays [C] in the cohort's order."""

    weight: Array  # summing to 1, or all 0
    norm: Array
    cosine: Array
    rejected: Array
    gradient_diversity: Array  # []
    effective_clients: Array  # []


def local_data(item: Item, examples: PyTree, lanes: int, work: Work) -> LocalData:
    """One client's data, in a block of so many lanes."""
    widths = (lanes,) if work.equal else ladder(lanes)
    return LocalData(item.ids, examples, item.starts, item.sizes, item.steps, work.wrap(item.key), work.batch_size,
                     widths, full_losses=work.full_losses, poisson=work.poisson)  # fmt: skip


def only(filled: Array, items: Item) -> Item:
    """`items` of a block, where those of slots that hold none have nothing to do."""
    steps, sizes = (jnp.where(filled, counts, 0) for counts in (items.steps, items.sizes))
    return items._replace(present=items.present & filled, steps=steps, sizes=sizes)


def run_clients(
    function: Callable[[PyTree, PyTree, LocalData, Item], tuple[PyTree, PyTree]],
    gather: Callable[[PyTree, PyTree, PyTree, Item], tuple[PyTree, PyTree]],
    zero: PyTree,
    memory: PyTree,
    shared: PyTree,
    items: Item,
    work: Work,
    place: Callable[[PyTree], PyTree] = lambda kept: kept,
) -> tuple[PyTree, PyTree, PyTree]:
    """`function(shared, own, data, item) -> (outputs, own)` of every client, and a fold over what blocks return.

    `own` is the client's row of `memory`, arrays [N, ...]; who is absent keeps the old one. `gather(acc, shared,
    outputs [L, ...], items) -> (acc, kept [L, ...])`. Returns the accumulator, the memory, and what was kept, in the
    cohort's order and where `place` puts it (see `execute.fold`).
    """

    def block(acc: PyTree, shared: PyTree, items: Item, own: PyTree, filled: Array) -> tuple[PyTree, PyTree, PyTree]:
        known, examples = shared
        items = only(filled, items)

        def one(lane: tuple[Item, PyTree]) -> tuple[PyTree, PyTree]:
            item, own = lane
            return function(known, own, local_data(item, examples, filled.shape[0], work), item)

        train = suited(partial(execute.over_lanes, one), work.devices, work.rewrite)
        outputs, own = train((items, own))
        acc, kept = gather(acc, known, outputs, items)
        return acc, own, kept

    rows = jnp.where(items.present, items.rows, jnp.iinfo(jnp.int32).max)
    return execute.fold(
        block, zero, memory, (shared, work.examples), items, rows, items.steps,
        lanes=work.lanes, devices=work.devices, place=place, homes=work.homes,
    )  # fmt: skip


class _Received(NamedTuple):
    weight: Array
    squared: Array
    rejected: Array
    seen: PyTree  # of the updates, what their cosines are made of: sketches, or all of them where they are stored


def collect(
    produce: Callable[[PyTree, PyTree, LocalData, Item], tuple[Message, PyTree, PyTree]],
    aggregator: Aggregator,
    like: Message,
    memory: PyTree,
    shared: PyTree,
    items: Item,
    work: Work,
    *,
    receive_key: Array,
    measure_key: Array,
) -> tuple[Message, Arrival, PyTree, PyTree]:
    """Has every client of the cohort produce a message, and aggregates them.

    Args:
      produce: `(shared, own, data, item) -> (message, own, outputs)`, of one client.
      aggregator: what combines the messages.
      like: zeros, shaped like one message.
      memory: arrays [N, ...], of which `own` is the client's row.
      shared: what every client sees whole.
      items: the cohort.
      work: where and how.
      receive_key: of this round's arrivals.
      measure_key: of this round's sketches.

    Returns:
      The aggregate, what was measured on arrival, the memory, and the clients' outputs in the cohort's order.
    """
    signs = () if aggregator.whole else measure.random_signs(measure_key, trained(like.update))

    def seen(update: PyTree, signs: PyTree) -> PyTree:
        return update if aggregator.whole else measure.sketch(update, signs)

    def arrive(acc: PyTree, signs: PyTree, key: Array, messages: Message, items: Item) -> tuple[PyTree, _Received]:
        sizes = jnp.where(items.present, items.sizes, 0).astype(jnp.float32)
        messages, weights = aggregator.receive(messages, items.ids, sizes, work.wrap(key))
        weights = jnp.maximum(weights, 0)  # noise on a weight may have turned it around; NaN stays

        def look(message: Message, counts: Array, present: Array) -> tuple[Message, Array, Array, PyTree]:
            squared = squared_norm(trained(message.update))
            rejected = ~jnp.isfinite(squared_norm(message)) & ~counts & present
            message = jax.tree.map(lambda m: jnp.where(counts, m, 0), message)
            return message, jnp.where(counts, squared, 0), rejected, seen(trained(message.update), signs)

        counted = (messages, weights > 0, items.present)
        messages, squared, rejected, updates = execute.over_lanes(lambda lane: look(*lane), counted)
        return aggregator.add(acc, messages, weights), _Received(weights, squared, rejected, updates)

    def gather(acc: PyTree, shared: PyTree, outputs: PyTree, items: Item) -> tuple[PyTree, PyTree]:
        messages, kept = outputs
        if aggregator.whole:
            return acc, (messages, kept)
        acc, received = arrive(acc, shared[1], shared[2], messages, items)
        return acc, (received, kept)

    def place(kept: PyTree) -> PyTree:  # each device aggregates its entries of all messages
        return (devices.split_entries(kept[0], work.devices), kept[1]) if aggregator.whole else kept

    start, everything = aggregator.init(like), (shared, signs, jax.random.key_data(receive_key))

    def one(shared: PyTree, own: PyTree, data: LocalData, item: Item) -> tuple[PyTree, PyTree]:
        message, own, outputs = produce(shared[0], own, data, item)
        return (message, outputs), own

    zero = () if aggregator.whole else start
    acc, memory, (found, outputs) = run_clients(one, gather, zero, memory, everything, items, work, place)
    if aggregator.whole:
        found = devices.split_entries(found, work.devices)
        acc, found = arrive(start, everything[1], everything[2], found, items)
    aggregate = aggregator.finish(acc)
    if aggregator.whole:  # or what it is made of would be gathered instead, the cohort's messages
        aggregate = devices.split_entries(aggregate, work.devices, kept=0)
    cosines = measure.cosines(found.seen, seen(trained(aggregate.update), signs))
    if aggregator.whole:
        aggregate = devices.gather_entries(aggregate, work.devices)
    return aggregate, _measured(found, trained(aggregate.update), cosines), memory, outputs


def _measured(received: _Received, aggregate: PyTree, cosines: Array) -> Arrival:
    total, squared = received.weight.sum(), squared_norm(aggregate)
    weight, norm = received.weight / jnp.where(total > 0, total, 1), jnp.sqrt(received.squared)
    mean_square = jnp.sum(weight * received.squared)
    return Arrival(
        weight=weight,
        norm=norm,
        cosine=cosines,
        rejected=received.rejected,
        gradient_diversity=jnp.where(squared > 0, mean_square / jnp.where(squared > 0, squared, 1), 1.0),
        effective_clients=jnp.where(total > 0, 1 / jnp.where(total > 0, jnp.sum(weight**2), 1), 0.0),
    )
