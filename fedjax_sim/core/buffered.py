"""Rounds in which training and aggregation come apart: a message is kept from when it was computed until it arrives.

What asynchronous servers need (FedAsync, FedBuff), and synchronous ones that take late messages. Who trains from which
version and what arrives when is decided beforehand, on the host (`fedjax_sim.network`); here it is a `Turn` of arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Info, LocalData, Message
from fedjax_sim.core.collect import Item, collect, run_clients
from fedjax_sim.core.round import (
    MEASURE,
    RECEIVE,
    RELEASE,
    TRAIN,
    TRANSFORM,
    as_key,
    bind,
    client_keys,
    conclude,
    counted_bits,
    exchanged_bits,
    init,
    make_items,
    measured,
    stage_key,
    trainer,
)
from fedjax_sim.core.types import Array, Cohort, PyTree, RoundMetrics, RoundState, Scalar

Discount = Callable[[Array], Array]  # staleness f32[], at least 0 -> what a message is scaled by, f32[]


class Turn(NamedTuple):
    """One step of the server, beside the cohort of `W` slots that trains before it; at most `A` messages arrive."""

    places: Any  # int32[W], where the message of each client that trains is kept; -1 for an empty slot
    versions: Any  # int32[W], server steps there had been when that client began
    arrived: Any  # int32[A], places of the messages that are aggregated; -1 for none


class Held(NamedTuple):
    """Messages on their way, by place: arrays [P, ...]."""

    message: Message
    ids: Array
    sizes: Array
    steps: Array
    versions: Array
    bits: Array
    info: Info


class BufferedState(NamedTuple):
    """All that lasts between the server's steps."""

    federation: RoundState
    broadcasts: PyTree  # the latest V, arrays [V, ...]
    models: PyTree  # the latest V as clients received them, where the server mixes models; else ()
    held: Held


def undiscounted() -> Discount:
    """Stale messages count like fresh ones."""
    return jnp.ones_like


def polynomial(exponent: Scalar = 0.5) -> Discount:
    """`(1 + staleness) ** -exponent` (FedAsync, Xie et al. 2019, section 5.2; FedBuff takes 0.5).

    Raises:
      InputError: a negative exponent.
    """
    _validate.number("exponent", exponent, least=0)
    return lambda staleness: (1 + staleness) ** -exponent


def hinge(slope: Scalar = 10.0, delay: Scalar = 4.0) -> Discount:
    """1 up to a staleness of `delay`, then `1 / (slope * (staleness - delay) + 1)` (FedAsync, section 5.2).

    Raises:
      InputError: a slope that is not over 0, or a negative delay.
    """
    _validate.number("slope", slope, above=0)
    _validate.number("delay", delay, least=0)
    return lambda staleness: 1 / (slope * jnp.maximum(staleness - delay, 0) + 1)


def init_buffered(
    algorithm: Algorithm, params: PyTree, num_clients: int, *, places: int, versions: int = 1, mixing: bool = False
) -> BufferedState:
    """The state before the first step, as `init`.

    Args:
      algorithm: whose clients send once a round.
      params: the initial model.
      num_clients: `N`.
      places: `P`, messages that may be on their way at once.
      versions: `V`, latest broadcasts that are kept, from which clients may yet have to train.
      mixing: as in `make_buffered_round`.

    Raises:
      InputError: as `init`; a count that is not positive.
    """
    _validate.whole("places", places)
    _validate.whole("versions", versions)
    federation = init(algorithm, params, num_clients)

    def rows(tree: PyTree, count: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((count, *jnp.shape(x)), jnp.result_type(x)), tree)

    broadcast = algorithm.server.broadcast(federation.params, federation.server)
    whole, real = jnp.int32(0), jnp.float32(0)
    held = Held(algorithm.client.like(broadcast), whole, whole, whole, whole, jnp.uint32(0), Info(real, real, real))
    return BufferedState(
        federation, rows(broadcast, versions), rows(federation.params, versions) if mixing else (), rows(held, places)
    )


def make_buffered_round(
    algorithm: Algorithm, *, discount: Discount | None = None, mixing: bool = False, **local_work: Any
) -> Callable[[BufferedState, Cohort, Turn, Array], tuple[BufferedState, RoundMetrics]]:
    """One step of a server that takes messages as they come.

    In order: the server's broadcast joins the latest V; the cohort trains, each from the version that its turn names,
    and its messages are kept in their places; those that arrive are scaled for their staleness and aggregated. A turn
    may put training off for as long as the broadcasts are kept, so that many clients train as one block: results are
    the same.

    Args:
      algorithm: whose clients send once a round.
      discount: of a message's update by its staleness, server steps since its client began; none by default. The
        aggregator's weights stay as they are: two messages, each halved, move the model half as far (FedBuff, Nguyen et
        al. 2022, algorithm 1).
      mixing: a message stands for the trained model: the server steps from its own model towards that, and not by the
        change from the model that the client received (FedAsync, Xie et al. 2019, algorithm 1, whose alpha is the rate
        of `server_tx=optax.sgd`).
      **local_work: what `make_round` is given beside the algorithm.

    Returns:
      `round_fn(state, cohort, turn, key) -> (state, RoundMetrics)`, not jitted yet; the metrics are of the `A` messages
      that arrived.

    Raises:
      InputError: an algorithm whose clients send twice a round, or a setting out of range.
    """
    if algorithm.survey is not None:
        raise _validate.InputError("algorithm: its clients answer twice a round; take one whose clients send once")
    binding, discount = bind(**local_work), discount or undiscounted()

    def round_fn(state: BufferedState, cohort: Cohort, turn: Turn, key: Array) -> tuple[BufferedState, RoundMetrics]:
        (cohort, turn), key = jax.tree.map(jnp.asarray, (cohort, turn)), as_key(key)
        federation = state.federation
        number, memory = federation.round, federation.server
        broadcast = algorithm.server.broadcast(federation.params, memory)

        def latest(ring: PyTree, tree: PyTree) -> PyTree:
            return jax.tree.map(lambda r, x: r.at[number % r.shape[0]].set(x), ring, tree)

        models = latest(state.models, algorithm.server.shown(federation.params, memory)) if mixing else ()
        state = state._replace(broadcasts=latest(state.broadcasts, broadcast), models=models)
        work = binding.work(cohort, cohort.ids.shape[0], key)

        def keys(stage: int) -> Array:
            def one(version: Array, id: Array) -> Array:
                return jax.random.key_data(jax.random.fold_in(stage_key(key, version, stage), id))

            return jax.vmap(one)(turn.versions, cohort.ids)

        items = make_items(cohort, binding.plan, key, key)
        items = items._replace(key=keys(TRAIN), transform_key=keys(TRANSFORM), version=turn.versions)
        train = trainer(algorithm, work)

        def one(shared: PyTree, own: PyTree, data: LocalData, item: Item) -> tuple[PyTree, PyTree]:
            broadcasts, models = shared

            def of_version(ring: PyTree) -> PyTree:
                return jax.tree.map(lambda r: r[item.version % r.shape[0]], ring)

            message, own, measures = train(of_version(broadcasts), own, data, item)
            if mixing:
                message = message._replace(update=jax.tree.map(jnp.subtract, of_version(models), message.update))
            return (message, measures), own

        down, up = exchanged_bits(algorithm, broadcast, algorithm.client.like(broadcast))
        each = counted_bits("message", up)

        def trained(state: BufferedState) -> BufferedState:
            own = state.federation
            shared, memory = (state.broadcasts, state.models), (own.clients, own.messages)
            _, (clients, messages), (sent, (info, spent_bits)) = run_clients(
                one, lambda acc, shared, outputs, items: (acc, outputs), (), memory, shared, items, work
            )
            slots = jnp.where(items.present & (turn.places >= 0), turn.places, jnp.iinfo(jnp.int32).max)
            fixed = algorithm.transform.spent is None
            bits = jnp.broadcast_to(each, items.ids.shape) if fixed else spent_bits
            new = Held(sent, items.ids, items.sizes, items.steps, turn.versions, bits, info)
            held = jax.tree.map(lambda h, n: h.at[slots].set(n, mode="drop"), state.held, new)
            return state._replace(federation=own._replace(clients=clients, messages=messages), held=held)

        state = lax.cond(items.present.any(), trained, lambda state: state, state)
        federation, held = state.federation, state.held
        arrivals = _arrivals(held, turn.arrived, number, key)

        def replay(shared: PyTree, own: PyTree, data: LocalData, item: Item) -> tuple[Message, PyTree, tuple[()]]:
            held, params = shared
            message = jax.tree.map(lambda m: m[item.rows], held)
            update = jax.tree.map(jnp.subtract, params, message.update) if mixing else message.update
            scale = discount(item.version.astype(jnp.float32))
            return message._replace(update=jax.tree.map(lambda u: u * scale.astype(u.dtype), update)), own, ()

        stage = partial(stage_key, key, number)
        like = jax.tree.map(lambda m: jnp.zeros(m.shape[1:], m.dtype), held.message)
        shared = (held.message, federation.params if mixing else ())
        still = arrivals._replace(steps=jnp.zeros_like(arrivals.steps))
        aggregate, arrival, *_ = collect(
            replay, algorithm.aggregator, like, (), shared, still, binding.work(cohort, len(turn.arrived), key),
            receive_key=stage(RECEIVE), measure_key=stage(MEASURE),
        )  # fmt: skip
        params, server, release, aggregate = conclude(algorithm, federation, memory, aggregate, arrival, stage(RELEASE))
        federation = federation._replace(round=number + 1, params=params, server=server, release=release)
        info = jax.tree.map(lambda x: x[arrivals.rows], held.info)
        sizes = (down, held.bits[arrivals.rows])
        metrics = measured(algorithm, federation, arrivals, info, aggregate, arrival, sizes)
        return state._replace(federation=federation), metrics

    return round_fn


def _arrivals(held: Held, arrived: Array, number: Array, key: Array) -> Item:
    """The messages that arrive, as items whose rows are places and whose version is their staleness."""
    places = jnp.maximum(arrived, 0)
    ids, sizes, steps = held.ids[places], held.sizes[places], held.steps[places]
    none = jnp.zeros_like(ids)
    unused = client_keys(key, ids)
    return Item(ids, none, sizes, places, steps, arrived >= 0, unused, unused, number - held.versions[places])
