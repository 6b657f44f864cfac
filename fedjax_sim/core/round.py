"""The round: broadcast, train the cohort, transform, aggregate, release, update; and what was measured on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm, Survey
from fedjax_sim.core.client import Info, LocalData, Message, planned_steps
from fedjax_sim.core.collect import Arrival, Item, Work, collect
from fedjax_sim.core.message import dense_bits
from fedjax_sim.core.types import Array, Cohort, PyTree, RoundMetrics, RoundState, squared_norm, trained

RoundFn = Callable[[RoundState, Cohort, Array], tuple[RoundState, RoundMetrics]]

# Every key is folded from the run's key: the round, then one of these stages, then the client id.
TRAIN, TRANSFORM, RELEASE, SAMPLE, SURVEY, RECEIVE, MEASURE, ADAPT, DOWNLINK, START = range(10)


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
        in which case the caller swaps them between rounds and fills `Cohort.rows` with 0 to `C - 1`.

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
    release = () if algorithm.release is None else algorithm.release.init(message)
    kept = algorithm.transform.init(message)

    def for_each_client(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.array(jnp.broadcast_to(x, (rows, *jnp.shape(x)))), tree)

    return RoundState(
        round=jnp.zeros((), jnp.int32),
        params=params,
        server=jax.tree.map(lambda x: jnp.array(x), server),  # a buffer each, for states are donated
        clients=for_each_client(memory),
        messages=for_each_client(kept),
        release=jax.tree.map(lambda x: jnp.array(x), release),
    )


def _message(algorithm: Algorithm, params: PyTree, server: PyTree) -> Message:
    """Zeros shaped like one client's message."""
    like = algorithm.client.like(algorithm.server.broadcast(params, server))
    return jax.tree.map(jnp.zeros_like, like)


def counted_bits(name: str, bits: int) -> Array:
    """`bits` as uint32[].

    Raises:
      InputError: they are too many.
    """
    if bits >= 2**32:
        raise _validate.InputError(f"{name}: {bits} bits are more than the 2^32 - 1 that the metrics count; send less")
    return jnp.uint32(bits)


def default_lanes(cohort_size: int, devices: Sequence[Any]) -> int:
    """Clients trained at once on a device unless one says otherwise.

    One on a CPU, where wider blocks leave the cache and gain nothing (`python -m benchmarks.lanes`); the device's share
    of the cohort elsewhere, up to 256.
    """
    return 1 if devices[0].platform == "cpu" else max(1, min(256, -(-cohort_size // len(devices))))


def as_key(key: Array) -> Array:
    """`key` as a typed key."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def wrapper(key: Array) -> Callable[[Array], Array]:
    """What makes keys like `key` of their data."""
    return partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))


def client_keys(key: Array, ids: Array) -> Array:
    """Data of `key` folded with each id, all at once: a key derived in the loop over clients is slow on a CPU."""
    return jax.random.key_data(jax.vmap(partial(jax.random.fold_in, key))(ids))


def make_items(cohort: Cohort, plan: Callable[[Array], Array], key: Array, transform_key: Array) -> Item:
    """What the blocks of a round are made of.

    Raises:
      InputError: a cohort of the wrong shape.
    """
    arrays = {name: getattr(cohort, name) for name in ("ids", "starts", "sizes", "rows")}
    most = {} if cohort.most_steps is None else {"most_steps": cohort.most_steps}
    _validate.cohort({**arrays, **most, **({} if cohort.homes is None else {"homes": cohort.homes})}, cohort.examples)
    steps = jnp.minimum(plan(cohort.sizes), most["most_steps"]) if most else plan(cohort.sizes)
    present = (cohort.ids >= 0) & (cohort.sizes > 0) & (steps > 0)
    keys = (client_keys(k, cohort.ids) for k in (key, transform_key))
    return Item(**arrays, steps=jnp.where(present, steps, 0), present=present, key=next(keys), transform_key=next(keys))


class Binding(NamedTuple):
    """Checked settings of local work and hardware."""

    plan: Callable[[Array], Array]  # sizes -> local steps
    work: Callable[[Cohort, int, Array], Work]  # (cohort, slots, key) -> how so many of its slots are run


def bind(
    *,
    batch_size: int,
    local_epochs: int = 1,
    local_steps: int | None = None,
    lanes: int | None = None,
    devices: Sequence[Any] | None = None,
    client_losses: str = "steps",
    local_sampling: str = "epochs",
    rewrite: bool | None = None,
) -> Binding:
    """The arguments of `make_round`, checked."""
    _validate.local_work(batch_size, local_epochs, local_steps)
    _validate.one_of("client_losses", client_losses, ("steps", "examples"))
    _validate.one_of("local_sampling", local_sampling, ("epochs", "poisson"))
    _validate.hardware(lanes, devices)
    if rewrite not in (None, True, False):
        raise _validate.InputError(f"rewrite: {_validate.shown(rewrite)} is neither True nor False; give one, or None")

    def work(cohort: Cohort, slots: int, key: Array) -> Work:
        where = list(devices) if devices is not None else jax.local_devices()[:1]
        width = lanes or default_lanes(slots, where)
        return Work(cohort.examples, batch_size, client_losses == "examples", width, where, wrapper(key),
                    poisson=local_sampling == "poisson", rewrite=rewrite,
                    equal=local_steps is not None and cohort.most_steps is None, homes=cohort.homes)  # fmt: skip

    plan = partial(planned_steps, batch_size=batch_size, local_epochs=local_epochs, local_steps=local_steps)
    return Binding(plan, work)


def make_round(
    algorithm: Algorithm,
    *,
    batch_size: int,
    local_epochs: int = 1,
    local_steps: int | None = None,
    lanes: int | None = None,
    devices: Sequence[Any] | None = None,
    client_losses: str = "steps",
    local_sampling: str = "epochs",
    rewrite: bool | None = None,
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
      local_sampling: "epochs", every example once in each; or "poisson", in every batch with chance `B / size`.
      rewrite: compute convolutions, max-pooling and small matrix products of what clients do, the user's own loss and
        its gradients, in forms with the same numbers up to rounding that are quick inside the compiled round, see
        `core/forms.py`; by default where it runs on CPUs alone. False leaves everything as it is written.

    Returns:
      `round_fn(state, cohort, key) -> (state, RoundMetrics)`: pure, not jitted yet; it fits `jit`, `lax.scan` and
      `vmap`. `key` is the run's key, the same in every round: the round's number and the client ids are folded in.

    Raises:
      InputError: a setting out of range; when traced, a cohort or loss of the wrong shape.
    """
    binding = bind(batch_size=batch_size, local_epochs=local_epochs, local_steps=local_steps, lanes=lanes,
                   devices=devices, client_losses=client_losses, local_sampling=local_sampling,
                   rewrite=rewrite)  # fmt: skip

    def round_fn(state: RoundState, cohort: Cohort, key: Array) -> tuple[RoundState, RoundMetrics]:
        cohort, key = jax.tree.map(jnp.asarray, cohort), as_key(key)
        stage = partial(stage_key, key, state.round)
        items = make_items(cohort, binding.plan, stage(TRAIN), stage(TRANSFORM))
        work = binding.work(cohort, cohort.ids.shape[0], key)
        gather = partial(collect, work=work, receive_key=stage(RECEIVE), measure_key=stage(MEASURE))

        memory, question = state.server, ()
        if algorithm.survey is not None:
            memory, question = _survey(algorithm, algorithm.survey, state, items, stage(SURVEY), gather)
        broadcast = algorithm.server.broadcast(state.params, memory)
        message = _message(algorithm, state.params, memory)
        train, own = trainer(algorithm, work), (state.clients, state.messages)
        found = gather(train, algorithm.aggregator, message, own, broadcast, items)
        aggregate, arrival, (clients, messages), (info, spent_bits) = found

        params, server, release, aggregate = conclude(algorithm, state, memory, aggregate, arrival, stage(RELEASE))
        new_state = RoundState(state.round + 1, params, server, clients, messages, release)
        downlink, uplink = exchanged_bits(algorithm, broadcast, message, question)
        each = counted_bits("message", uplink)
        bits = each if algorithm.transform.spent is None else spent_bits
        metrics = measured(algorithm, new_state, items, info, aggregate, arrival, (downlink, bits))
        return new_state, metrics

    return round_fn


def trainer(algorithm: Algorithm, work: Work) -> Callable[..., tuple[Message, PyTree, tuple[Info, PyTree]]]:
    """`train(broadcast, (own, kept), data, item) -> (message, (own, kept), (info, bits))`: one client's transformed
    message, what it and the transform remember, and the bits of the message, () where they depend on shapes alone."""
    spent = algorithm.transform.spent

    def train(broadcast: PyTree, own: PyTree, data: LocalData, item: Item) -> tuple[Message, PyTree, Any]:
        memory, kept = own
        sent, memory, info = algorithm.client.run(broadcast, memory, data, data.key)
        sent, kept = algorithm.transform.update(sent, kept, work.wrap(item.transform_key))
        return sent, (memory, kept), (info, () if spent is None else spent(kept))

    return train


def conclude(
    algorithm: Algorithm, state: RoundState, memory: PyTree, aggregate: Message, arrival: Arrival, key: Array
) -> tuple[PyTree, PyTree, PyTree, Message]:
    """The server takes the aggregate: new parameters, server memory, memory of the release, and what it took."""
    release = state.release
    if algorithm.release is not None:
        aggregate, release = algorithm.release.update(aggregate, release, key)
    params, server = algorithm.server.update(state.params, memory, aggregate)
    if algorithm.release is None:  # else what is released must not tell whether anybody came
        somebody, before = arrival.effective_clients > 0, (state.params, state.server)
        params, server = jax.tree.map(lambda new, old: jnp.where(somebody, new, old), (params, server), before)
    return params, server, release, aggregate


def measured(
    algorithm: Algorithm, state: RoundState, items: Item, info: Info, aggregate: Message, arrival: Arrival,
    bits: tuple[int, Array],
) -> RoundMetrics:  # fmt: skip
    """The metrics of a round that led to `state`; `bits` of a broadcast and of the messages."""

    def of_present(values: Array) -> Array:
        return jnp.where(items.present, values, jnp.zeros((), values.dtype))

    metrics = RoundMetrics(
        ids=jnp.where(items.present, items.ids, -1),
        examples=of_present(items.sizes),
        steps=of_present(items.steps),
        loss_before=of_present(info.loss_before),
        loss_after=of_present(info.loss_after),
        drift=of_present(info.drift),
        update_norm=arrival.norm,
        cosine=arrival.cosine,
        weight=arrival.weight,
        rejected=arrival.rejected,
        aggregate_norm=jnp.sqrt(squared_norm(trained(aggregate.update))),
        gradient_diversity=arrival.gradient_diversity,
        effective_clients=arrival.effective_clients,
        uplink_bits=of_present(bits[1]),
        downlink_bits=of_present(counted_bits("broadcast", bits[0])),
        extra={},
    )
    return metrics if algorithm.report is None else metrics._replace(extra=algorithm.report(state, metrics))


def wire_bits(algorithm: Algorithm, params: PyTree, num_clients: int) -> tuple[int, int]:
    """Bits that a client receives and, at most, sends in a round, downlink first; nothing is computed."""

    found = []

    def trace(params: PyTree) -> tuple[()]:
        memory, question = algorithm.server.init(params, num_clients), ()
        if algorithm.survey is not None:
            question = algorithm.server.broadcast(params, memory)
            memory = algorithm.survey.tell(memory, algorithm.survey.like(question))
        broadcast = algorithm.server.broadcast(params, memory)
        found.append(exchanged_bits(algorithm, broadcast, algorithm.client.like(broadcast), question))
        return ()

    jax.eval_shape(trace, params)
    return found[0]


def exchanged_bits(algorithm: Algorithm, broadcast: PyTree, message: PyTree, question: PyTree = ()) -> tuple[int, int]:
    """Bits of what a client receives, and of what it sends at most; what came with the question is not sent again."""
    asked = jax.tree.leaves(question)
    rest = [leaf for leaf in jax.tree.leaves(broadcast) if not any(leaf is sent for sent in asked)]
    down, up = algorithm.server.wire(broadcast), algorithm.transform.wire(message)
    answer = 0 if algorithm.survey is None else dense_bits(algorithm.survey.like(question))
    return (
        dense_bits(asked) + dense_bits(rest) if down is None else down,
        answer + (dense_bits(message) if up is None else up),
    )


def _survey(
    algorithm: Algorithm, survey: Survey, state: RoundState, items: Item, key: Array, gather: Callable[..., Any]
) -> tuple[PyTree, PyTree]:
    """The server's memory after asking the cohort, and the question."""
    question = algorithm.server.broadcast(state.params, state.server)
    like = jax.tree.map(jnp.zeros_like, survey.like(question))

    def answer(shared: PyTree, own: PyTree, data: LocalData, item: Item) -> tuple[Message, PyTree, tuple[()]]:
        return survey.ask(shared, data, data.key), own, ()

    items = items._replace(key=client_keys(key, items.ids))
    told, *_ = gather(answer, survey.aggregator, like, (), question, items)
    return survey.tell(state.server, told), question
