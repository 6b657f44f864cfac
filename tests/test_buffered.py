"""Rounds whose messages arrive late: against the papers' pseudo-code, and against rounds where nothing is late."""

from functools import cache
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, assert_close, assert_equal, loss_fn, make_algorithm, one_line

import fedjax_sim as fs
from fedjax_sim import network as net
from fedjax_sim.core.buffered import Turn, hinge, init_buffered, make_buffered_round, polynomial, undiscounted
from fedjax_sim.data.sampling import round_robin, uniform
from fedjax_sim.messages import compressed_broadcast, compressed_messages, lazy, top_k
from fedjax_sim.network.turns import extent, rows

KEY, N = jax.random.key(5), len(SIZES)


def tables(steps, *, versions, places=None, arrivals=None):
    known = extent(steps)
    places, arrivals = places or known[0], arrivals or known[1]
    found = rows(iter(steps), places=places, arrivals=arrivals, versions=versions)
    return jax.tree.map(lambda *row: jnp.asarray(np.stack(row)), *found), places


@cache
def program(algorithm, rounds, discount, mixing, work):
    """Compiled once for calls that differ in their cuts or in arrays alone."""
    round_fn = make_buffered_round(algorithm, discount=discount, mixing=mixing, **dict(work))
    return fs.make_simulation(round_fn, max_rounds=rounds)


def simulate(algorithm, params, population, steps, *, versions=1, cuts=(), mixing=False, discount=None, **work):
    """The final state and all metrics of a schedule, run in calls that end at `cuts`."""
    table, places = tables(steps, versions=versions)
    run = program(algorithm, 12, discount, mixing, tuple(work.items()))
    state = init_buffered(algorithm, params, len(population.offsets) - 1, places=places, versions=versions,
                          mixing=mixing)  # fmt: skip
    turns, parts, done = Turn(table.places, table.versions, table.arrived), [], 0
    for cut in (*cuts, len(steps)):
        state, metrics = run(state, population, KEY, cut - done, table.ids, first=done, most_steps=table.most_steps,
                             turns=turns)  # fmt: skip
        parts.append(jax.tree.map(lambda m, n=cut - done: m[:n], metrics))
        done = cut
    return state, jax.tree.map(lambda *m: jnp.concatenate(m), *parts)


# --- against pseudo-code ---------------------------------------------------------------------------------------------

A, B = np.array([0.5, 1.0, 2.0, 4.0]), np.array([1.0, -2.0, 3.0, 0.5])
PROFILES = net.make_profiles(np.full(4, 1e30), 1e30, seconds_per_step=[1.0, 1.3, 2.1, 7.0])


def quadratic(w, batch, key):
    return 0.5 * batch["a"] * jnp.square(w[0] - batch["b"])


def by_hand(steps, *, scale, mixing, rate):
    """FedBuff (Nguyen et al. 2022, algorithm 1) and FedAsync (Xie et al. 2019, algorithm 1) in plain loops."""
    w, on_their_way, course = 0.0, {}, []
    for step in steps:
        for client, ticket, many in zip(step.begun, step.begun_tickets, step.begun_steps, strict=True):
            own = w
            for _ in range(many):
                own -= 0.1 * A[client] * (own - B[client])
            on_their_way[ticket] = (w, own)
        total = 0.0
        for ticket, staleness in zip(step.tickets, step.staleness, strict=True):
            start, end = on_their_way.pop(ticket)
            total += scale(staleness) * ((w if mixing else start) - end)
        w -= rate * total / len(step.tickets)
        course.append(w)
    return course


@pytest.mark.parametrize(
    ("buffer", "mixing", "discount", "scale"),
    [
        (2, False, polynomial(0.5), lambda t: (1 + t) ** -0.5),
        (1, True, hinge(2.0, 1.0), lambda t: 1 / (2 * max(t - 1, 0) + 1)),
    ],
)
def test_follows_the_papers(buffer, mixing, discount, scale):
    schedule = net.asynchronous(PROFILES, seed=0, concurrency=3, buffer=buffer, steps=np.array([3, 2, 4, 1]),
                                downlink_bits=0, uplink_bits=0)  # fmt: skip
    steps = list(islice(schedule, 12))
    assert max(step.staleness.max() for step in steps) >= 2  # else discounts would not be seen
    population = fs.Population({"a": jnp.asarray(A), "b": jnp.asarray(B)}, jnp.arange(5))
    algorithm = fs.fedavg(quadratic, client_tx=optax.sgd(0.1), server_tx=optax.sgd(0.6))
    state, _ = simulate(algorithm, jnp.zeros(1), population, steps, versions=3, batch_size=1, local_steps=9,
                        mixing=mixing, discount=discount)  # fmt: skip
    expected = by_hand(steps, scale=scale, mixing=mixing, rate=0.6)
    np.testing.assert_allclose(state.federation.params[0], expected[-1], rtol=1e-5)
    assert abs(expected[-1] - by_hand(steps, scale=lambda t: 1, mixing=mixing, rate=0.6)[-1]) > 1e-3


def test_late_messages_are_taken_by_the_round_after_they_arrived():
    """Client 3 needs 7 s a step, rounds last 3 s at most: its message joins the third round."""
    draw = lambda available: round_robin(4, 4, available=available).draw  # noqa: E731
    schedule = net.synchronous(PROFILES, seed=0, draw=draw, steps=1, downlink_bits=0, uplink_bits=0,
                               policy=net.deadline(3.0), late="stale")  # fmt: skip
    steps = list(islice(schedule, 5))
    assert [step.seconds for step in steps] == pytest.approx([3.0, 5.1, 7.2, 10.2, 12.3])
    assert [sorted(step.arrived.tolist()) for step in steps] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2],
        [0, 1, 2],
    ]
    assert steps[2].staleness.tolist() == [0, 0, 0, 2]
    assert [step.late.tolist() for step in steps] == [[3], [], [], [3], []]
    population = fs.Population({"a": jnp.asarray(A), "b": jnp.asarray(B)}, jnp.arange(5))
    algorithm = fs.fedavg(quadratic, client_tx=optax.sgd(0.1))
    state, metrics = simulate(algorithm, jnp.zeros(1), population, steps, batch_size=1, local_steps=1)
    np.testing.assert_allclose(
        state.federation.params[0], by_hand(steps, scale=lambda t: 1, mixing=False, rate=1)[-1], rtol=1e-5
    )
    assert metrics.ids[2].tolist() == [0, 1, 2, 3]


def test_mixing_takes_the_model_that_the_client_received_also_where_it_was_compressed():
    """FedAsync with a broadcast of which one entry of three is sent: what a message stands for is the trained model."""

    def loss(w, batch, key):
        return 0.5 * jnp.sum(batch["a"][:, None] * jnp.square(w - batch["b"][:, None] * pull), axis=1)

    pull, rate = jnp.array([1.0, 3.0, -2.0]), 0.6
    population = fs.Population({"a": jnp.asarray(A), "b": jnp.asarray(B)}, jnp.arange(5))
    schedule = net.asynchronous(PROFILES, seed=0, concurrency=3, buffer=1, steps=2, downlink_bits=0, uplink_bits=0)
    steps = list(islice(schedule, 12))
    algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.1), server_tx=optax.sgd(rate))
    algorithm = compressed_broadcast(algorithm, top_k(0.34))
    state, _ = simulate(
        algorithm, jnp.zeros(3), population, steps, versions=3, batch_size=1, local_steps=9, mixing=True
    )
    w, known, on_their_way = np.zeros(3), np.zeros(3), {}
    for step in steps:
        for client, ticket, many in zip(step.begun, step.begun_tickets, step.begun_steps, strict=True):
            own = known.copy()
            for _ in range(many):
                own -= 0.1 * A[client] * (own - B[client] * np.asarray(pull))
            on_their_way[ticket] = own
        (ticket,) = step.tickets
        w = w - rate * (w - on_their_way.pop(ticket))
        news = np.abs(w - known)  # of which the largest is sent
        known = np.where(news == news.max(), w, known)
    np.testing.assert_allclose(state.federation.params, w, rtol=1e-5)


# --- against rounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_full_buffer_of_equally_fast_clients_is_the_synchronous_algorithm(federation, name):
    sampler, algorithm = uniform(N, 3), make_algorithm(name)
    same = net.constant(N, seconds_per_step=1.0)
    # steps are the same for all, so that all are equally fast
    steps = list(islice(net.asynchronous(same, seed=9, concurrency=3, buffer=3, steps=2, downlink_bits=1e6,
                                         uplink_bits=1e6, draw=sampler.draw), 6))  # fmt: skip
    ids = np.stack([sampler.draw(9, number) for number in range(6)])
    assert [sorted(step.arrived.tolist()) for step in steps] == np.sort(ids).tolist()
    state, metrics = simulate(
        algorithm, federation.params, federation.population, steps, batch_size=BATCH, local_steps=2
    )
    run = fs.make_simulation(fs.make_round(algorithm, batch_size=BATCH, local_steps=2), max_rounds=6)
    plain, of_rounds = run(fs.init(algorithm, federation.params, N), federation.population, KEY, 6, jnp.asarray(ids))
    assert_close(state.federation, plain)
    assert_close(jax.tree.map(lambda m: m.sum(), metrics.loss_after), of_rounds.loss_after.sum(), rtol=1e-4)
    assert_equal(metrics.uplink_bits.sum(1), of_rounds.uplink_bits.sum(1))


def test_results_depend_on_neither_block_width_nor_versions_nor_cuts_nor_devices(federation):
    """SCAFFOLD remembers on clients, which must not see who trains when."""
    profiles = net.lognormal(N, 1)
    steps = list(islice(net.asynchronous(profiles, seed=1, concurrency=4, buffer=2, steps=np.array([3, 1, 2, 4, 2, 1]),
                                         downlink_bits=1e5, uplink_bits=1e5), 12))  # fmt: skip
    algorithm = make_algorithm("scaffold")
    given = (algorithm, federation.params, federation.population, steps)
    wide: dict[str, Any] = {"batch_size": BATCH, "local_steps": 4, "discount": polynomial(), "lanes": 3}
    state, metrics = simulate(*given, versions=1, **wide)
    assert int(metrics.steps.max()) == 4
    others: tuple[dict[str, Any], ...] = ({"versions": 8}, {"devices": tuple(jax.devices()), "versions": 3, "lanes": 1})
    for other in others:
        again, measured = simulate(*given, **(wide | other))
        assert_close(again.federation, state.federation)
        assert_equal((measured.ids, measured.steps), (metrics.ids, metrics.steps))
    cut, _ = simulate(*given, versions=8, cuts=(1, 6, 7), **wide)
    assert_equal(cut, simulate(*given, versions=8, **wide)[0])


def test_a_cap_on_local_steps_is_kept_and_none_means_absence(federation):
    algorithm = make_algorithm("scaffold")
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH, local_epochs=2))
    state, ids = fs.init(algorithm, federation.params, N), jnp.asarray([3, 0, 4])
    cohort = fs.select(federation.population, ids)
    capped, metrics = round_fn(state, cohort._replace(most_steps=jnp.asarray([2, 0, 100])), KEY)
    assert metrics.ids.tolist() == [3, -1, 4]
    assert metrics.steps.tolist() == [2, 0, 4]
    away = fs.select(federation.population, jnp.asarray([3, -1, 4]))
    unsampled, _ = round_fn(state, away._replace(most_steps=jnp.asarray([2, 5, 100])), KEY)
    assert_equal(capped, unsampled)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_discounts_and_refusals():
    stale = jnp.asarray([0.0, 3.0, 4.0, 6.0])
    np.testing.assert_allclose(polynomial(0.5)(stale), [1, 0.5, 5**-0.5, 7**-0.5], rtol=1e-6)
    np.testing.assert_allclose(hinge(10.0, 4.0)(stale), [1, 1, 1, 1 / 21], rtol=1e-6)
    assert undiscounted()(stale).tolist() == [1, 1, 1, 1]
    for make, words in (
        (lambda: polynomial(-1.0), ("exponent", "-1.0")),
        (lambda: hinge(0.0), ("slope", "0.0")),
        (lambda: hinge(1.0, -2.0), ("delay", "-2.0")),
        (lambda: make_buffered_round(make_algorithm("mime"), batch_size=1), ("algorithm", "twice")),
        (lambda: make_buffered_round(make_algorithm("fedavg"), batch_size=0), ("batch_size", "0")),
        (lambda: init_buffered(make_algorithm("fedavg"), {"w": jnp.zeros(1)}, 2, places=0), ("places", "0")),
    ):
        with pytest.raises(fs.InputError) as error:
            make()
        one_line(error, *words)


def test_too_few_places_are_named():
    steps = list(islice(net.asynchronous(PROFILES, seed=0, concurrency=3, buffer=2, steps=1, downlink_bits=0,
                                         uplink_bits=0), 4))  # fmt: skip
    with pytest.raises(fs.InputError) as error:
        tables(steps, versions=1, places=2)
    one_line(error, "places: 2", "step 1")


def test_compressed_and_remembered_messages_arrive_as_they_were_sent(federation):
    """Bits are those of the message when it was sent, whatever the transform remembers since."""
    algorithm = compressed_messages(fs.fedavg(loss_fn, client_tx=optax.sgd(1e-4)), lazy(0.9))
    steps = list(islice(net.asynchronous(net.lognormal(N, 1), seed=1, concurrency=4, buffer=2, steps=1,
                                         downlink_bits=0, uplink_bits=0), 10))  # fmt: skip
    _, metrics = simulate(algorithm, federation.params, federation.population, steps, versions=4, batch_size=max(SIZES))
    full = 1 + 32 * (5 * 3 + 3)
    seen = set()
    for ids, bits in zip(metrics.ids.tolist(), metrics.uplink_bits.tolist(), strict=True):
        for client, sent in zip(ids, bits, strict=True):
            assert sent == (1 if client in seen else full)
            seen.add(client)
