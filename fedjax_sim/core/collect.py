"""From a cohort to one aggregate: each client produces a message, and what arrives is measured on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import devices, execute, measure
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.client import LocalData, Message
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


class Arrival(NamedTuple):
    """What was measured of the messages as the server received them; arrays [C] in the cohort's order."""

    weight: Array  # summing to 1, or all 0
    norm: Array
    cosine: Array
    rejected: Array
    gradient_diversity: Array  # []
    effective_clients: Array  # []


def local_data(item: Item, examples: PyTree, trips: Array, work: Work) -> LocalData:
    """One client's data, as if others were trained beside it."""
    return LocalData(item.ids, examples, item.starts, item.sizes, item.steps, trips, work.wrap(item.key),
                     work.batch_size, alone=False, full_losses=work.full_losses, poisson=work.poisson)  # fmt: skip


def run_clients(
    function: Callable[[PyTree, LocalData, Item], PyTree],
    gather: Callable[[PyTree, PyTree, PyTree, Item], tuple[PyTree, PyTree]],
    zero: PyTree,
    shared: PyTree,
    items: Item,
    work: Work,
    place: Callable[[PyTree], PyTree] = lambda kept: kept,
) -> tuple[PyTree, PyTree]:
    """`function(shared, data, item)` of every client, and a fold over what blocks of them return.

    `gather(acc, shared, outputs [L, ...], items) -> (acc, kept [L, ...])`. Returns the accumulator, and what was kept,
    in the cohort's order and where `place` puts it (see `execute.fold`).
    """

    def block(acc: PyTree, shared: PyTree, items: Item, filled: Array) -> tuple[PyTree, PyTree]:
        own, examples = shared
        items = items._replace(present=items.present & filled, steps=jnp.where(filled, items.steps, 0))
        trips, alone = items.steps.max(), items.steps.shape[0] == 1

        def one(item: Item) -> PyTree:
            return function(own, local_data(item, examples, trips, work)._replace(alone=alone), item)

        train = suited(partial(execute.over_lanes, one), work.devices, work.rewrite)
        return gather(acc, own, train(items), items)

    shared = (shared, work.examples)
    return execute.fold(block, zero, shared, items, items.steps, lanes=work.lanes, devices=work.devices, place=place)


class _Received(NamedTuple):
    weight: Array
    squared: Array
    rejected: Array
    seen: PyTree  # of the updates, what their cosines are made of: sketches, or all of them where they are stored


def collect(
    produce: Callable[[PyTree, LocalData, Item], tuple[Message, PyTree]],
    aggregator: Aggregator,
    like: Message,
    shared: PyTree,
    items: Item,
    work: Work,
    *,
    receive_key: Array,
    measure_key: Array,
) -> tuple[Message, Arrival, PyTree]:
    """Has every client of the cohort produce a message, and aggregates them.

    Args:
      produce: `(shared, data, item) -> (message, outputs)`, of one client.
      aggregator: what combines the messages.
      like: zeros, shaped like one message.
      shared: what every client sees whole.
      items: the cohort.
      work: where and how.
      receive_key: of this round's arrivals.
      measure_key: of this round's sketches.

    Returns:
      The aggregate, what was measured on arrival, and the clients' outputs in the cohort's order.
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
    acc, (found, outputs) = run_clients(
        lambda shared, data, item: produce(shared[0], data, item),
        gather, () if aggregator.whole else start, everything, items, work, place,
    )  # fmt: skip
    if aggregator.whole:
        found = devices.split_entries(found, work.devices)
        acc, found = arrive(start, everything[1], everything[2], found, items)
    aggregate = aggregator.finish(acc)
    if aggregator.whole:  # or what it is made of would be gathered instead, the cohort's messages
        aggregate = devices.split_entries(aggregate, work.devices, kept=0)
    cosines = measure.cosines(found.seen, seen(trained(aggregate.update), signs))
    if aggregator.whole:
        aggregate = devices.gather_entries(aggregate, work.devices)
    return aggregate, _measured(found, trained(aggregate.update), cosines), outputs


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
