"""The round: broadcast, train the cohort, transform, aggregate, release, update; and what was measured on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core import execute
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LocalData, Message
from fedjax_sim.core.message import dense_bits
from fedjax_sim.core.types import (
    Array,
    Cohort,
    Population,
    Procedural,
    PyTree,
    RoundMetrics,
    RoundState,
    squared_norm,
    trained,
)

RoundFn = Callable[[RoundState, Cohort, Array], tuple[RoundState, RoundMetrics]]

# Every key is folded from the run's key: the round, then one of these stages, then the client id.
TRAIN, TRANSFORM, RELEASE, SAMPLE = range(4)


def stage_key(key: Array, round: Array | int, stage: int) -> Array:
    """The key of one stage of one round."""
    return jax.random.fold_in(jax.random.fold_in(key, round), stage)


def init(algorithm: Algorithm, params: PyTree, num_clients: int, *, memory_rows: int | None = None) -> RoundState:
    """The state before the first round.

    Args:
      algorithm: what will train.
      params: the initial model, a pytree of floating-point arrays or `Variables`. It is copied, hence may be donated.
      num_clients: `N`, clients in the population.
      memory_rows: rows of per-client memory in the state: `N` by default; `C` to keep only the cohort's on the device,
      in
        which case the caller swaps them between rounds and fills `Cohort.rows` with 0 to `C - 1`.

    Raises:
      InputError: `params` holds anything but floating-point arrays, or a count is not positive.
    """
    _validate.floating("params", params)
    _validate.whole("num_clients", num_clients)
    rows = _validate.whole("memory_rows", num_clients if memory_rows is None else memory_rows)
    params = jax.tree.map(lambda p: jnp.array(p), params)
    memory = algorithm.client.init(params)
    server = algorithm.server.init(params, num_clients)
    message = _message(algorithm, params, server)
    kept = algorithm.transform.init(message)

    def for_each_client(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.array(jnp.broadcast_to(x, (rows, *jnp.shape(x)))), tree)

    return RoundState(
        round=jnp.zeros((), jnp.int32),
        params=params,
        server=server,
        clients=for_each_client(memory),
        messages=for_each_client(kept),
        release=algorithm.release.init(message),
    )


def _message(algorithm: Algorithm, params: PyTree, server: PyTree) -> Message:
    """Zeros shaped like one client's message."""
    like = algorithm.client.like(algorithm.server.broadcast(params, server))
    return jax.tree.map(jnp.zeros_like, like)


def _bits(name: str, bits: int) -> Array:
    if bits >= 2**32:
        raise _validate.InputError(f"{name}: {bits} bits are more than the 2^32 - 1 that the metrics count; send less")
    return jnp.uint32(bits)


def default_lanes(cohort_size: int, devices: Sequence[Any]) -> int:
    """Clients trained at once on a device unless one says otherwise.

    One on a CPU, where wider blocks leave the cache and gain nothing (`python -m benchmarks.lanes`); the device's share
    of the cohort elsewhere, up to 256.
    """
    return 1 if devices[0].platform == "cpu" else max(1, min(256, -(-cohort_size // len(devices))))


def clients_in(population: Population | Procedural) -> int:
    """`N`, the number of clients."""
    return population.num_clients if isinstance(population, Procedural) else population.offsets.shape[0] - 1


def select(population: Population | Procedural, ids: Any) -> Cohort:
    """The cohort of the clients `ids` (int32[C], -1 for an empty slot), whose examples are resident or computed.

    Raises:
      InputError: ids that are no whole numbers; where they are on the host, also those of clients that do not exist.
    """
    if not isinstance(ids, jax.Array):
        _validate.client_ids(ids, clients_in(population))
    ids = jnp.asarray(ids, jnp.int32)
    held = jnp.maximum(ids, 0)
    if isinstance(population, Procedural):
        return _computed(population, ids, held)
    starts = population.offsets[held]
    sizes = jnp.where(ids >= 0, population.offsets[held + 1] - starts, 0)
    return Cohort(ids, starts, sizes, held, population.examples)


def _computed(population: Procedural, ids: Array, held: Array) -> Cohort:
    keys = jax.vmap(partial(jax.random.fold_in, population.key))(held)
    examples, sizes = jax.vmap(population.make)(keys, held)
    each = {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(examples)}
    if len(each) != 1 or len(next(iter(each))) != 2 or jnp.shape(sizes) != ids.shape:
        shapes = [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(examples)]
        raise _validate.InputError(
            f"make: arrays {shapes} and size {list(jnp.shape(sizes)[1:])}; return arrays [K, ...] of one K, and int32[]"
        )
    rows = next(iter(each))[1]
    sizes = jnp.where(ids >= 0, jnp.clip(sizes, 0, rows), 0).astype(jnp.int32)
    starts = jnp.arange(ids.shape[0], dtype=jnp.int32) * rows
    return Cohort(ids, starts, sizes, held, jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), examples))


class _Item(NamedTuple):
    ids: Array
    starts: Array
    sizes: Array
    rows: Array
    steps: Array
    present: Array
    key: Array  # uint32[C, ...], as data: typed keys do not pass through every collective
    transform_key: Array


class _Output(NamedTuple):
    clients: PyTree
    messages: PyTree
    loss_before: Array
    loss_after: Array
    update_norm: Array


def make_round(
    algorithm: Algorithm,
    *,
    batch_size: int,
    local_epochs: int = 1,
    local_steps: int | None = None,
    lanes: int | None = None,
    devices: Sequence[Any] | None = None,
    client_losses: str = "steps",
) -> RoundFn:
    """Binds an algorithm to its local work and to the hardware.

    Args:
      algorithm: the four parts.
      batch_size: `B`, examples in a local step.
      local_epochs: passes over the client's examples.
      local_steps: local steps of every client, instead of epochs.
      lanes: `L`, clients trained at once on a device; by default 1 on a CPU and all of the device's share elsewhere.
      devices: devices to spread the cohort over, by default JAX's default device alone. With several, place state and
        population with `replicate`, or they are copied at every call.
      client_losses: "steps" reports the losses of the first and the last local step, for free; "examples" the mean
        losses over all the client's examples before and after training, for two more forward passes over them.

    Returns:
      `round_fn(state, cohort, key) -> (state, RoundMetrics)`: pure, not jitted yet; it fits `jit`, `lax.scan` and
      `vmap`. `key` is the run's key, the same in every round: the round's number and the client ids are folded in.

    Raises:
      InputError: a setting out of range; when traced, a cohort or loss of the wrong shape.
    """
    _validate.whole("batch_size", batch_size)
    _validate.whole("local_epochs", local_epochs)
    if local_steps is not None:
        _validate.whole("local_steps", local_steps)
    _validate.one_of("client_losses", client_losses, ("steps", "examples"))
    if lanes is not None:
        _validate.whole("lanes", lanes)
    if devices is not None and (not isinstance(devices, Sequence) or len(devices) == 0):
        shown = _validate.shown(devices)
        raise _validate.InputError(f"devices: {shown} is no list of devices; give jax.devices() or None")

    def planned_steps(sizes: Array) -> Array:
        steps = -(-sizes // batch_size) * local_epochs if local_steps is None else local_steps
        return jnp.where(sizes > 0, steps, 0).astype(jnp.int32)

    def round_fn(state: RoundState, cohort: Cohort, key: Array) -> tuple[RoundState, RoundMetrics]:
        cohort = jax.tree.map(jnp.asarray, cohort)
        arrays = {name: getattr(cohort, name) for name in ("ids", "starts", "sizes", "rows")}
        _validate.cohort(arrays, cohort.examples)
        where = list(devices) if devices is not None else jax.local_devices()[:1]
        width = lanes or default_lanes(cohort.ids.shape[0], where)

        broadcast = algorithm.server.broadcast(state.params, state.server)
        present = (cohort.ids >= 0) & (cohort.sizes > 0)
        steps = jnp.where(present, planned_steps(cohort.sizes), 0)
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))

        def client_keys(stage: int) -> Array:  # all at once: a key derived in the loop over clients is slow on a CPU
            fold = partial(jax.random.fold_in, stage_key(key, state.round, stage))
            return jax.random.key_data(jax.vmap(fold)(cohort.ids))

        items = _Item(
            **arrays, steps=steps, present=present, key=client_keys(TRAIN), transform_key=client_keys(TRANSFORM)
        )

        def one_client(shared: PyTree, trips: Array, alone: bool, item: _Item) -> tuple[Message, _Output, Array]:
            broadcast, examples, clients, messages = shared
            memory, kept = jax.tree.map(lambda m: m.at[item.rows].get(mode="clip"), (clients, messages))
            client_key = wrap(item.key)
            data = LocalData(
                examples,
                item.starts,
                item.sizes,
                item.steps,
                trips,
                client_key,
                batch_size=batch_size,
                alone=alone,
                full_losses=client_losses == "examples",
            )
            message, memory, info = algorithm.client.run(broadcast, memory, data, client_key)
            norm = jnp.sqrt(squared_norm(trained(message.update)))
            message, kept = algorithm.transform.update(message, kept, wrap(item.transform_key))
            message = jax.tree.map(lambda m: jnp.where(item.present, m, 0), message)
            squared = squared_norm(trained(message.update))
            return message, _Output(memory, kept, info.loss_before, info.loss_after, norm), squared

        def block(acc: PyTree, shared: PyTree, items: _Item, filled: Array) -> tuple[PyTree, _Output]:
            items = items._replace(present=items.present & filled, steps=jnp.where(filled, items.steps, 0))
            trips, alone = items.steps.max(), items.steps.shape[0] == 1

            def one(item: _Item) -> tuple[Message, _Output, Array]:
                return one_client(shared, trips, alone, item)

            messages, outputs, squared = execute.over_lanes(one, items)
            weights = algorithm.aggregator.weigh(jnp.where(items.present, items.sizes, 0).astype(jnp.float32))
            total, squares, weight = acc
            squares = squares + jnp.sum(weights * squared)
            return (algorithm.aggregator.add(total, messages, weights), squares, weight + weights.sum()), outputs

        zero = jnp.zeros((), jnp.float32)
        message = _message(algorithm, state.params, state.server)
        shared = (broadcast, cohort.examples, state.clients, state.messages)
        start = (algorithm.aggregator.init(message), zero, zero)
        (total, squares, weight), outputs = execute.fold(block, start, shared, items, steps, lanes=width, devices=where)
        aggregate = algorithm.aggregator.finish(total)
        mean_square = squares / jnp.where(weight > 0, weight, 1)
        squared_mean = squared_norm(trained(aggregate.update))
        aggregate, release = algorithm.release.update(aggregate, state.release, stage_key(key, state.round, RELEASE))
        params, server = algorithm.server.update(state.params, state.server, aggregate)

        slots = jnp.where(present, cohort.rows, jnp.iinfo(jnp.int32).max)  # an absent client's memory stays as it is

        def renew(old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(lambda o, n: o.at[slots].set(n, mode="drop"), old, new)

        new_state = RoundState(
            round=state.round + 1,
            params=params,
            server=server,
            clients=renew(state.clients, outputs.clients),
            messages=renew(state.messages, outputs.messages),
            release=release,
        )

        def of_present(values: Array) -> Array:
            return jnp.where(present, values, jnp.zeros((), values.dtype))

        uplink = algorithm.transform.wire(message)
        metrics = RoundMetrics(
            ids=jnp.where(present, cohort.ids, -1),
            examples=of_present(cohort.sizes),
            steps=steps,
            loss_before=of_present(outputs.loss_before),
            loss_after=of_present(outputs.loss_after),
            update_norm=of_present(outputs.update_norm),
            aggregate_norm=jnp.sqrt(squared_norm(trained(aggregate.update))),
            gradient_diversity=jnp.where(squared_mean > 0, mean_square / squared_mean, 1.0),
            uplink_bits=of_present(_bits("message", dense_bits(message) if uplink is None else uplink)),
            downlink_bits=of_present(_bits("broadcast", dense_bits(broadcast))),
        )
        return new_state, metrics

    return round_fn
