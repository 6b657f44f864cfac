"""The round trains any loss over any pytree, and the models by name compute what they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, FEATURES, SIZES, assert_close, assert_equal
from flax import linen, nnx

import fedjax_sim as fs
from fedjax_sim.models import MODELS, Conv, build_model, from_logits, max_pool

KEY = jax.random.key(9)
EVERYONE = jnp.arange(len(SIZES), dtype=jnp.int32)


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


def train(algorithm, params, population, rounds=8, cohort=EVERYONE, **options: Any):
    """The states before and after each round, and the metrics of each; a batch holds a whole client, hence the loss of
    the first local step is that of all its examples under the received model."""
    num_clients = population.offsets.shape[0] - 1
    round_fn = jax.jit(fs.make_round(algorithm, **{"batch_size": max(SIZES), "local_epochs": 4, **options}))
    states, metrics = [fs.init(algorithm, params, num_clients)], []
    for _ in range(rounds):
        state, measured = round_fn(states[-1], fs.select(population, cohort), KEY)
        states.append(state)
        metrics.append(measured)
    return states, metrics


def assert_learns(states, metrics, share=0.9):
    first, last = (float(m.examples @ m.loss_before) / int(m.examples.sum()) for m in (metrics[0], metrics[-1]))
    assert last < share * first
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((states, metrics)))


# --- any loss over any pytree ----------------------------------------------------------------------------------------


def test_raw_jax_over_a_tuple(federation):
    def loss(params, batch, key):
        (first, bias), [second] = params
        return cross_entropy(jnp.tanh(batch["inputs"] @ first + bias) @ second, batch)

    rng = np.random.default_rng(0)
    params = (
        (jnp.asarray(rng.standard_normal((FEATURES, 8)), jnp.float32), jnp.zeros(8)),
        [jnp.asarray(rng.standard_normal((8, CLASSES)), jnp.float32)],
    )
    assert_learns(*train(fs.fedavg(loss, client_tx=optax.sgd(0.3)), params, federation.population))


class Perceptron(nnx.Module):
    def __init__(self, *, rngs, rate=0.0, normalise=False):
        self.first = nnx.Linear(FEATURES, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs) if normalise else lambda x: x
        self.dropout = nnx.Dropout(rate)
        self.second = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(x))), rngs=rngs))


def test_flax_nnx(federation):
    graph, params = nnx.split(Perceptron(rngs=nnx.Rngs(0)))

    def loss(params, batch, key):
        return cross_entropy(nnx.merge(graph, params)(batch["inputs"]), batch)

    states, metrics = train(fs.fedavg(loss, client_tx=optax.sgd(0.3)), params, federation.population)
    assert_learns(states, metrics)
    logits = nnx.merge(graph, states[-1].params)(jnp.asarray(federation.inputs))  # what comes out is a model again
    assert logits.shape == (sum(SIZES), CLASSES)


def test_flax_linen(federation):
    model = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(CLASSES)])
    params = model.init(KEY, jnp.zeros((1, FEATURES)))

    def loss(params, batch, key):
        return cross_entropy(jnp.asarray(model.apply(params, batch["inputs"])), batch)

    assert_learns(*train(fs.fedavg(loss, client_tx=optax.sgd(0.3)), params, federation.population))


# --- keys: dropout ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_dropout():
    """Two clients of the same eight examples, and the jitted round of a model with dropout and of one without."""
    rng = np.random.default_rng(3)
    inputs, labels = rng.standard_normal((8, FEATURES)), rng.integers(0, CLASSES, 8)
    examples = {
        "inputs": jnp.asarray(np.tile(inputs, (2, 1)), jnp.float32),
        "labels": jnp.asarray(np.tile(labels, 2), jnp.int32),
    }
    population = fs.Population(examples, jnp.asarray([0, 8, 16], jnp.int32))

    def prepare(rate):
        graph, params = nnx.split(Perceptron(rngs=nnx.Rngs(0), rate=rate), nnx.Param)

        def loss(params, batch, key):
            return cross_entropy(nnx.merge(graph, params)(batch["inputs"], nnx.Rngs(dropout=key)), batch)

        algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.3))
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=8))  # the whole client: no order of examples to differ

        def run(state, key):
            return round_fn(state, fs.select(population, jnp.arange(2)), key)

        return fs.init(algorithm, params, 2), run

    return prepare(0.5), prepare(0.0)


def test_the_same_key_gives_the_same_masks_and_another_key_others(with_dropout):
    (state, run), _ = with_dropout
    once, again, other = run(state, KEY), run(state, KEY), run(state, jax.random.key(10))
    assert_equal(once, again)
    assert not np.allclose(once[1].loss_before, other[1].loss_before, atol=1e-4)


def test_two_rounds_draw_other_masks(with_dropout):
    (state, run), (plain, run_plain) = with_dropout
    later = state._replace(round=state.round + 1)
    assert not np.allclose(run(state, KEY)[1].loss_before, run(later, KEY)[1].loss_before, atol=1e-4)
    later = plain._replace(round=plain.round + 1)
    np.testing.assert_allclose(run_plain(plain, KEY)[1].loss_before, run_plain(later, KEY)[1].loss_before, rtol=1e-5)


def test_clients_draw_masks_of_their_own(with_dropout):
    (state, run), (plain, run_plain) = with_dropout
    losses = np.asarray(run(state, KEY)[1].loss_before)
    assert abs(losses[0] - losses[1]) > 1e-4
    losses = np.asarray(run_plain(plain, KEY)[1].loss_before)  # without dropout the two are the same client
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_local_steps_draw_masks_of_their_own():
    """The learning rate is zero and the example is one: only the mask can differ between the first and last step."""

    def loss(params, batch, key):
        return jax.random.uniform(key, batch["x"].shape) + 0 * params

    population = fs.Population({"x": jnp.ones(1)}, jnp.asarray([0, 1], jnp.int32))
    algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.0))
    options = {"batch_size": 1, "local_steps": 2}
    _, metrics = train(algorithm, jnp.zeros(()), population, 1, jnp.zeros(1, jnp.int32), **options)
    assert metrics[0].loss_before != metrics[0].loss_after


# --- statistics: batch normalisation ---------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param("fedavg", marks=SLOW), pytest.param("fedavg_topk", marks=SLOW), "scaffold", "ditto"]
)
def test_batch_norm_statistics_move_and_the_model_learns(federation, name):
    graph, params, statistics = nnx.split(Perceptron(rngs=nnx.Rngs(0), normalise=True), nnx.Param, nnx.BatchStat)

    def loss(variables, batch, key):
        model = nnx.merge(graph, variables.params, variables.statistics, copy=True)  # for it is mutated
        losses = cross_entropy(model(batch["inputs"]), batch)
        return losses, nnx.split(model, nnx.Param, nnx.BatchStat)[2]

    options = {"fraction": 0.5} if name == "fedavg_topk" else {}
    algorithm = fs.ALGORITHMS[name](loss, client_tx=optax.sgd(0.2), **options)
    states, metrics = train(algorithm, fs.Variables(params, statistics), federation.population)
    assert_learns(states, metrics)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[-1].params.statistics, states[0].params.statistics)
    assert all(m > 0.01 for m in jax.tree.leaves(moved))


MOMENTUM = 0.9


def centred_loss(variables, batch, key):
    """Least squares around a running mean, whose gradient no optimizer may take."""
    mean = batch["x"].mean(0)
    losses = jnp.square((batch["x"] - variables.statistics["mean"]) @ variables.params["w"] - batch["y"])
    return losses, {"mean": MOMENTUM * variables.statistics["mean"] + (1 - MOMENTUM) * mean}


@pytest.fixture(scope="module")
def uneven():
    """Two clients of 4 and 8 examples, batches of 8: the smaller client's batch holds each of its examples twice."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((12, 3)) + 2).astype(np.float32)
    y = rng.standard_normal(12).astype(np.float32)
    return x, fs.Population({"x": jnp.asarray(x), "y": jnp.asarray(y)}, jnp.asarray([0, 4, 12], jnp.int32))


@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        ("fedavg", "examples"),
        pytest.param("fedavg_topk", "examples", marks=SLOW),
        ("scaffold", "examples"),
        ("fedavg", "uniform"),
    ],
)
def test_the_server_averages_statistics_like_parameters_whatever_its_optimizer(uneven, name, weighting):
    x, population = uneven
    options = {"fraction": 1.0} if name == "fedavg_topk" else {}
    algorithm = fs.ALGORITHMS[name](
        centred_loss,
        client_tx=optax.adam(0.1),
        server_tx=optax.sgd(0.25, momentum=0.9),
        weighting=weighting,
        **options,
    )
    start = fs.Variables({"w": jnp.ones(3)}, {"mean": jnp.asarray([1.0, 0.0, -1.0])})
    states, _ = train(algorithm, start, population, 3, jnp.arange(2), batch_size=8, local_epochs=1)
    weights = np.array([4, 8]) / 12 if weighting == "examples" else np.array([0.5, 0.5])
    expected = np.asarray(start.statistics["mean"])
    for state in states[1:]:
        own = [MOMENTUM * expected + (1 - MOMENTUM) * rows.mean(0) for rows in (x[:4], x[4:])]
        expected = weights @ np.stack(own)
        np.testing.assert_allclose(state.params.statistics["mean"], expected, atol=1e-5)


@pytest.mark.parametrize("name", list(fs.ALGORITHMS))
def test_every_algorithm_takes_models_with_statistics(uneven, name):
    _, population = uneven
    algorithm = fs.ALGORITHMS[name](
        lambda v, batch, key: centred_loss(v._replace(params=v.params["layer1"]), batch, key), client_tx=optax.sgd(0.1)
    )
    start = fs.Variables({"layer0_norm": jnp.ones(2), "layer1": {"w": jnp.ones(3)}}, {"mean": jnp.zeros(3)})
    state = fs.init(algorithm, start, 2)
    round_fn = fs.make_round(algorithm, batch_size=8)
    after, _ = jax.eval_shape(round_fn, state, fs.select(population, jnp.arange(2)), jax.random.key(0))
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
    assert kinds[0] == kinds[1]


def test_several_steps_with_frozen_parameters_leave_the_clients_running_mean(uneven):
    x, population = uneven
    algorithm = fs.fedavg(centred_loss, client_tx=optax.sgd(0.0))
    start = fs.Variables({"w": jnp.ones(3)}, {"mean": jnp.zeros(3)})
    ids = jnp.asarray([1, -1], jnp.int32)
    states, metrics = train(algorithm, start, population, 1, ids, batch_size=8, local_epochs=3)
    np.testing.assert_allclose(states[1].params.statistics["mean"], (1 - MOMENTUM**3) * x[4:].mean(0), rtol=1e-5)
    assert_equal(states[1].params.params, start.params)
    np.testing.assert_array_equal(metrics[0].update_norm, 0)  # statistics are no update


# --- the models by name ----------------------------------------------------------------------------------------------


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def test_numbers_of_parameters():
    assert parameters(build_model("cnn", (28, 28, 1), 10)) == 1_663_370
    assert parameters(build_model("mlp", (784,), 10)) == 199_210
    assert parameters(build_model("mlp", (28, 28, 1), 10, hidden=(64,))) == 784 * 64 + 64 + 64 * 10 + 10
    assert parameters(build_model("logistic", (784,), 10)) == 7850
    assert parameters(build_model("cnn_small", (8, 8, 1), 10)) == 160 + 4640 + (2 * 2 * 32 + 1) * 64 + 650


@pytest.fixture(scope="module")
def images():
    """Four clients with noisy pictures of three prototypes, in bytes."""
    rng = np.random.default_rng(6)
    sizes = [6, 9, 3, 12]
    prototypes = rng.integers(0, 256, (3, 8, 8, 1))
    labels = rng.integers(0, 3, sum(sizes)).astype(np.int32)
    inputs = np.clip(prototypes[labels] + rng.integers(-40, 41, (sum(sizes), 8, 8, 1)), 0, 255).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return fs.Population({"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels)}, jnp.asarray(offsets))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "cnn" else [])  # which cnn_small is, but for its widths
        for name in MODELS
        if name not in ("resnet", "vit", "char_lstm")  # not so small
    ],
)
def test_every_small_model_by_name_learns(images, name):
    model = build_model(name, (8, 8, 1), 3, hidden=(16,))
    algorithm = fs.fedavg(model.loss_fn, client_tx=optax.sgd(0.05))
    states, metrics = train(algorithm, model.params, images, 2, jnp.arange(4), batch_size=12)
    assert_learns(states, metrics)
    before, after = (fs.make_evaluation(model.metric_fn)(s.params, images.examples) for s in (states[0], states[-1]))
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > before["accuracy"]


@pytest.mark.parametrize("name", ["mlp", "cnn_small"])
def test_the_initial_parameters_follow_the_seed(name):
    first, again, other = (build_model(name, (8, 8, 1), 3, seed=seed).params for seed in (1, 1, 2))
    assert_equal(first, again)
    kernels = [leaf for leaf in jax.tree.leaves(first) if leaf.ndim > 1]
    others = [leaf for leaf in jax.tree.leaves(other) if leaf.ndim > 1]
    for kernel, different in zip(kernels, others, strict=True):
        assert not np.allclose(kernel, different)
        spread = np.sqrt(2 / np.prod(kernel.shape[:-1]))  # He et al. 2015
        assert 0.7 * spread < np.std(kernel) < 1.3 * spread


def test_logistic_regression_starts_at_zero_whatever_the_seed():
    params = build_model("logistic", (5,), 3, seed=4).params
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["mlp", "cnn_small"])
def test_bytes_equal_floats_over_255(images, name):
    model = build_model(name, (8, 8, 1), 3, hidden=(16,))
    inputs = images.examples["inputs"]
    logits = jax.jit(model.logits_fn)
    assert_close(logits(model.params, inputs), logits(model.params, inputs.astype(jnp.float32) / 255))


def test_loss_and_metrics_of_logits():
    model = from_logits({"shift": jnp.zeros(())}, lambda params, x: x + params["shift"])
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]], np.float32)
    batch = {"inputs": jnp.asarray(logits), "labels": jnp.asarray([0, 1])}
    expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1], [0, 1]]
    metrics = model.metric_fn(model.params, batch)
    np.testing.assert_allclose(model.loss_fn(model.params, batch, KEY), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], [1, 0])


# --- layers ----------------------------------------------------------------------------------------------------------


def test_a_convolution_is_the_sum_over_the_neighbourhood():
    rng = np.random.default_rng(8)
    x, kernel = rng.standard_normal((1, 4, 5, 2)), rng.standard_normal((3, 3, 2, 2))
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    expected = np.zeros((4, 5, 2))
    for i in range(4):
        for j in range(5):
            expected[i, j] = np.einsum("abc,abcd->d", padded[i : i + 3, j : j + 3], kernel)
    layer = Conv(2, 2, 3, rng=rng)
    layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32))[0], expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (2, 3)])
def test_max_pool_equals_a_loop(height, width):
    x = np.random.default_rng(9).standard_normal((2, height, width, 3)).astype(np.float32)
    expected = np.empty((2, height // 2, width // 2, 3), np.float32)
    for i in range(height // 2):
        for j in range(width // 2):
            expected[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)
