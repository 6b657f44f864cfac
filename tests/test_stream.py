"""Populations that are streamed or computed train exactly as resident ones do."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BATCH, assert_close, assert_equal, make_algorithm, make_federation

import fedjax_sim as fs
from fedjax_sim.data import FederatedData, from_clients
from fedjax_sim.data.sampling import draw_rounds, poisson, uniform
from fedjax_sim.data.stream import gather, stream


@pytest.fixture(scope="module")
def data(federation) -> FederatedData:
    bounds = zip(federation.offsets[:-1], federation.offsets[1:], strict=True)
    return from_clients([{"inputs": federation.inputs[a:b], "labels": federation.labels[a:b]} for a, b in bounds])


def test_a_gathered_cohort_has_the_clients_own_rows(data):
    cohort = gather(data, np.array([4, -1, 0]), rows=20)
    np.testing.assert_array_equal(cohort.ids, [4, -1, 0])
    np.testing.assert_array_equal(cohort.sizes, [7, 0, 9])
    for slot, client in ((0, 4), (2, 0)):
        rows = slice(cohort.starts[slot], cohort.starts[slot] + cohort.sizes[slot])
        np.testing.assert_array_equal(cohort.examples["inputs"][rows], data.client(client)["inputs"])
    assert cohort.examples["inputs"].shape == (20, 5)
    assert not cohort.examples["inputs"][16:].any()
    with pytest.raises(fs.InputError, match=r"^rows: 15 are too few for a cohort of 16"):
        gather(data, np.array([4, 0]), rows=15)
    for wrong in (6, -2):
        with pytest.raises(fs.InputError, match=rf"^ids: client {wrong} does not exist"):
            gather(data, np.array([0, wrong]))


def test_ids_are_checked_wherever_they_are(federation, data):
    for ids, found in (([0, 6], "client 6 does not exist"), ([0.0], "dtype float"), ([-2], "client -2")):
        for make in (list, np.array, jnp.array):
            with pytest.raises(fs.InputError, match=rf"^ids: {found}"):
                fs.select(federation.population, make(ids))
        with pytest.raises(fs.InputError, match=rf"^ids: {found}"):
            gather(data, np.array(ids))
    with pytest.raises(fs.InputError, match=r"^ids: dtype float32"):
        jax.jit(lambda ids: fs.select(federation.population, ids))(jnp.array([0.5]))


def test_an_id_that_nobody_has_is_an_empty_slot_inside_jit(federation, data):
    """Where no value can be looked at; for stored and for computed examples."""
    computed = fs.Procedural(lambda key, id: ({"inputs": jnp.zeros((2, 5))}, jnp.int32(2)), 6, jax.random.key(0))
    for population in (federation.population, computed):
        cohort = jax.jit(lambda ids, p=population: fs.select(p, ids))(jnp.array([4, 6, -7, 2**31 - 1]))
        np.testing.assert_array_equal(cohort.ids, [4, -1, -1, -1])
        assert not np.asarray(cohort.sizes)[1:].any()


def test_a_round_of_nobody_changes_nothing(federation, data):
    algorithm = make_algorithm("fedavg")
    state = fs.init(algorithm, federation.params, 6)
    (cohort,) = stream(data, [np.array([-1, -1])])
    after, metrics = jax.jit(fs.make_round(algorithm, batch_size=BATCH))(state, cohort, jax.random.key(0))
    assert_equal(after.params, state.params)
    np.testing.assert_array_equal(metrics.ids, [-1, -1])


@pytest.mark.parametrize("name", [pytest.param("fedavg", marks=pytest.mark.slow), "scaffold"])
def test_streamed_rounds_equal_resident_rounds_bit_for_bit(federation, data, name):
    algorithm = make_algorithm(name)
    drawn = draw_rounds(uniform(6, 3), 0, 0, 4)
    key, round_fn = jax.random.key(0), jax.jit(fs.make_round(algorithm, batch_size=BATCH))
    a = b = fs.init(algorithm, federation.params, 6)
    for ids, cohort in zip(drawn, stream(data, drawn), strict=True):
        a, metrics = round_fn(a, fs.select(federation.population, ids), key)
        b, streamed = round_fn(b, cohort, key)
        assert_equal(metrics, streamed)
    assert_equal(a, b)


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_each_device_holds_the_examples_of_its_own_clients_alone(federation, data, lanes):
    devices, algorithm, key = jax.devices()[:2], make_algorithm("scaffold"), jax.random.key(0)
    drawn = np.array([[0, 3, 2, -1, 4], [5, 1, 0, 3, -1]])
    (slices,) = stream(data, [drawn], place=lambda tree: fs.replicate(tree, devices), devices=devices)
    sizes = np.asarray(slices.sizes)
    for round, homes in enumerate(np.asarray(slices.homes)):
        assert np.bincount(homes, minlength=2).max() <= 3
        assert abs(np.diff(np.bincount(homes, sizes[round], 2))[0]) <= sizes[round].max()
    held = slices.examples["labels"]
    assert [shard.data.shape[0] for shard in held.addressable_shards] == [1, 1]
    assert held.shape[1] < sizes.sum()
    simulate = fs.make_simulation(
        fs.make_round(algorithm, batch_size=BATCH, devices=devices, lanes=lanes), max_rounds=2
    )
    state, population = fs.replicate((fs.init(algorithm, federation.params, 6), federation.population), devices)
    own, metrics = simulate(jax.tree.map(jnp.copy, state), population, key, 2, drawn)
    streamed, found = simulate(state, slices, key, 2)
    assert_close(own, streamed)
    assert_close(metrics, found)


def test_cohorts_of_many_sizes_compile_seldom(federation, data):
    algorithm, traced = make_algorithm("fedavg"), []
    round_fn = fs.make_round(algorithm, batch_size=BATCH)

    @jax.jit
    def counted(state, cohort, key):
        traced.append(cohort.examples["labels"].shape)
        return round_fn(state, cohort, key)

    state, sampler = fs.init(algorithm, federation.params, 6), poisson(6, 0.5)
    for cohort in stream(data, draw_rounds(sampler, 0, 0, 30)):
        state, _ = counted(state, cohort, jax.random.key(0))
    assert len(traced) <= 4
    assert traced == sorted(traced)


def test_simulate_takes_cohorts_from_a_table(federation):
    algorithm, key = make_algorithm("fedavg"), jax.random.key(0)
    round_fn = fs.make_round(algorithm, batch_size=BATCH)
    state = fs.init(algorithm, federation.params, 6)
    drawn = draw_rounds(uniform(6, 3), 0, 0, 4)
    own, _ = fs.make_simulation(round_fn, cohort_size=3, max_rounds=4)(
        jax.tree.map(jnp.copy, state), federation.population, key, 4
    )
    simulate = fs.make_simulation(round_fn, max_rounds=4)
    tabled, metrics = simulate(jax.tree.map(jnp.copy, state), federation.population, key, 4, drawn)
    assert_equal(own, tabled)
    np.testing.assert_array_equal(metrics.ids, drawn)
    for make, cohorts in ((fs.make_simulation(round_fn, max_rounds=4), None),
                          (fs.make_simulation(round_fn, max_rounds=4, cohort_size=2), drawn)):  # fmt: skip
        with pytest.raises(fs.InputError, match=r"^cohorts: give either"):
            make(state, federation.population, key, 4, cohorts)
    for cohorts, first in ((drawn[:2], 0), (drawn, 2), (drawn[0], 0)):
        with pytest.raises(fs.InputError, match=r"^cohorts: shape .*; give client ids int32\[R, C\]"):
            simulate(state, federation.population, key, 3, cohorts, first)


def test_several_rounds_in_one_slice_equal_rounds_one_by_one(federation, data):
    algorithm, key = make_algorithm("scaffold"), jax.random.key(0)
    drawn = draw_rounds(uniform(6, 3), 0, 0, 6)
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=BATCH), max_rounds=4)
    state = fs.init(algorithm, federation.params, 6)
    a, _ = simulate(jax.tree.map(jnp.copy, state), federation.population, key, 4, drawn)
    a, metrics = simulate(a, federation.population, key, 2, drawn, 4)
    b, streamed = state, None
    for slices in stream(data, [drawn[:4], drawn[4:]]):
        for first in range(0, len(slices.ids), 2):
            b, streamed = simulate(b, slices, key, 2, first=first)
    assert_equal((a, metrics), (b, streamed))


def test_errors_and_early_ends_leave_no_thread(data):
    def broken():
        yield np.array([0, 1])
        raise RuntimeError("no more")

    cohorts = stream(data, broken())
    next(cohorts)
    with pytest.raises(RuntimeError, match="no more"):
        next(cohorts)
    with pytest.raises(fs.InputError, match=r"^ids: client 9 does not exist"):
        next(stream(data, [np.array([9])]))
    endless = stream(data, (np.array([i % 6]) for i in iter(int, 1)))
    next(endless)
    endless.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [thread for thread in threading.enumerate() if thread.name == "cohorts"]


# --- populations that are computed -----------------------------------------------------------------------------------


def make(key, client):
    size = client % 4  # a client may have none
    inputs = jax.random.normal(key, (4, 5))
    return {"inputs": inputs, "labels": (jnp.arange(4) + client) % 3}, size


def test_a_computed_population_trains_as_the_same_examples_stored():
    federation, key = make_federation(), jax.random.key(9)
    computed = fs.Procedural(make, 10, key)
    clients = []
    for i in range(10):
        examples, size = make(jax.random.fold_in(key, i), jnp.int32(i))
        clients.append(jax.tree.map(lambda x, n=int(size): np.asarray(x[:n]), examples))
    stored = from_clients(clients).population()
    algorithm = make_algorithm("scaffold")
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=3), cohort_size=6, max_rounds=3)
    state = fs.init(algorithm, federation.params, 10)
    results = [simulate(jax.tree.map(jnp.copy, state), p, jax.random.key(0), 3) for p in (computed, stored)]
    assert_equal(*results)
    assert int(results[0][1].examples.sum()) > 0


def test_a_billion_computed_clients_need_no_storage():
    federation, algorithm = make_federation(), make_algorithm("fedavg")
    population = fs.Procedural(make, 10**9, jax.random.key(1))
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=3), cohort_size=20, max_rounds=5)
    _, metrics = simulate(fs.init(algorithm, federation.params, 10**9), population, jax.random.key(0), 5)
    assert metrics.ids.max() > 10**8
    assert np.isfinite(metrics.loss_after).all()


def test_examples_that_do_not_fit_together_are_refused():
    def ragged(key, client):
        return {"inputs": jnp.zeros((4, 5)), "labels": jnp.zeros(3, jnp.int32)}, jnp.int32(2)

    def sizes(key, client):
        return {"inputs": jnp.zeros((4, 5))}, jnp.zeros(2, jnp.int32)

    for wrong in (ragged, sizes):
        with pytest.raises(
            fs.InputError, match=r"^make: arrays .* return arrays \[K, \.\.\.\] of one K, and int32\[\]$"
        ):
            fs.select(fs.Procedural(wrong, 10, jax.random.key(0)), [1, 2])
