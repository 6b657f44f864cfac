"""What every registered algorithm must keep, with no list of exceptions.

Compiling is what these tests spend their time on, so they share one compiled round wherever shapes allow.
"""

import inspect
import typing
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ACCELERATORS, BATCH, CLASSES, RATE, SIZES, assert_close, assert_equal, make_federation

import fedjax_sim as fs
from fedjax_sim.attacks import MESSAGE_ATTACKS, Attack, attacked

N = len(SIZES)
COHORTS = jnp.asarray([[0, 3, 4], [5, 1, 3], [2, 4, 0], [3, 1, 2]], jnp.int32)
KEY, OTHER_KEY = jax.random.key(7), jax.random.key(1)


def logits(params, inputs):
    """Linear regression to logits behind a layer that scales its inputs, as normalisation does: two leaves, for what is
    compiled grows with them."""
    return (inputs * params["layer0_norm"]["scale"]) @ params["layer1"]["kernel"]


def loss_fn(params, batch, key):
    """On inputs shifted by at most 0.1, so that seeds matter even where all examples are taken at once. The bits of a
    key are random already, and to draw from it would take a fifth of the compile time."""
    shifted = batch["inputs"] + 0.1 * 2.0**-32 * jax.random.key_data(key)[0].astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, shifted), batch["labels"])


def metric_fn(params, batch):
    clean = logits(params, batch["inputs"])
    return {"loss": optax.softmax_cross_entropy_with_integer_labels(clean, batch["labels"])}


def square_federation(**options):
    """As many features as classes, so that few shapes differ and little is compiled outside `jit`."""
    made = make_federation(**options)
    inputs = made.inputs[:, :CLASSES]
    params = {
        "layer0_norm": {"scale": jnp.linspace(0.8, 1.2, CLASSES)},
        "layer1": {"kernel": made.params["kernel"][:CLASSES]},
    }
    population = made.population._replace(examples=made.population.examples | {"inputs": jnp.asarray(inputs)})
    return made._replace(population=population, inputs=inputs, params=params)


@pytest.fixture(scope="module")
def federation():
    return square_federation()


def make_algorithm(name, **options):
    return fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **options)


def codes(made):
    """The code of a function and of those that it closes over, or of several: what makes a program but for numbers."""
    if isinstance(made, tuple):
        return tuple(map(codes, made))
    cells = getattr(made, "__closure__", None) or ()
    return (getattr(made, "__code__", None), *(codes(cell.cell_contents) for cell in cells))


def by_kind(kind):
    """All algorithms as parameters, of which the quick tests take the first of each `kind(name, algorithm)`."""
    seen, found = set(), []
    for name in fs.ALGORITHMS:
        of = kind(name, make_algorithm(name))
        found.append(pytest.param(name, marks=[pytest.mark.slow] if of in seen else []))
        seen.add(of)
    return pytest.mark.parametrize("name", found, scope="module")


every = by_kind(lambda name, algorithm: name)
# One for each way to train on a client. What rules make of a whole cohort's messages, on several devices too, is shown
# in tests/test_aggregators.py.
every_client = by_kind(lambda name, a: codes((a.client.run, a.survey)))


def traced_options(name):
    """Hyper-parameters that a factory lets be traced, by its annotations, with their defaults; those
    that are worked out unless given have none."""
    factory = fs.ALGORITHMS[name]
    hints = typing.get_type_hints(factory)
    parameters = inspect.signature(factory).parameters
    traced = [option for option in parameters if jax.Array in typing.get_args(hints[option])]
    return {option: default for option in traced if (default := parameters[option].default) is not None}


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


@every
def test_training_changes_the_model_and_stays_finite(setup):
    _, _, states, metrics, _ = setup
    for before, after in pairwise(states):
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, before.params, after.params))
        assert 0 < float(moved) < 100
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((states, metrics)))


@every
def test_a_state_may_be_donated(setup):
    """No two of its arrays share a buffer."""
    leaves = jax.tree.leaves(setup[2][0])
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@every
def test_structure_and_dtypes_are_kept_and_nothing_compiles_twice(setup):
    _, _, states, _, traces = setup
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in states]
    assert all(s == shapes[0] for s in shapes)
    assert len(traces) == 1


@every_client
def test_jit_equals_no_jit(setup, federation):
    algorithm, jitted, states, _, _ = setup
    cohort = fs.select(federation.population, jnp.asarray([-1, 5, -1], jnp.int32))
    plain = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2)(states[1], cohort, KEY)
    assert_close(plain, jitted(states[1], cohort, KEY), atol=1e-5)


ORDER = jnp.asarray([2, 0, 1])


@pytest.fixture(scope="module")
def together(name, federation):
    """One program and its arguments: vmapped over seeds and over all hyper-parameters, both learning rates and whatever
    else may be traced; scanned over rounds; two devices with two lanes each; cohorts in another order and with empty
    slots."""
    devices = jax.devices()[:2]
    assert len(devices) == 2
    empty = jnp.full((len(COHORTS), 2), -1, jnp.int32)
    cohorts = jnp.concatenate([empty[:, :1], COHORTS[:, ORDER], empty], axis=1)  # 6 slots for 8 lanes

    def rounds(population, key, client_rate, server_rate, options):
        if "server_tx" in inspect.signature(fs.ALGORITHMS[name]).parameters:
            options = options | {"server_tx": optax.sgd(server_rate)}
        algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(client_rate), **options)
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2, lanes=2, devices=devices)
        state = fs.init(algorithm, federation.params, N)
        return jax.lax.scan(lambda s, ids: round_fn(s, fs.select(population, ids), key), state, cohorts)

    keys = jnp.stack([KEY, OTHER_KEY, KEY])
    changed = {option: value / 2 if value else 0.1 for option, value in traced_options(name).items()}
    changed |= {"seed": 1} if "seed" in changed else {}
    options = {option: jnp.array([value, value, changed[option]]) for option, value in traced_options(name).items()}
    arguments = federation.population, keys, jnp.array([RATE, RATE, 0.1]), jnp.array([1.0, 1.0, 0.5]), options
    return jax.jit(jax.vmap(rounds, in_axes=(None, 0, 0, 0, 0))), fs.replicate(arguments, devices)


@every_client
def test_everything_at_once_equals_a_loop_of_rounds(together, setup, federation):
    _, jitted, states, metrics, _ = setup
    program, arguments = together
    found = program(*arguments)
    end, history = jax.tree.map(lambda x: x[0], found)
    assert_close(end, states[-1], atol=1e-5)
    for field, values in metrics[-1]._asdict().items():
        if field == "extra":
            continue
        expected = np.concatenate([values[:1] * 0, values[ORDER], values[:2] * 0]) if values.shape else values
        expected = np.array([-1, *expected[1:4], -1, -1]) if field == "ids" else expected
        np.testing.assert_allclose(getattr(history, field)[-1], expected, atol=1e-5, rtol=1e-5, err_msg=field)
    state = states[0]
    for ids in COHORTS:
        state, _ = jitted(state, fs.select(federation.population, ids), OTHER_KEY)
    assert_close(jax.tree.map(lambda x: x[1], found[0]), state, atol=1e-5)
    models = np.concatenate([np.asarray(x).reshape(3, -1) for x in jax.tree.leaves(found[0].params)], axis=1)
    assert np.isfinite(models).all()
    assert not np.allclose(models[0], models[2], atol=1e-7)  # other rates and options
    courses = np.concatenate([models, np.asarray(history.loss_after).reshape(3, -1)], axis=1)
    assert not np.allclose(courses[0], courses[1], atol=1e-7)  # another seed, which few signs may not show


@every
def test_everything_at_once_lowers_for_accelerators(together):
    """As it would be compiled there, but for devices: nothing in it is without a form for one of them."""
    program, arguments = together
    program.trace(*arguments).lower(lowering_platforms=ACCELERATORS)  # traced once for both tests


@every
def test_cohort_order_changes_nothing_on_one_device(setup, federation):
    _, jitted, states, metrics, _ = setup
    order = jnp.asarray([2, 0, 1])
    state, measured = jitted(states[-2], fs.select(federation.population, COHORTS[-1][order]), KEY)
    assert_close(state, states[-1], atol=2e-6)
    for field in ("ids", "steps", "loss_before", "update_norm", "cosine", "weight"):
        np.testing.assert_allclose(getattr(measured, field), getattr(metrics[-1], field)[order], atol=2e-6)


@every
def test_a_cohort_of_empty_slots_leaves_the_model_as_it_is(setup, federation):
    _, jitted, states, _, _ = setup
    cohort = fs.select(federation.population, jnp.full(3, -1, jnp.int32))
    state, measured = jitted(states[2], cohort, KEY)
    assert_equal(state._replace(round=states[2].round), states[2])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(measured))


@every
def test_only_the_cohorts_memory_changes(setup):
    _, _, states, metrics, _ = setup
    absent = [i for i in range(N) if i not in np.asarray(metrics[2].ids)]
    for before, after in zip(*[jax.tree.leaves((s.clients, s.messages)) for s in states[2:4]], strict=True):
        np.testing.assert_array_equal(np.asarray(before)[absent], np.asarray(after)[absent])
        assert not np.array_equal(before, after)


@every
def test_resuming_from_every_round_is_bit_equal(setup, federation):
    _, jitted, states, _, _ = setup
    for start in range(1, len(COHORTS)):
        leaves, structure = jax.tree.flatten(states[start])
        state = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf).copy()) for leaf in leaves])
        for ids in COHORTS[start:]:
            state, _ = jitted(state, fs.select(federation.population, ids), KEY)
        assert_equal(state, states[-1])


@every
def test_memory_may_live_elsewhere_with_the_cohorts_rows_alone_in_the_state(setup, federation):
    """The state has rows for anybody, here at the end of as many as before, so that nothing is compiled again."""
    algorithm, jitted, states, _, _ = setup
    fewer = jax.eval_shape(lambda: fs.init(algorithm, federation.params, N, memory_rows=3))
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves((fewer.clients, fewer.messages)))
    state, host = states[0], jax.tree.map(np.array, (states[0].clients, states[0].messages))
    for ids in np.asarray(COHORTS):
        clients, messages = jax.tree.map(lambda m, ids=ids: jnp.asarray(np.concatenate([m[:3] * 0, m[ids]])), host)
        cohort = fs.select(federation.population, ids)._replace(rows=jnp.arange(3, 6, dtype=jnp.int32))
        state, _ = jitted(state._replace(clients=clients, messages=messages), cohort, KEY)
        for kept, new in zip(jax.tree.leaves(host), jax.tree.leaves((state.clients, state.messages)), strict=True):
            kept[ids] = np.asarray(new)[3:]
    assert_equal((state.params, host), (states[-1].params, (states[-1].clients, states[-1].messages)))


@every
def test_a_slice_of_the_population_gives_the_same_round(setup, federation):
    """The cohort's rows first, one client after another; what follows is never looked at."""
    _, jitted, states, metrics, _ = setup
    ids = np.asarray(COHORTS[0])
    rows = [np.arange(federation.offsets[i], federation.offsets[i + 1]) for i in ids]
    sizes = np.array([len(r) for r in rows], np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    total = len(federation.labels)
    order = np.concatenate([*rows, np.zeros(total - sizes.sum(), int)])
    examples = {"inputs": federation.inputs[order], "labels": federation.labels[order]}
    examples["inputs"][sizes.sum() :] = np.nan
    cohort = fs.Cohort(
        *[jnp.asarray(a) for a in (ids, starts, sizes, ids)], examples=jax.tree.map(jnp.asarray, examples)
    )
    assert_close(jitted(states[0], cohort, KEY), (states[1], metrics[0]))


def scores_of(algorithm, state, federation):
    """A function of nothing, of what clients predict with after four rounds; and the test rows that it is told by."""
    cohort = fs.select(federation.population, jnp.asarray([3, -1, 0, 5]))
    tests = fs.select(square_federation(seed=1, sizes=(3, 0, 2, 7, 4, 0)).population, cohort.ids)
    evaluate = fs.make_client_evaluation(algorithm, metric_fn, batch_size=BATCH, lanes=2)
    return lambda: evaluate(state, cohort, tests, KEY), tests


@every
def test_what_a_client_predicts_with_has_one_value_per_client(setup, federation):
    algorithm, _, states, _, _ = setup
    scores = jax.eval_shape(scores_of(algorithm, states[-1], federation)[0])
    assert all(leaf.shape == (4,) for leaf in jax.tree.leaves(scores))


def ways_to_adapt():
    """One algorithm for each: most share theirs, and with it what is compiled."""
    found = {getattr(make_algorithm(name).personal, "__code__", None): name for name in fs.ALGORITHMS}
    return sorted(found.values())


@pytest.mark.parametrize("name", ways_to_adapt(), scope="module")
def test_what_a_client_predicts_with_is_evaluated(name, setup, federation):
    algorithm, _, states, _, _ = setup
    evaluate, tests = scores_of(algorithm, states[-1], federation)
    scores = jax.jit(evaluate)()
    np.testing.assert_array_equal(scores.examples, [7, 0, 3, 0])
    rows = {k: x[tests.starts[0] : tests.starts[0] + 7] for k, x in tests.examples.items()}
    np.testing.assert_allclose(scores.before["loss"][0], metric_fn(states[-1].params, rows)["loss"].mean(), rtol=1e-5)
    assert not np.asarray(scores.after["loss"])[[1, 3]].any()
    assert np.isfinite(scores.after["loss"]).all()
    assert not np.allclose(scores.before["loss"][0], scores.after["loss"][0])


# --- attacks on messages ----------------------------------------------------------------------------------------------

WICKED = np.array([True, False, False, True, False, False])


# Those whose messages are of one kind, and combined by one rule, differ in nothing that an attack meets.
every_kind = by_kind(
    lambda name, a: (
        codes((a.aggregator.receive, a.aggregator.add, a.aggregator.finish)),
        a.client.roles,
        a.survey is None,
    )
)


@pytest.fixture(scope="module")
def under_attack(name, federation):
    """`{attack: (the model before, state after two rounds, their metrics)}`, from one program."""
    forges = {"honest": lambda messages, *_: messages} | {a: make().forge for a, make in MESSAGE_ATTACKS.items()}

    @jax.jit
    def rounds(number):
        one_of = Attack(lambda *given: jax.lax.switch(number, list(forges.values()), *given), whole=True)
        algorithm = attacked(make_algorithm(name), one_of, WICKED)
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=2)
        cohort = fs.select(federation.population, np.arange(N))
        start = fs.init(algorithm, federation.params, N)
        return start.params, *jax.lax.scan(lambda state, _: round_fn(state, cohort, KEY), start, length=2)

    return {attack: rounds(i) for i, attack in enumerate(forges)}


@every_kind
def test_weights_are_shares_whatever_attackers_send(under_attack):
    robust = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(under_attack["nan_sender"][1].params))
    for attack, (_, _, metrics) in under_attack.items():
        if attack != "nan_sender" or robust:
            weight = np.asarray(metrics.weight)
            assert (weight >= 0).all(), attack
            np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5, err_msg=attack)
    assert robust == np.asarray(under_attack["nan_sender"][2].rejected)[0, WICKED].all()


@every_kind
def test_attacks_take_effect_where_nothing_holds_them_off(name, under_attack):
    """A rule that leaves out what is not finite is robust; the others are means, which every attacker moves."""
    if np.asarray(under_attack["nan_sender"][2].rejected).any():
        return
    _, honest, measured = under_attack["honest"]
    for attack in set(MESSAGE_ATTACKS) - {"nan_sender"}:
        _, state, metrics = under_attack[attack]
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, honest.params))
        assert float(moved) > 1e-4, attack
        shares, fair = (np.asarray(m.weight)[:, WICKED].sum(1) for m in (metrics, measured))
        assert (shares > 0.5 * fair).all(), attack  # no attack does the defender's work
