"""What every registered algorithm must keep, with no list of exceptions."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, assert_close, assert_equal, loss_fn, make_algorithm

import fedjax_sim as fs

N = len(SIZES)
COHORTS = jnp.asarray([[0, 3, 4], [5, 1, 3], [2, 4, 0], [3, 1, 2]], jnp.int32)
KEY = jax.random.key(7)


@pytest.fixture(scope="module", params=list(fs.ALGORITHMS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def setup(name, federation):
    """The jitted round, counting its traces, and the states and metrics of four rounds."""
    algorithm = make_algorithm(name)
    traces = []
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2)

    def counted(*args):
        traces.append(1)
        return round_fn(*args)

    jitted = jax.jit(counted)
    states, metrics = [fs.init(algorithm, federation.params, N)], []
    for ids in COHORTS:
        state, measured = jitted(states[-1], fs.select(federation.population, ids), KEY)
        states.append(state)
        metrics.append(measured)
    return algorithm, jitted, states, metrics, traces


def run(algorithm, federation, cohorts=COHORTS, **options):
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH, local_epochs=2, **options))
    state = fs.init(algorithm, federation.params, N)
    devices = options.get("devices", jax.devices()[:1])
    state, population, key = fs.replicate((state, federation.population, KEY), devices)
    for ids in cohorts[:-1]:
        state, _ = round_fn(state, fs.select(population, ids), key)
    return round_fn(state, fs.select(population, cohorts[-1]), key)


def test_training_changes_the_model_and_stays_finite(setup):
    _, _, states, metrics, _ = setup
    for before, after in pairwise(states):
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, before.params, after.params))
        assert 0 < float(moved) < 100
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((states, metrics)))


def test_structure_and_dtypes_are_kept_and_nothing_compiles_twice(setup):
    _, _, states, _, traces = setup
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in states]
    assert all(s == shapes[0] for s in shapes)
    assert len(traces) == 1


def test_jit_equals_no_jit(setup, federation):
    algorithm, _, states, metrics, _ = setup
    with jax.disable_jit():
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2)
        state, measured = round_fn(states[1], fs.select(federation.population, COHORTS[1]), KEY)
    assert_close((state, measured), (states[2], metrics[1]), atol=1e-5)


def test_fits_scan_over_rounds(setup, federation):
    algorithm, _, states, metrics, _ = setup
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2)

    @jax.jit
    def scanned(state):
        return jax.lax.scan(lambda s, ids: round_fn(s, fs.select(federation.population, ids), KEY), state, COHORTS)

    state, history = scanned(states[0])
    assert_close(state, states[-1])
    assert_close(jax.tree.map(lambda h: h[-1], history), metrics[-1])


def test_vmap_over_seeds_equals_a_loop(setup, federation):
    _, jitted, states, _, _ = setup
    keys = jax.random.split(jax.random.key(1), 3)
    cohort = fs.select(federation.population, COHORTS[0])
    together = jax.vmap(lambda key: jitted(states[1], cohort, key))(keys)
    one_by_one = [jitted(states[1], cohort, key) for key in keys]
    assert_close(together, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one))
    first, second = (np.asarray(r[0].params["kernel"]) for r in one_by_one[:2])
    assert not np.array_equal(first, second)


def test_vmap_over_traced_hyper_parameters_equals_a_loop(name, federation):
    def final(client_rate, server_rate):
        tx = optax.sgd(client_rate)
        algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=tx, server_tx=optax.sgd(server_rate))
        round_fn = fs.make_round(algorithm, batch_size=BATCH)
        state = fs.init(algorithm, federation.params, N)
        for ids in COHORTS[:2]:
            state, _ = round_fn(state, fs.select(federation.population, ids), KEY)
        return state.params

    rates = jnp.array([0.05, 0.2]), jnp.array([1.0, 0.5])
    together = jax.jit(jax.vmap(final))(*rates)
    alone = jax.jit(final)(0.2, 0.5)
    assert_close(jax.tree.map(lambda x: x[1], together), alone)


@pytest.mark.parametrize("options", [{"lanes": 2}, {"lanes": 3}, {"devices": 2}, {"lanes": 2, "devices": 2}])
def test_lanes_blocks_and_devices_change_nothing(setup, federation, options):
    algorithm, _, states, metrics, _ = setup
    if "devices" in options:
        options = options | {"devices": jax.devices()[: options["devices"]]}
        assert len(options["devices"]) == 2
    state, measured = run(algorithm, federation, **options)
    assert_close(state, states[-1], atol=2e-6)
    assert_close(measured, metrics[-1], atol=2e-6)


def test_cohort_order_changes_nothing(setup, federation):
    algorithm, _, states, metrics, _ = setup
    order = jnp.asarray([2, 0, 1])
    state, measured = run(algorithm, federation, COHORTS[:, order])
    assert_close(state, states[-1], atol=2e-6)
    for field in ("ids", "steps", "loss_before", "update_norm"):
        np.testing.assert_allclose(getattr(measured, field), getattr(metrics[-1], field)[order], atol=2e-6)


def test_empty_slots_and_absent_clients_equal_unsampled_ones(setup, federation):
    algorithm, _, states, metrics, _ = setup
    padded = jnp.concatenate([jnp.full((4, 1), -1, jnp.int32), COHORTS, jnp.full((4, 2), -1, jnp.int32)], axis=1)
    state, measured = run(algorithm, federation, padded, lanes=2)
    assert_close(state, states[-1], atol=2e-6)
    np.testing.assert_array_equal(measured.ids, [-1, *np.asarray(metrics[-1].ids), -1, -1])
    assert not np.asarray(measured.uplink_bits)[[0, 4, 5]].any()


def test_a_cohort_of_empty_slots_leaves_the_model_as_it_is(setup, federation):
    algorithm, _, states, _, _ = setup
    round_fn = fs.make_round(algorithm, batch_size=BATCH)
    cohort = fs.select(federation.population, jnp.full(3, -1, jnp.int32))
    state, measured = jax.jit(round_fn)(states[2], cohort, KEY)
    assert_equal(
        (state.params, state.clients, state.messages), (states[2].params, states[2].clients, states[2].messages)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(measured))


def test_only_the_cohorts_memory_changes(setup):
    _, _, states, metrics, _ = setup
    absent = [i for i in range(N) if i not in np.asarray(metrics[2].ids)]
    for before, after in zip(*[jax.tree.leaves((s.clients, s.messages)) for s in states[2:4]], strict=True):
        np.testing.assert_array_equal(np.asarray(before)[absent], np.asarray(after)[absent])
        assert not np.array_equal(before, after)


def test_resuming_from_every_round_is_bit_equal(setup, federation):
    _, jitted, states, _, _ = setup
    for start in range(1, len(COHORTS)):
        leaves, structure = jax.tree.flatten(states[start])
        state = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf).copy()) for leaf in leaves])
        for ids in COHORTS[start:]:
            state, _ = jitted(state, fs.select(federation.population, ids), KEY)
        assert_equal(state, states[-1])


def test_memory_may_live_on_the_host_with_only_the_cohorts_rows_on_the_device(setup, federation):
    algorithm, jitted, states, _, _ = setup
    state = fs.init(algorithm, federation.params, N, memory_rows=3)
    host = jax.tree.map(np.array, (states[0].clients, states[0].messages))
    for ids in np.asarray(COHORTS):
        clients, messages = jax.tree.map(lambda m, ids=ids: jnp.asarray(m[ids]), host)
        cohort = fs.select(federation.population, ids)._replace(rows=jnp.arange(3, dtype=jnp.int32))
        state, _ = jitted(state._replace(clients=clients, messages=messages), cohort, KEY)
        for kept, new in zip(jax.tree.leaves(host), jax.tree.leaves((state.clients, state.messages)), strict=True):
            kept[ids] = np.asarray(new)
    assert_equal((state.params, host), (states[-1].params, (states[-1].clients, states[-1].messages)))


def test_a_slice_of_the_population_gives_the_same_round(setup, federation):
    _, jitted, states, metrics, _ = setup
    ids = np.asarray(COHORTS[0])
    rows = [np.arange(federation.offsets[i], federation.offsets[i + 1]) for i in ids]
    sizes = np.array([len(r) for r in rows], np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    examples = jax.tree.map(lambda x: x[np.concatenate(rows)], federation.population.examples)
    cohort = fs.Cohort(*[jnp.asarray(a) for a in (ids, starts, sizes, ids)], examples=examples)
    assert_close(jitted(states[0], cohort, KEY), (states[1], metrics[0]))


def test_a_compiled_run_may_be_cut_anywhere(name, federation):
    algorithm = make_algorithm(name)
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=BATCH), cohort_size=3, max_rounds=4)
    whole, history = simulate(fs.init(algorithm, federation.params, N), federation.population, KEY, 4)
    state, _ = simulate(fs.init(algorithm, federation.params, N), federation.population, KEY, 1)
    state, rest = simulate(state, federation.population, KEY, 3)
    assert_equal(state, whole)
    assert_equal(jax.tree.map(lambda h: h[1:], history), jax.tree.map(lambda h: h[:3], rest))
    assert all(len(set(ids)) == 3 for ids in np.asarray(history.ids))
