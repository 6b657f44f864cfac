"""Compressors: unbiased where they say so, contractions by their papers' factors, and bits counted by hand."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from conftest import SIZES, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fedjax_sim as fs
from fedjax_sim.aggregators import majority_vote
from fedjax_sim.core.message import Transform
from fedjax_sim.messages import (
    COMPRESSORS,
    drive,
    ef21,
    error_feedback,
    half,
    identity,
    power_sgd,
    qsgd,
    random_k,
    rotated,
    sign,
    ternary,
    top_k,
)
from fedjax_sim.messages.rotate import hadamard

KEY = jax.random.key(5)
DRAWS = 20_000
# rank 1, for the matrices here are small
CHOSEN = {
    name: make(**({"fraction": 0.25} if name.endswith("_k") else {"rank": 1} if name == "power_sgd" else {}))
    for name, make in COMPRESSORS.items()
}


def apply(transform, message, key=KEY):
    return transform.update(message, transform.init(message), key)[0]


def flat(message):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(message)])


def two_leaves():
    """21 float32 and 5 bfloat16 entries."""
    values = np.random.default_rng(0).standard_normal(26)
    return {"a": jnp.asarray(values[:21].reshape(3, 7), jnp.float32), "b": jnp.asarray(values[21:], jnp.bfloat16)}


# --- unbiased ones ---------------------------------------------------------------------------------------------------

LEAVES = {"a": jnp.asarray([1.5, -0.8, 0.9, 0.7, -2.0, 1.1]), "b": jnp.asarray([[3.0, -1.0], [0.5, -0.9]])}
UNBIASED = {
    "qsgd(1)": qsgd(1),
    "qsgd(4)": qsgd(4),
    "ternary": ternary(),
    "random_k": random_k(0.3),
    "rotated qsgd": rotated(qsgd(2)),
}


@cache
def draws(name):
    """What is sent of `LEAVES`, so many times: [DRAWS, 10]."""
    sent = jax.jit(jax.vmap(partial(apply, UNBIASED[name], LEAVES)))(jax.random.split(KEY, DRAWS))
    return np.concatenate([np.asarray(leaf, np.float64).reshape(DRAWS, -1) for leaf in jax.tree.leaves(sent)], axis=1)


def looks_unbiased(sent):
    wanted = flat(LEAVES)
    return (np.abs(sent.mean(0) - wanted) <= 5 * sent.std(0) / np.sqrt(DRAWS) + 1e-5 * np.abs(wanted)).all()


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_of_many_draws_is_the_message(name):
    assert looks_unbiased(draws(name))
    assert not looks_unbiased(1.1 * draws(name))


def test_variances_are_those_of_the_papers():
    sizes = {name: leaf.size for name, leaf in LEAVES.items()}
    squares = {name: float(jnp.square(leaf).sum()) for name, leaf in LEAVES.items()}

    def variance(name):
        return np.square(draws(name) - flat(LEAVES)).sum(1).mean()

    for s in (1, 4):
        assert variance(f"qsgd({s})") <= sum(min(d / s**2, d**0.5 / s) * squares[n] for n, d in sizes.items())
    terngrad = sum(float(jnp.abs(x).max() * jnp.abs(x).sum()) - squares[n] for n, x in LEAVES.items())
    assert variance("ternary") == pytest.approx(terngrad, rel=0.05)
    assert variance("random_k") == pytest.approx((10 / 3 - 1) * sum(squares.values()), rel=0.05)


@pytest.mark.parametrize(("name", "entries"), [("qsgd(4)", 9), ("ternary", 3)])
def test_as_many_values_are_sent_as_there_are_codes(name, entries):
    for part in (draws(name)[:, :6], draws(name)[:, 6:]):
        assert 3 <= len(np.unique(np.round(part / np.abs(part).max(), 5))) <= entries


# --- contractions ----------------------------------------------------------------------------------------------------

BIASED = {
    "top_k": top_k(0.25),
    "sign": sign(),
    "power_sgd": power_sgd(1),
    "drive": drive(unbiased=False),
    "float16": half(),
    "bfloat16": half("bfloat16"),
}
matrices = arrays(np.float32, (6, 4), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))


@jax.jit
def all_biased(matrix):
    return {name: apply(transform, matrix) for name, transform in BIASED.items()}


@jax.jit
def many_random(matrix):
    return jax.vmap(partial(apply, random_k(0.25, unbiased=False), matrix))(jax.random.split(KEY, 1000))


@settings(deadline=None, max_examples=60)
@given(matrices)
def test_contractions_contract_by_their_factors(matrix):
    exact = matrix.astype(np.float64)
    square, ones = np.square(exact).sum(), np.abs(exact).sum()
    sent = {name: np.asarray(value, np.float64) for name, value in all_biased(matrix).items()}
    error = {name: np.square(value - exact).sum() for name, value in sent.items()}
    slack = 1e-5 * square + 1e-30
    assert error["top_k"] <= (1 - 6 / 24) * square + slack
    assert error["sign"] == pytest.approx(square - ones**2 / 24, abs=slack)
    assert error["power_sgd"] <= square + slack
    assert error["drive"] <= square + slack
    assert (np.abs(sent["float16"] - exact) <= np.maximum(2.0**-11 * np.abs(exact), 2.0**-25)).all()
    assert (np.abs(sent["bfloat16"] - exact) <= 2.0**-8 * np.abs(exact)).all()


@settings(deadline=None, max_examples=25)
@given(matrices)
def test_unscaled_random_entries_contract_on_average(matrix):
    exact = matrix.astype(np.float64)
    errors = np.square(np.asarray(many_random(matrix), np.float64) - exact).sum((1, 2))
    bound = (1 - 6 / 24) * np.square(exact).sum()
    assert abs(errors.mean() - bound) <= 6 * errors.std() / np.sqrt(len(errors)) + 1e-5 * bound


def test_half_precision_is_that_of_numpy_but_for_overflow():
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(500) * 10.0 ** rng.uniform(-9, 4, 500)).astype(np.float32)
    for dtype in ("float16", "bfloat16"):
        sent = jax.jit(partial(apply, half(dtype)))(jnp.asarray(values))
        np.testing.assert_array_equal(sent, values.astype(jnp.dtype(dtype)).astype(np.float32))
    large = jnp.asarray([1e6, -3e38, np.inf, np.nan])
    np.testing.assert_array_equal(apply(half(), large), [65504, -65504, np.inf, np.nan])


# --- rotation --------------------------------------------------------------------------------------------------------


def test_the_rotation_is_orthonormal_and_undone():
    np.testing.assert_allclose(jax.jit(jax.vmap(hadamard))(jnp.eye(8)), scipy.linalg.hadamard(8) / 8**0.5, atol=1e-6)
    looked = []

    def look(message, memory, key):
        looked.append(message)
        return message, memory

    message = {"a": jnp.asarray(np.random.default_rng(2).standard_normal((3, 7)), jnp.float32), "b": jnp.ones(())}
    turned = rotated(identity()._replace(update=look))
    back, seen = jax.jit(lambda m: (apply(turned, m), looked[0]))(message)
    np.testing.assert_allclose(flat(back), flat(message), atol=1e-5)
    assert [leaf.shape for leaf in jax.tree.leaves(seen)] == [(32,), (1,)]
    assert np.linalg.norm(seen["a"]) == pytest.approx(np.linalg.norm(message["a"]), rel=1e-5)
    assert not np.isclose(np.asarray(seen["a"][:21]), flat(message)[:21]).all()


@cache
def driven(unbiased):
    return jax.jit(jax.vmap(lambda vector, key: apply(drive(unbiased), vector, key), (None, 0)))


def test_drive_errs_less_than_sign_and_is_unbiased_where_no_entry_dominates():
    rng = np.random.default_rng(3)
    even, skewed = rng.standard_normal(256), rng.lognormal(0, 2, 256)

    def sent(vector, unbiased):
        return np.asarray(driven(unbiased)(jnp.asarray(vector, jnp.float32), jax.random.split(KEY, 2000)), np.float64)

    def error(sent, vector):
        return np.square(sent - vector).sum(-1).mean() / np.square(vector).sum()

    plain = np.asarray(apply(sign(), jnp.asarray(skewed, jnp.float32)), np.float64)
    unbiased = sent(skewed, True)
    np.testing.assert_allclose(unbiased @ skewed, np.square(skewed).sum(), rtol=1e-4)
    assert error(sent(skewed, False), skewed) < error(unbiased, skewed) < 0.9 * error(plain, skewed)

    def bias(sent, vector):
        """In units of the length that the mean of unbiased draws would have by chance."""
        return np.linalg.norm(sent.mean(0) - vector) / np.sqrt(sent.var(0).sum() / len(sent))

    assert bias(sent(even, True), even) < 1.3  # of 256 entries the length strays by some 5%
    assert bias(1.1 * sent(even, True), even) > 3
    assert bias(unbiased, skewed) > 3  # as documented


# --- low rank --------------------------------------------------------------------------------------------------------


def test_power_sgd_finds_a_matrix_of_its_rank_and_improves_on_others():
    rng = np.random.default_rng(4)
    transform = power_sgd(2)
    step = jax.jit(lambda message, memory: transform.update(message, memory, KEY))

    def errors(matrix, memory, rounds):
        found = []
        for _ in range(rounds):
            sent, memory = step(jnp.asarray(matrix, jnp.float32).reshape(2, 4, 6), memory)
            found.append(np.linalg.norm(np.asarray(sent).reshape(8, 6) - matrix))
        return found, memory

    low = rng.standard_normal((8, 2)) @ rng.standard_normal((2, 6))
    high = rng.standard_normal((8, 6))
    best = np.sqrt(np.square(np.linalg.svd(high, compute_uv=False)[2:]).sum())
    start = transform.init(jnp.zeros((2, 4, 6)))
    fixed, memory = errors(high, start, 40)
    assert (np.diff(fixed) <= 1e-5).all()
    assert fixed[0] > 1.05 * best
    assert fixed[-1] == pytest.approx(best, rel=1e-2)
    for spoiled in (np.zeros((8, 6)), np.full((8, 6), np.nan)):
        _, memory = errors(spoiled, memory, 1)
    assert errors(low, memory, 3)[0][-1] < 1e-4


# --- feedback --------------------------------------------------------------------------------------------------------

CLIENTS, SHAPE, ROUNDS = 4, (4, 3), 2500
ROUGH = {
    "top_k": top_k(0.2),
    "random_k": random_k(0.2, unbiased=False),
    "sign": sign(),
    "power_sgd": power_sgd(1),
    "drive": drive(unbiased=False),
    "half": half("bfloat16"),
}


def descend(transform, curvature, points):
    """Gradient descent on mean_i |sqrt(c_i) (w - p_i)|^2 / 2: the last model, and the mean of all."""

    def body(carry, step):
        w, memory = carry
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(KEY, step)))(jnp.arange(CLIENTS))
        sent, memory = jax.vmap(transform.update)(curvature * (w - points), memory, keys)
        w = w - 0.05 * sent.mean(0)
        return (w, memory), w

    memory = jax.vmap(lambda _: transform.init(jnp.zeros(SHAPE)))(jnp.arange(CLIENTS))
    (w, _), models = jax.lax.scan(body, (jnp.zeros(SHAPE), memory), jnp.arange(ROUNDS))
    return w, models.mean(0)


@pytest.mark.parametrize("name", ROUGH)
def test_feedback_reaches_the_optimum_that_bare_compressors_miss(name):
    rng = np.random.default_rng(6)
    curvature = jnp.asarray(rng.uniform(0.5, 2, (CLIENTS, *SHAPE)), jnp.float32)
    points = jnp.asarray(3 * rng.standard_normal((CLIENTS, *SHAPE)), jnp.float32)
    optimum = (curvature * points).sum(0) / curvature.sum(0)
    bare = name in ("top_k", "sign", "power_sgd")  # the others err in all directions alike, or by little
    makes = (error_feedback, ef21, lambda c: c) if bare else (error_feedback, ef21)
    run = jax.jit(lambda c, p: [descend(make(ROUGH[name]), c, p) for make in makes])
    results = run(curvature, points)
    np.testing.assert_allclose(results[0][1], optimum, atol=0.05)
    np.testing.assert_allclose(results[1][0], optimum, atol=1e-4)
    if bare:
        assert np.abs(results[2][1] - optimum).max() > 0.2


# --- the wire, dtypes and the round ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "bits"),
    [
        (top_k(0.25), 6 * (32 + 5)),
        (random_k(0.25), 6 * 32 + 32),
        (qsgd(), 2 * 32 + 26 * 5),
        (qsgd(1), 2 * 32 + 26 * 2),
        (qsgd(4), 2 * 32 + 26 * 4),  # nine codes
        (ternary(), 2 * 32 + 8 * (5 + 1)),
        (sign(), 2 * 32 + 26),
        (half(), 26 * 16),
        (drive(), 2 * 32 + (32 + 8) + 32),
        (rotated(qsgd()), 2 * 32 + (32 + 8) * 5 + 32),
        (rotated(identity()), 32 * 32 + 8 * 16 + 32),
        (power_sgd(1), (3 + 7) * 32 + 5 * 16),
        (power_sgd(2), 2 * (3 + 7) * 32 + 5 * 16),
        (power_sgd(3), 21 * 32 + 5 * 16),  # its factors would be larger
        (ef21(sign()), 2 * 32 + 26),
    ],
)
def test_bits_on_the_wire_of_two_leaves(transform: Transform, bits):
    message = two_leaves()
    assert transform.wire(message) == bits
    assert transform.wire(message | {"c": jnp.zeros((0, 4))}) == bits


def test_dtypes_zeros_and_nan_are_kept():
    message = two_leaves() | {"c": jnp.zeros((0, 4))}
    zeros = jax.tree.map(jnp.zeros_like, message)
    spoiled = message | {"a": jnp.full((3, 7), jnp.nan)}
    every = jax.jit(lambda m: {name: apply(transform, m) for name, transform in CHOSEN.items()})
    sent, nothing, nan = every(message), every(zeros), every(spoiled)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]  # noqa: E731
    for name in CHOSEN:
        assert kinds(sent[name]) == kinds(message)
        assert np.isfinite(flat(sent[name])).all()
        assert not flat(nothing[name]).any()
        assert np.isnan(np.asarray(nan[name]["a"])).any()


def linear_loss(params, batch, key):
    return (batch["inputs"] @ params["kernel"] + params["bias"]).sum(1)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_round_reports_what_is_sent(name, federation):
    """And moves the memory of those alone that take part: EF21's, of which all start with what the compressor sends."""
    transform = ef21(CHOSEN[name]) if name == "top_k" else CHOSEN[name]
    algorithm = fs.fedavg(linear_loss, client_tx=optax.sgd(0.1))._replace(transform=transform)
    state = fs.init(algorithm, federation.params, len(SIZES))
    cohort = fs.select(federation.population, jnp.asarray([2, -1, 0], jnp.int32))
    after, metrics = jax.jit(fs.make_round(algorithm, batch_size=4, local_steps=1))(state, cohort, KEY)
    bits = CHOSEN[name].wire(federation.params)
    assert bits is not None
    assert bits < 18 * 32
    np.testing.assert_array_equal(metrics.uplink_bits, [bits, 0, bits])
    assert np.abs(flat(after.params) - flat(state.params)).max() > 1e-3
    assert np.isfinite(flat(after.params)).all()
    if name == "top_k":
        known = np.concatenate([np.asarray(x).reshape(len(SIZES), -1) for x in jax.tree.leaves(after.messages)], axis=1)
        np.testing.assert_array_equal(np.count_nonzero(known, axis=1), [4, 0, 4, 0, 0, 0])
        np.testing.assert_allclose(np.linalg.norm(known[[2, 0]], axis=1), np.asarray(metrics.update_norm)[[0, 2]], 1e-5)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: qsgd(0), ("levels", "0")),
        (lambda: qsgd(2.5), ("levels", "2.5")),  # type: ignore[arg-type]
        (lambda: half("float8"), ("dtype", "float8", "bfloat16")),
        (lambda: random_k(1.5), ("fraction", "1.5")),
        (lambda: random_k(0), ("fraction", "0")),
        (lambda: power_sgd(0), ("rank", "0")),
    ],
)
def test_bad_settings_are_turned_down_in_one_line(make, parts):
    with pytest.raises(fs.InputError) as error:
        make()
    one_line(error, *parts)


# --- the vote --------------------------------------------------------------------------------------------------------


def test_the_majority_of_signs_of_the_finite_messages():
    rng = np.random.default_rng(7)
    messages = rng.integers(-2, 3, (9, 30)).astype(np.float32)
    messages[3, 0], messages[8] = np.nan, 100
    sizes = np.array([1, 900, 1, 1, 1, 1, 1, 1, 0], np.float32)
    rule = majority_vote()
    message = (jnp.asarray(messages[:, :20]).reshape(9, 4, 5), jnp.asarray(messages[:, 20:], jnp.bfloat16))

    @jax.jit
    def vote(message):
        received, weights = rule.receive(message, jnp.arange(9), jnp.asarray(sizes), KEY)
        acc = rule.init(jax.tree.map(lambda m: m[0], message))
        for block in (slice(0, 5), slice(5, 9)):
            seen = jax.tree.map(lambda m, block=block: jnp.nan_to_num(m[block]), received)
            acc = rule.add(acc, seen, weights[block])
        return rule.finish(acc), weights

    result, weights = vote(message)
    np.testing.assert_array_equal(weights, [1, 1, 1, 0, 1, 1, 1, 1, 0])
    assert [(x.shape, x.dtype) for x in result] == [((4, 5), jnp.float32), ((10,), jnp.bfloat16)]
    np.testing.assert_array_equal(flat(result), np.sign(np.sign(messages[[0, 1, 2, 4, 5, 6, 7]]).sum(0)))
    assert set(flat(result)) == {-1, 0, 1}
