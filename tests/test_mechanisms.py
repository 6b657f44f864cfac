"""Every mechanism through the whole jitted round: the law of its noise, what one client can move, what it measures."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import RATE, assert_close, assert_equal, loss_fn, make_federation, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.attacks import MESSAGE_ATTACKS, Attack, attacked
from fedjax_sim.privacy import Adaptive, GuaranteeWarning, central, local, privatize, privatize_examples, secure
from fedjax_sim.privacy.accounting import toeplitz
from fedjax_sim.privacy.central import update_multiplier
from fedjax_sim.privacy.secure import FixedPoint, fixed_point, modular_sum

N, C, CLIP, Z = 6, 3, 0.5, 1.3
MODEL = {"a": jnp.zeros(1500), "b": jnp.zeros((4, 137))}
ENTRIES = 2048
KEY = jax.random.key(11)


def pull(params, batch, key):
    """A loss whose gradient is `-batch["inputs"]` in every entry: an update of known norm, and none of noise."""
    return -batch["inputs"][:, 0] * sum(leaf.sum() for leaf in jax.tree.leaves(params))


def population(pulls):
    """One example each."""
    inputs = jnp.asarray(pulls, jnp.float32)[:, None]
    return fs.Population({"inputs": inputs}, jnp.arange(len(pulls) + 1, dtype=jnp.int32))


STILL = population([0.0] * N)


def averaging(name="fedavg", loss=pull, rate=1.0, **options):
    return fs.ALGORITHMS[name](loss, client_tx=optax.sgd(rate), **options)


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def rounds(private, cohorts, people=STILL, key=KEY, params=MODEL, local_sampling="epochs"):
    """What each round added to the model, f64[rounds, entries], and the metrics."""
    state, moves, measured = fs.init(private, params, len(people.offsets) - 1), [], []
    round_fn = jax.jit(fs.make_round(private, batch_size=1, local_steps=1, local_sampling=local_sampling))
    for ids in cohorts:
        after, metrics = round_fn(state, fs.select(people, jnp.asarray(ids, jnp.int32)), key)
        moves.append(flat(after.params) - flat(state.params))
        measured.append(metrics)
        state = after
    return np.stack(moves), measured


NORMAL, LAPLACE = stats.norm, stats.laplace
SETTINGS = {"num_clients": N, "cohort_size": C, "clip_norm": CLIP, "noise_multiplier": Z, "rounds": 6}
FULL, ONE, NOBODY = [0, 1, 2], [4, -1, -1], [-1, -1, -1]
BANDS = toeplitz(6, 2)
# by name: the mechanism, a cohort, the law of its noise, and its scale
MECHANISMS = {
    "gaussian": ({"sampling": "poisson"}, FULL, NORMAL, Z * CLIP / C),
    "gaussian, cohorts of a fixed size": ({"sampling": "uniform"}, NOBODY, NORMAL, Z * CLIP / C),
    "gaussian, layer by layer": ({"per_leaf": True}, FULL, NORMAL, Z * CLIP / C),
    "gaussian, weights of size": ({"weight_cap": 4.0, "sizes": [1] * N}, FULL, NORMAL, Z * CLIP / C / 0.25),
    "gaussian, adaptive": (
        {"adaptive": Adaptive(bit_noise=2.0)}, FULL, NORMAL, (Z**-2 - 4.0**-2) ** -0.5 * CLIP / C),
    "laplace": ({"mechanism": "laplace"}, FULL, LAPLACE, Z * CLIP / C),
    "matrix": ({"mechanism": "matrix", "sampling": "round_robin", "bands": 2}, FULL, NORMAL, Z * CLIP / C / BANDS[0]),
    "discrete gaussian": (
        {"mechanism": "discrete_gaussian", "sampling": "uniform", "params": MODEL}, FULL, NORMAL, Z * CLIP / C),
    "local gaussian": (
        {"mechanism": "local_gaussian", "sampling": "uniform"}, FULL, NORMAL, Z * CLIP / np.sqrt(C)),
    "local gaussian of one": ({"mechanism": "local_gaussian"}, ONE, NORMAL, Z * CLIP),
    "local laplace of one": ({"mechanism": "local_laplace"}, ONE, LAPLACE, Z * CLIP),
}  # fmt: skip


@cache
def noise(name):
    """Of three rounds of nothing but noise, f64[3, entries]."""
    options, cohort, _, _ = MECHANISMS[name]
    return rounds(privatize(averaging(), **SETTINGS | options).algorithm, [cohort] * 3)[0]


def follows(sample, law, scale):
    """Accepted at its scale, and at no other near it."""
    assert stats.kstest(sample, law(scale=scale).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(sample, law(scale=wrong * scale).cdf).pvalue < 1e-6


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_noise_of_a_round_has_its_law_and_scale(name):
    _, _, law, scale = MECHANISMS[name]
    follows(noise(name)[0], law, scale)
    other = LAPLACE if law is NORMAL else NORMAL
    spread = np.std(noise(name)[0]) / other(scale=1).std()
    assert stats.kstest(noise(name)[0], other(scale=spread).cdf).pvalue < 1e-3  # nor is it another of that spread


def test_the_noise_of_examples_has_its_law_and_scale():
    private = privatize_examples(
        fs.fedavg, pull, client_tx=optax.sgd(0.7), sizes=[9] * N, cohort_size=C, batch_size=2, local_steps=1,
        clip_norm=CLIP, noise_multiplier=Z)  # fmt: skip
    people = fs.Population({"inputs": jnp.zeros((9 * N, 1))}, 9 * jnp.arange(N + 1, dtype=jnp.int32))
    round_fn = jax.jit(fs.make_round(private.algorithm, batch_size=2, local_steps=1, local_sampling="poisson"))
    state, _ = round_fn(fs.init(private.algorithm, MODEL, N), fs.select(people, jnp.asarray(ONE)), KEY)
    follows(flat(state.params), NORMAL, 0.7 * Z * CLIP / 2)


def test_bare_noise_has_scale_one_over_epsilon():
    with pytest.warns(GuaranteeWarning, match="guarantees no privacy"):
        private = privatize(averaging(), num_clients=N, cohort_size=C, clip_norm=CLIP, mechanism="laplace_bare",
                            epsilon=4.0, guarantee="none")  # fmt: skip
    follows(rounds(private.algorithm, [ONE])[0][0], LAPLACE, 1 / 4)


@pytest.mark.parametrize("name", MECHANISMS)
def test_no_two_draws_are_the_same(name):
    """Of rounds, of leaves, of the halves of a leaf."""
    draws = noise(name)
    parts = [draws[0], draws[1], draws[2], draws[0][1::2], draws[0][1500:]]
    for i, one in enumerate(parts):
        for other in parts[:i]:
            width = min(len(one), len(other))
            same = np.corrcoef(one[:width], other[:width])[0, 1]
            limit = 0.6 if name == "matrix" else 0.2  # what one round adds, the next takes back in part
            assert abs(same) < limit
            assert np.mean(one[:width] == other[:width]) < 0.01  # integers meet now and then


@pytest.mark.parametrize("mechanism", ["local_gaussian", "local_laplace", "discrete_gaussian"])
def test_no_two_clients_draw_the_same_and_one_draws_the_same_again(mechanism):
    options = {"sampling": "uniform", "params": MODEL, "dropout": 2} if mechanism == "discrete_gaussian" else {}
    private = privatize(averaging(), **SETTINGS | options, mechanism=mechanism).algorithm
    state = fs.init(private, MODEL, N)
    round_fn = jax.jit(fs.make_round(private, batch_size=1, local_steps=1))

    def alone(client, slot, key=KEY):
        ids = jnp.full(C, -1).at[slot].set(client)
        return flat(round_fn(state, fs.select(STILL, ids), key)[0].params)

    one = alone(2, 0)
    np.testing.assert_array_equal(one, alone(2, 1))  # wherever it sits
    for other in (alone(3, 0), alone(2, 0, jax.random.key(12))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_noise_of_matrices_takes_back_what_it_added():
    """Rounds `t` of `C^-1 z` for fresh `z`, and less in their sum than fresh draws of that sensitivity have."""
    inverse = np.linalg.inv(np.eye(6) * BANDS[0] + np.eye(6, k=-1) * BANDS[1]) * Z * CLIP / C
    options, _, _, _ = MECHANISMS["matrix"]
    draws = rounds(privatize(averaging(), **SETTINGS | options).algorithm, [FULL] * 6)[0]
    for t in range(6):
        follows(draws[t], NORMAL, np.linalg.norm(inverse[t]))
    follows(draws.sum(0), NORMAL, np.linalg.norm(inverse.sum(0)))
    assert np.linalg.norm(inverse.sum(0)) < 0.85 * np.sqrt(6) * Z * CLIP / C
    expected = inverse @ inverse.T
    np.testing.assert_allclose(np.cov(draws), expected, atol=5 * expected.max() / np.sqrt(ENTRIES))


# What one client can do. The same key draws the same noise, which the difference of two rounds therefore lacks.

FEDERATION = make_federation()
SIZES = np.diff(FEDERATION.offsets)
huge = st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -1e30, 1e10, 0.0, -1.0, 1e-30])


@cache
def released(mechanism, **options):
    """A function of a federation's inputs and of the cohort: the model after one private round."""
    made = {
        "num_clients": N,
        "cohort_size": C,
        "clip_norm": CLIP,
        "noise_multiplier": 0.1,
        "rounds": 4,
        "mechanism": mechanism,
    }
    if mechanism == "discrete_gaussian":
        made |= {"sampling": "uniform", "params": FEDERATION.params}
    elif mechanism == "matrix":
        made |= {"sampling": "round_robin"}
    private = privatize(averaging(loss=loss_fn, rate=1.0), **made | options).algorithm
    state = fs.init(private, FEDERATION.params, N)
    round_fn = fs.make_round(private, batch_size=4)

    @jax.jit
    def after(inputs, ids):
        people = FEDERATION.population._replace(examples=FEDERATION.population.examples | {"inputs": inputs})
        return round_fn(state, fs.select(people, ids), KEY)[0].params

    return after


def largest_step(entries=18):
    """Rounding of two messages, at most, of the discrete mechanism."""
    return 2 * fixed_point(CLIP, entries, C, 0.1 * CLIP / np.sqrt(C)).step * np.sqrt(entries)


@pytest.mark.parametrize(
    ("mechanism", "options", "order"),
    [
        ("gaussian", (), 2),
        ("gaussian", (("per_leaf", True),), 2),
        ("gaussian", (("weight_cap", 4.0), ("sizes", tuple(SIZES.tolist()))), 2),
        ("gaussian", (("adaptive", Adaptive()),), 2),
        ("laplace", (), 1),
        ("laplace", (("per_leaf", True),), 1),
        ("matrix", (), 2),
        ("discrete_gaussian", (), 2),
    ],
)
@settings(max_examples=25, deadline=None)
@given(
    client=st.integers(0, N - 1),
    values=st.lists(huge | st.floats(-50, 50, width=32), min_size=5, max_size=5),
    scale=st.sampled_from([1.0, 1e3, 1e20]),
)
def test_one_client_moves_the_sum_by_its_bound_at_most(mechanism, options, order, client, values, scale):
    after = released(mechanism, **dict(options))
    rows = slice(FEDERATION.offsets[client], FEDERATION.offsets[client + 1])
    inputs = FEDERATION.inputs.copy()
    with np.errstate(over="ignore"):
        inputs[rows] = np.asarray(values, np.float32) * np.float32(scale)
    others = [i for i in range(N) if i != client][: C - 1]
    ids = jnp.asarray([client, *others], jnp.int32)
    replaced = flat(after(inputs, ids)) - flat(after(FEDERATION.inputs, ids))
    removed = flat(after(inputs, ids)) - flat(after(inputs, ids.at[0].set(-1)))
    weights = np.minimum(SIZES / dict(options)["weight_cap"], 1) if "weight_cap" in dict(options) else np.ones(N)
    bound = CLIP / (C * weights.mean()) * (1 + 1e-5)
    if mechanism == "discrete_gaussian":
        spare = largest_step() / C
        assert np.linalg.norm(replaced) <= 2 * bound + spare
    else:
        assert np.linalg.norm(replaced, order) <= 2 * bound + 1e-6
        assert np.linalg.norm(removed, order) <= bound + 1e-6


def test_the_bound_of_one_client_is_reached():
    people = population([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    made = central(averaging(), clip_norm=CLIP, noise_multiplier=0.0, clients=C)
    np.testing.assert_allclose(np.linalg.norm(rounds(made, [[3, -1, -1]], people)[0]), CLIP / C, rtol=1e-4)


# What is measured.


def test_a_message_with_whole_numbers_is_refused_where_noise_would_have_to_hide_them():
    bound: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.0}
    for name in ("afl", "ifca"):
        with pytest.raises(fs.InputError) as error:
            fs.init(local(averaging(name), **bound), MODEL, N)
        one_line(error, "algorithm: ", "int32", "take another")
    plain = averaging()
    counting = plain._replace(client=plain.client._replace(like=lambda model: fs.Message(model, jnp.int32(0))))
    with pytest.raises(fs.InputError) as error:
        fs.init(central(counting, clients=3, **bound), MODEL, N)
    one_line(error, "algorithm: ", "int32", "take another")


@pytest.mark.parametrize("make", [central, local])
def test_clipped_clients_and_norms_are_as_by_hand(make):
    """Norms of the updates are 45 times the pulls."""
    people = population([0.001, 0.002, 0.5, 0.7, 0.003, 0.9])
    clients = {"clients": 4} if make is central else {}
    private = make(averaging(weighting="uniform"), clip_norm=1.0, noise_multiplier=0.01, **clients)
    moves, measured = rounds(private, [[0, 2, 3, 4], [0, 1, -1, -1]], people)
    first, second = (m.extra for m in measured)
    assert float(first["clipped"]) == 0.5
    assert float(second["clipped"]) == 0
    root = np.sqrt(ENTRIES)
    signals = np.array([(0.001 * root + 1 + 1 + 0.003 * root) / 4, (0.001 + 0.002) * root / (4 if clients else 2)])
    deviations = 0.01 * root / np.array([4, 4] if clients else [np.sqrt(4), np.sqrt(2)])
    for found, signal, deviation in zip((first, second), signals, deviations, strict=True):
        np.testing.assert_allclose(float(found["signal_norm"]), signal, rtol=1e-3 if clients else 0.1)
        np.testing.assert_allclose(float(found["noise_norm"]), deviation, rtol=0.1 if clients else 1e-4)
    np.testing.assert_allclose(np.linalg.norm(moves[0]), np.hypot(signals[0], float(first["noise_norm"])), rtol=0.05)


def test_the_clip_norm_follows_the_quantile_of_the_norms():
    """Against Andrew et al. 2021, algorithm 1, by hand, with next to no noise."""
    pulls = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
    adaptive = Adaptive(quantile=0.7, rate=0.3, bit_noise=1e-4)
    private = central(averaging(), clip_norm=0.1, noise_multiplier=1e-4, clients=4, adaptive=adaptive)
    rng = np.random.default_rng(0)
    cohorts = np.stack([rng.choice(N, 4, replace=False) for _ in range(30)])
    cohorts[3], cohorts[7, 1:] = -1, -1
    _, measured = rounds(private, cohorts, population(pulls))
    clip_norm, norms = 0.1, pulls * np.sqrt(ENTRIES)
    for ids, found in zip(cohorts, measured, strict=True):
        here = norms[ids[ids >= 0]]
        extra = {name: float(value) for name, value in found.extra.items()}
        np.testing.assert_allclose(extra["clip_norm"], clip_norm, rtol=1e-3)
        np.testing.assert_allclose(extra["clipped"], np.mean(here > clip_norm) if len(here) else 0, atol=1e-6)
        share = 0.5 + np.sum((here <= clip_norm) - 0.5) / 4
        clip_norm *= np.exp(-0.3 * (share - 0.7))
    assert np.quantile(norms, 0.5) < clip_norm < np.quantile(norms, 0.9)


@pytest.mark.parametrize(("z", "bits"), [(1.0, 5.0), (0.5, 0.3), (3.0, 2.0)])
def test_updates_and_bits_together_are_one_gaussian_mechanism(z, bits):
    """Their squared sensitivities over variances add up to that of the noise stated."""
    multiplier = float(update_multiplier(z, bits))
    np.testing.assert_allclose(multiplier**-2 + (0.5 / bits) ** 2, z**-2, rtol=1e-5)


def test_bits_with_too_little_noise_are_refused():
    with pytest.raises(fs.InputError) as error:
        central(averaging(), clip_norm=1.0, noise_multiplier=1.0, clients=4, adaptive=Adaptive(bit_noise=0.5))
    one_line(error, "bit_noise", "0.5")


# Without noise and without clipping, nothing is different.


@pytest.mark.parametrize(
    ("name", "mechanism"), [("scaffold", "central"), pytest.param("feddyn", "local", marks=pytest.mark.slow)]
)
def test_without_noise_or_clipping_it_is_the_algorithm_itself(name, mechanism):
    plain = averaging(name, loss_fn, RATE)
    generous: dict[str, Any] = {"clip_norm": 1e6, "noise_multiplier": 0.0}
    private = central(plain, **generous, clients=3) if mechanism == "central" else local(plain, **generous)
    if mechanism == "central":  # which weighs all alike
        plain = plain._replace(aggregator=plain.aggregator._replace(
            receive=lambda messages, ids, sizes, key: (messages, (sizes > 0).astype(jnp.float32))))  # fmt: skip
    states = []
    for algorithm in (plain, private):
        state = fs.init(algorithm, FEDERATION.params, N)
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))
        for ids in ([0, 3, 4], [5, 1, 3]):
            state, _ = round_fn(state, fs.select(FEDERATION.population, jnp.asarray(ids)), KEY)
        states.append((state.params, state.clients))
    assert_close(*states, atol=1e-5)


def test_noise_and_clip_norms_of_a_batch_equal_separate_rounds():
    cohort = fs.select(FEDERATION.population, jnp.asarray([0, 3, 4]))

    def after(clip_norm, noise_multiplier, quantile, make):
        private = make(averaging(loss=loss_fn, rate=RATE), clip_norm, noise_multiplier, quantile)
        round_fn = fs.make_round(private, batch_size=4)
        return round_fn(fs.init(private, FEDERATION.params, N), cohort, KEY)[0].params

    def adaptive(algorithm, clip_norm, noise_multiplier, quantile):
        return central(algorithm, clip_norm=clip_norm, noise_multiplier=noise_multiplier, clients=3,
                       adaptive=Adaptive(quantile))  # fmt: skip

    def locally(algorithm, clip_norm, noise_multiplier, quantile):
        return local(algorithm, clip_norm=clip_norm, noise_multiplier=noise_multiplier)

    values = jnp.array([0.1, 0.5, 2.0]), jnp.array([1.0, 0.3, 0.01]), jnp.array([0.2, 0.5, 0.9])
    for make in (adaptive, locally):
        one = jax.jit(partial(after, make=make))
        together = jax.jit(jax.vmap(one))(*values)
        for i in range(3):
            assert_close(jax.tree.map(lambda x, i=i: x[i], together), one(*(v[i] for v in values)), atol=1e-5)


@pytest.mark.parametrize("mechanism", [pytest.param("local_laplace", marks=pytest.mark.slow), "discrete_gaussian"])
def test_lanes_and_devices_change_nothing(mechanism):
    options = {"sampling": "uniform", "params": FEDERATION.params} if mechanism == "discrete_gaussian" else {}
    private = privatize(averaging(loss=loss_fn, rate=RATE), **SETTINGS | options, mechanism=mechanism).algorithm
    ends = []
    for lanes, devices in ((3, None), (2, jax.devices()[:2])):
        round_fn = jax.jit(fs.make_round(private, batch_size=4, lanes=lanes, devices=devices))
        given = fs.init(private, FEDERATION.params, N), fs.select(FEDERATION.population, jnp.asarray([0, 3, 4])), KEY
        ends.append(round_fn(*(fs.replicate(given, devices) if devices else given))[0].params)
    compare = assert_equal if mechanism == "discrete_gaussian" else partial(assert_close, atol=1e-5)  # integers add up
    compare(*ends)


# Secure aggregation.


def test_a_modular_sum_is_that_of_its_integers_and_all_or_nothing():
    form = FixedPoint(0.25, 8)
    aggregator = modular_sum(form, 4, 3)
    sent = np.random.default_rng(0).integers(-60, 60, (4, 50))  # sums of four leave 8 bits here and there
    for present in ([1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]):
        acc = aggregator.init(jnp.zeros(50))
        messages, weights = aggregator.receive(
            jnp.asarray(sent * 0.25, jnp.float32), jnp.arange(4), jnp.asarray(present), KEY)  # fmt: skip
        acc = aggregator.add(acc, messages[:2] * weights[:2, None], weights[:2])
        acc = aggregator.add(acc, messages[2:] * weights[2:, None], weights[2:])
        total = np.asarray(present) @ sent
        wrapped = (total + 128) % 256 - 128
        expected = wrapped * 0.25 / 4 if sum(present) >= 3 else np.zeros(50)
        np.testing.assert_array_equal(np.asarray(aggregator.finish(acc)), expected)
    assert np.abs(sent.sum(0)).max() > 128


def test_a_secure_sum_is_exactly_that_of_its_clients():
    """Each client's integers alone, then together: not a bit is lost, whatever the order."""
    people = population([0.001, 0.5, -0.02, 0.0, -3.0, 0.1])
    private = secure(averaging(), MODEL, clip_norm=CLIP, noise_multiplier=Z, clients=3, least_clients=1)
    round_fn = jax.jit(fs.make_round(private, batch_size=1, local_steps=1))
    state = fs.init(private, MODEL, N)

    def counts(ids):
        form = fixed_point(CLIP, ENTRIES, 3, Z * CLIP)
        params = round_fn(state, fs.select(people, jnp.asarray(ids)), KEY)[0].params
        return np.round(flat(params) * 3 / form.step).astype(int)

    alone = sum(counts([client, -1, -1]) for client in (1, 2, 4))
    np.testing.assert_array_equal(counts([1, 2, 4]), alone)
    np.testing.assert_array_equal(counts([4, 1, 2]), alone)


def test_rounding_is_unbiased():
    """What lies 0.4 steps above an integer, on average stays there."""
    form = fixed_point(CLIP, ENTRIES, 3, 1e-3 * CLIP)
    private = secure(averaging(), MODEL, clip_norm=CLIP, noise_multiplier=1e-3, clients=3)
    moves, _ = rounds(private, [FULL] * 5, population([2.4 * form.step] * N))
    deviation = np.std(moves) / np.sqrt(moves.size)
    assert abs(moves.mean() - 2.4 * form.step) < 4 * deviation < 0.2 * form.step


def test_too_few_arrivals_release_nothing_and_more_add_noise():
    private = privatize(averaging(), **SETTINGS, mechanism="discrete_gaussian", sampling="uniform", params=MODEL,
                        dropout=1).algorithm  # fmt: skip
    moves, measured = rounds(private, [[0, 1, 2], [0, -1, 2], [0, -1, -1]], population([1.0] * N))
    assert not moves[2].any()
    assert float(measured[2].extra["noise_norm"]) == 0
    mean = CLIP / np.sqrt(ENTRIES) / 3
    follows(moves[0] - 3 * mean, NORMAL, Z * CLIP / 3 * np.sqrt(3 / 2))
    follows(moves[1] - 2 * mean, NORMAL, Z * CLIP / 3)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"bits": 10}, ("bits", "10")),
        ({"bits": 40}, ("bits", "40")),
        ({"noise_multiplier": 1e7}, ("noise_multiplier", "float32")),
        ({"noise_multiplier": 0.0}, ("noise_multiplier", "0.0")),
        ({"clip_norm": -1.0}, ("clip_norm", "-1.0")),
        ({"least_clients": 4}, ("least_clients", "4")),
        ({"params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL)}, ("params", "bfloat16")),
    ],
)
def test_secure_sums_that_would_not_be_exact_are_refused(options, parts):
    given = {"params": MODEL, "clip_norm": CLIP, "noise_multiplier": Z, "clients": 3} | options
    with pytest.raises(fs.InputError) as error:
        secure(averaging(), given.pop("params"), **given)
    one_line(error, *parts)


UNBIDDEN = {
    "gaussian": {"sampling": "uniform"},
    "gaussian, layer by layer": {"sampling": "uniform", "per_leaf": True},
    "gaussian, adaptive": {"sampling": "uniform", "adaptive": Adaptive()},
    "gaussian, weights of size": {"sampling": "uniform", "weight_cap": 1.0, "sizes": [1] * N},
    "matrix": {"mechanism": "matrix", "sampling": "round_robin"},
}


@cache
def forged(name):
    """A function of a population and of an attack's number: how a round moves the model with next to no noise, and its
    metrics. One of three is the attacker."""
    discrete = {"mechanism": "discrete_gaussian", "sampling": "uniform", "params": MODEL, "dropout": 1}
    multiplier = 1e-6 if name in UNBIDDEN else 1e-3  # what integers allow
    made = SETTINGS | {"mechanism": "gaussian", "noise_multiplier": multiplier} | UNBIDDEN.get(name, discrete)
    private = privatize(averaging(), guarantee="none", **made).algorithm
    forges = [MESSAGE_ATTACKS["sign_flip"](1e6).forge, MESSAGE_ATTACKS["nan_sender"]().forge]

    @jax.jit
    def moved(people, number):
        one_of = Attack(lambda *given: jax.lax.switch(number, forges, *given))
        round_fn = fs.make_round(attacked(private, one_of, np.arange(N) == 1), batch_size=1, local_steps=1)
        after, metrics = round_fn(fs.init(private, MODEL, N), fs.select(people, jnp.asarray(FULL)), KEY)
        return after.params, metrics

    return moved


@pytest.mark.parametrize("name", UNBIDDEN)
def test_attackers_are_clipped_as_they_arrive(name):
    """One of three attackers moves the mean by a third of the clip norm, whatever it sends."""
    moved, measured = forged(name)(population([0.0, 0.5, 0.0, 0.0, 0.0, 0.0]), 0)
    np.testing.assert_allclose(np.linalg.norm(flat(moved)), CLIP / C, rtol=1e-3)
    assert (flat(moved) < 1e-6).all()
    assert float(measured.extra["clipped"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", [*UNBIDDEN, "discrete gaussian"])
def test_a_message_that_is_not_finite_is_left_out_and_counted(name):
    moved, measured = forged(name)(population([1.0] * N), 1)
    assert measured.rejected.tolist() == [False, True, False]
    assert float(measured.extra["clipped"]) == 1
    norm = np.linalg.norm(flat(moved))
    np.testing.assert_allclose(norm, 2 / 3 * CLIP, rtol=2e-2)  # over three, as if it had sent zeros


def test_discrete_noise_releases_nothing_where_a_share_is_missing():
    made = SETTINGS | {"mechanism": "discrete_gaussian", "sampling": "uniform", "params": MODEL}
    private = privatize(averaging(), **made).algorithm
    broken = attacked(private, MESSAGE_ATTACKS["nan_sender"](), np.arange(N) == 1)
    moves, measured = rounds(broken, [FULL, [0, 2, 3]], population([1.0] * N))
    assert not moves[0].any()
    assert moves[1].any()
    assert [int(m.rejected.sum()) for m in measured] == [1, 0]


@pytest.mark.parametrize("name", ["median", "mime", "krum"])
def test_algorithms_whose_sum_is_not_all_they_use_are_refused(name):
    with pytest.raises(fs.InputError) as error:
        central(averaging(name), clip_norm=1.0, noise_multiplier=1.0, clients=3)
    one_line(error, "algorithm", "fedavg")
