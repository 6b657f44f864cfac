"""What is done to messages: norms that hold for anything a client sends, bits counted by hand, and noise of its scale.

The noise is taken out of the whole compiled round: with a loss whose gradient is zero, what the model moves is noise.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FEATURES, SIZES, assert_close, assert_equal, loss_fn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest

import fedjax_sim as fs
from fedjax_sim.messages import add_laplace, chain, clip, dense_bits, error_feedback, identity, top_k
from fedjax_sim.privacy import GuaranteeWarning, bare_laplace, laplace

KEY = jax.random.key(4)
ENTRIES = 6
BOUND = 1 + 1e-5  # float32 rounding


def apply(transform, message):
    return transform.update(message, transform.init(message), KEY)[0]


def pair(values):
    """A message of two leaves."""
    return {"a": jnp.asarray(values[:2]), "b": jnp.asarray(values[2:]).reshape(2, 2)}


def flat(message):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(message)])


# --- clipping --------------------------------------------------------------------------------------------------------

ordinary = arrays(np.float32, ENTRIES, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
anything = arrays(np.float32, ENTRIES, elements=st.floats(width=32))
norms = st.sampled_from([1e-3, 1.0, 250.0])
orders = st.sampled_from([1, 2])


@jax.jit
def l1_clipped(message, clip_norm):
    return apply(clip(clip_norm, order=1), message)


@jax.jit
def l2_clipped(message, clip_norm):
    return apply(clip(clip_norm, order=2), message)


def clipped(values, clip_norm, order):
    return flat((l1_clipped if order == 1 else l2_clipped)(pair(values), clip_norm))


@settings(deadline=None, max_examples=150)
@given(ordinary, norms, orders)
def test_a_clipped_message_keeps_its_direction_and_meets_its_norm(values, clip_norm, order):
    before, after = flat(pair(values)), clipped(values, clip_norm, order)
    size = np.linalg.norm(before, order)
    assert np.linalg.norm(after, order) <= clip_norm * BOUND
    if size <= clip_norm * (1 - 1e-5):
        np.testing.assert_array_equal(after, before)
    else:
        np.testing.assert_allclose(after, before * min(1, clip_norm / size), rtol=1e-4, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(anything, norms, orders)
@example(np.array([1, 2, np.nan, 4, 5, 6], np.float32), 1.0, 1)
@example(np.full(ENTRIES, 3e38, np.float32), 1.0, 1)
@example(np.full(ENTRIES, 1e30, np.float32), 1.0, 2)
@example(np.array([0, 0, 0, 0, 0, -np.inf], np.float32), 1.0, 2)
def test_whatever_is_sent_the_norm_is_bounded(values, clip_norm, order):
    after = clipped(values, clip_norm, order)
    assert np.linalg.norm(after, order) <= clip_norm * BOUND
    if not np.isfinite(values).all():
        assert not after.any()


@settings(deadline=None, max_examples=150)
@given(anything, anything, norms)
@example(np.full(ENTRIES, np.nan, np.float32), np.full(ENTRIES, -1e37, np.float32), 1.0)
def test_any_two_clipped_messages_differ_by_at_most_twice_the_norm(one, other, clip_norm):
    distance = np.abs(clipped(one, clip_norm, 1) - clipped(other, clip_norm, 1)).sum()
    assert distance <= 2 * clip_norm * BOUND


def test_twice_the_norm_is_reached_by_opposite_messages():
    values = np.arange(1, ENTRIES + 1, dtype=np.float32)
    assert np.abs(clipped(values, 0.5, 1) - clipped(-values, 0.5, 1)).sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_half_precision_messages_keep_the_norm(order):
    message = {"a": jnp.asarray(np.random.default_rng(0).uniform(15_000, 30_000, 1000), jnp.float16)}
    after = flat(apply(clip(1.0, order=order), message))
    assert np.linalg.norm(after, order) <= 1


# --- sparsification and error feedback -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(1, 11)), st.sampled_from([0.01, 0.1, 0.26, 0.5, 1.0]))
def test_top_k_keeps_exactly_the_largest(magnitudes, fraction):
    values = np.array(magnitudes, np.float32) * np.where(np.arange(10) % 3, 1, -1)
    message = {"a": jnp.asarray(values[:4]), "b": jnp.asarray(values[4:]).reshape(3, 2)}
    sent = apply(top_k(fraction), message)
    kept = {0.01: 1, 0.1: 1, 0.26: 3, 0.5: 5, 1.0: 10}[fraction]
    np.testing.assert_array_equal(flat(sent), np.where(np.abs(values) > 10 - kept, values, 0))


@pytest.mark.parametrize(
    ("entries", "fraction", "bits"),
    [
        (100, 0.05, 5 * (32 + 7)),  # 5 values and 5 indices below 128
        (128, 1.0, 128 * (32 + 7)),
        (129, 1.0, 129 * (32 + 8)),
        (1000, 0.0001, 32 + 10),  # at least one
        (1, 1.0, 32 + 1),
    ],
)
def test_bits_on_the_wire_of_top_k(entries, fraction, bits):
    assert top_k(fraction).wire({"a": jnp.zeros(entries)}) == bits


def test_bits_on_the_wire_of_half_precision():
    message = {"a": jnp.zeros(40, jnp.bfloat16), "b": jnp.zeros((3, 8), jnp.bfloat16)}
    assert top_k(0.25).wire(message) == 16 * (16 + 6)
    assert dense_bits(message) == 64 * 16


def test_what_error_feedback_sent_and_kept_is_what_was_wanted():
    transform = error_feedback(top_k(0.3))
    rng = np.random.default_rng(0)
    messages = [pair(rng.standard_normal(ENTRIES).astype(np.float32)) for _ in range(8)]
    memory, sent = transform.init(messages[0]), []
    for message in messages:
        out, memory = transform.update(message, memory, KEY)
        assert np.count_nonzero(flat(out)) == 2
        sent.append(flat(out))
    kept = flat(memory[0])
    np.testing.assert_allclose(np.sum(sent, axis=0) + kept, sum(map(flat, messages)), atol=1e-5)
    assert kept.any()
    assert transform.wire(messages[0]) == top_k(0.3).wire(messages[0])


def test_error_feedback_reaches_the_optimum_that_bare_top_k_misses():
    """Four clients pull towards points of their own; with error feedback the model averages to the true optimum.

    The sum of what was sent is the sum of the gradients but for a bounded memory, so that the gradients, linear here,
    average to zero, and the models to the optimum.
    """
    rng = np.random.default_rng(2)
    curvature = rng.uniform(0.5, 2, (4, 5)).astype(np.float32)
    points = (3 * rng.standard_normal((4, 5))).astype(np.float32)
    optimum = (curvature * points).sum(0) / curvature.sum(0)
    examples = {"curvature": jnp.asarray(curvature), "point": jnp.asarray(points)}
    population = fs.Population(examples, jnp.arange(5, dtype=jnp.int32))

    def loss(w, batch, key):
        return 0.5 * jnp.sum(batch["curvature"] * jnp.square(w - batch["point"]), axis=1)

    def average_model(transform, rounds=4000):
        algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.05))._replace(transform=transform)
        round_fn = fs.make_round(algorithm, batch_size=1)

        @jax.jit
        def run(state):
            def body(_, carry):
                state, total = carry
                state, _ = round_fn(state, fs.select(population, jnp.arange(4)), KEY)
                return state, total + state.params

            return jax.lax.fori_loop(0, rounds, body, (state, jnp.zeros(5)))[1] / rounds

        return np.asarray(run(fs.init(algorithm, jnp.zeros(5), 4)))

    np.testing.assert_allclose(average_model(identity()), optimum, atol=0.02)
    np.testing.assert_allclose(average_model(error_feedback(top_k(0.2))), optimum, atol=0.02)
    assert np.abs(average_model(top_k(0.2)) - optimum).max() > 0.5


# --- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_applies_its_parts_in_order():
    message = pair(np.array([3, -4, 0.5, 0.25, 0, 0], np.float32))
    clip_first = apply(chain(clip(1.0, order=1), top_k(0.2)), message)
    sparse_first = apply(chain(top_k(0.2), clip(1.0, order=1)), message)
    np.testing.assert_allclose(flat(clip_first), [0, -4 / 7.75, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(flat(sparse_first), [0, -1, 0, 0, 0, 0], rtol=1e-6)
    assert_equal(apply(chain(), message), message)
    assert_equal(apply(identity(), message), message)


def test_a_chain_keeps_the_memory_of_each_part():
    transform = chain(clip(10.0), error_feedback(top_k(0.2)), error_feedback(top_k(1.0)))
    message = pair(np.arange(ENTRIES, dtype=np.float32))
    _, memory = transform.update(message, transform.init(message), KEY)
    assert jax.tree.structure(memory) == jax.tree.structure(transform.init(message))
    np.testing.assert_allclose(flat(memory[1][0]), flat(apply(clip(10.0), message)) * (np.arange(ENTRIES) < 5))
    assert not flat(memory[2][0]).any()


def test_the_size_on_the_wire_is_the_last_one_stated():
    message = {"a": jnp.zeros(100)}
    assert chain(clip(1.0), top_k(0.1), add_laplace(1.0)).wire(message) == 10 * 39
    assert chain(top_k(0.1), top_k(0.05)).wire(message) == 5 * 39
    assert chain(clip(1.0), add_laplace(1.0)).wire(message) is None
    assert chain().wire(message) is None


def test_the_parts_of_a_chain_draw_from_keys_of_their_own():
    message = {"a": jnp.zeros(COUNT)}
    twice = flat(apply(chain(add_laplace(1.0), add_laplace(1.0)), message))
    assert kstest(twice / 2, "laplace").pvalue < 1e-6  # one draw added twice would be Laplace of twice the scale


def test_the_round_reports_what_the_transform_sends(federation):
    algorithm = fs.fedavg(loss_fn, client_tx=optax.sgd(0.1))._replace(transform=chain(clip(1.0), top_k(0.25)))
    state = fs.init(algorithm, federation.params, len(SIZES))
    cohort = fs.select(federation.population, jnp.asarray([2, -1], jnp.int32))
    _, metrics = jax.jit(fs.make_round(algorithm, batch_size=4))(state, cohort, KEY)
    np.testing.assert_array_equal(metrics.uplink_bits, [4 * (32 + 5), 0])  # 4 of 18 entries
    np.testing.assert_array_equal(metrics.downlink_bits, [18 * 32, 0])


# --- Laplace noise through the whole round ---------------------------------------------------------------------------

SHAPES = {"a": (60_000,), "b": (200, 200)}
COUNT = 100_000
CLIP_NORM, EPSILON = 3.0, 0.5
SCALE = 2 * CLIP_NORM / EPSILON
WRONG = (2 / 3, 3 / 2)


def flat_loss(params, batch, key):
    """Of zero gradient: the message is zero before the noise."""
    return 0.0 * batch["inputs"][:, 0] + 0.0 * params["a"].sum()


def noisy_round(transform, federation, **options):
    """`move(state, ids) -> (new state, received minus new parameters)`."""
    algorithm = fs.fedavg(flat_loss, client_tx=optax.sgd(0.1), **options)._replace(transform=transform)
    start = fs.init(algorithm, {name: jnp.zeros(shape) for name, shape in SHAPES.items()}, len(SIZES))
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))

    def move(state, ids):
        new, _ = round_fn(state, fs.select(federation.population, jnp.asarray(ids, jnp.int32)), KEY)
        return new, flat(state.params) - flat(new.params)

    return start, move


@pytest.fixture(scope="module")
def private(federation):
    return noisy_round(laplace(epsilon=EPSILON, clip_norm=CLIP_NORM), federation)


def accepts(noise, scale):
    return kstest(noise, "laplace", args=(0, scale)).pvalue > 1e-3


def rejects(noise, scale):
    return kstest(noise, "laplace", args=(0, scale)).pvalue < 1e-12


def test_the_noise_of_a_round_is_laplace_of_its_scale(private):
    start, move = private
    _, noise = move(start, [0])
    assert noise.shape == (COUNT,)
    assert accepts(noise, SCALE)
    assert accepts(noise[: SHAPES["a"][0]], SCALE)
    assert accepts(noise[SHAPES["a"][0] :], SCALE)
    for factor in WRONG:
        assert rejects(noise, factor * SCALE)
    assert len(np.unique(noise)) > 0.9 * COUNT


def uncorrelated(one, other):
    assert np.mean(one == other) < 1e-3
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_noise_of_clients_rounds_and_leaves_are_different_draws(private):
    start, move = private
    after, first = move(start, [0])
    _, other_client = move(start, [3])
    _, later = move(after._replace(params=start.params), [0])
    uncorrelated(first, other_client)
    uncorrelated(first, later)
    leaf = SHAPES["a"][0]
    uncorrelated(first[: COUNT - leaf], first[leaf:])
    np.testing.assert_array_equal(move(start, [0])[1], first)


def test_each_client_of_a_cohort_adds_noise_of_its_own_and_absent_ones_none(private, federation):
    alone, move_alone = private
    start, move = noisy_round(laplace(epsilon=EPSILON, clip_norm=CLIP_NORM), federation, weighting="uniform")
    noises = [move_alone(alone, [i])[1] for i in (0, 3)]
    np.testing.assert_allclose(move(start, [3, -1, 0])[1], np.mean(noises, axis=0), atol=1e-4)
    assert not move(start, [-1, -1, -1])[1].any()


def test_a_message_is_clipped_before_its_noise(federation):
    """Not after: then its size would be bounded, and the noise no longer Laplace."""
    transform = laplace(epsilon=1e9, clip_norm=CLIP_NORM)  # noise of next to nothing
    algorithm = fs.fedavg(loss_fn, client_tx=optax.sgd(1e6))._replace(transform=transform)
    state = fs.init(algorithm, federation.params, len(SIZES))
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))
    new, metrics = round_fn(state, fs.select(federation.population, jnp.asarray([4], jnp.int32)), KEY)
    moved = flat(state.params) - flat(new.params)
    assert moved.size == (FEATURES + 1) * 3
    assert float(metrics.drift[0]) > 1e3
    np.testing.assert_allclose(np.abs(moved).sum(), CLIP_NORM, rtol=1e-4)


def test_a_client_that_sends_nan_leaves_the_model_finite(federation):
    def poisoned(params, batch, key):
        return flat_loss(params, batch, key) + jnp.nan * params["a"].sum()

    algorithm = fs.fedavg(poisoned, client_tx=optax.sgd(0.1))
    algorithm = algorithm._replace(transform=laplace(epsilon=EPSILON, clip_norm=CLIP_NORM))
    state = fs.init(algorithm, {"a": jnp.zeros(20_000)}, len(SIZES))
    cohort = fs.select(federation.population, jnp.asarray([1], jnp.int32))
    new, _ = jax.jit(fs.make_round(algorithm, batch_size=4))(state, cohort, KEY)
    assert accepts(flat(state.params) - flat(new.params), SCALE)


def test_bare_noise_warns_at_every_call_and_has_scale_one_over_epsilon(federation):
    for _ in range(3):
        with pytest.warns(GuaranteeWarning, match="guarantees no privacy") as caught:
            transform = bare_laplace(EPSILON)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert "\n" not in str(caught[0].message)
    start, move = noisy_round(transform, federation)
    _, noise = move(start, [0])
    assert accepts(noise, 1 / EPSILON)
    for factor in WRONG:
        assert rejects(noise, factor / EPSILON)


def test_the_calibrated_mechanism_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laplace(epsilon=1, clip_norm=1)


def test_noise_of_traced_scales_fits_vmap():
    message = {"a": jnp.zeros(50)}
    scales = jnp.asarray([0.5, 2.0])
    together = jax.vmap(lambda scale: apply(add_laplace(scale), message))(scales)
    assert_close(together["a"][1], 4 * together["a"][0])
