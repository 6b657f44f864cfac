"""What is measured of updates on arrival, and of models on test sets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, loss_fn, make_algorithm, make_federation

import fedjax_sim as fs
from fedjax_sim.core.measure import ENTRIES, cosines, random_signs, sketch

KEY = jax.random.key(2)


def test_sketches_of_small_updates_are_exact():
    rng = np.random.default_rng(0)
    a, b = ({"w": rng.standard_normal((40, 3)), "b": rng.standard_normal(3)} for _ in range(2))
    a, b = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in (a, b))
    signs = random_signs(KEY, a)
    exact = sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    np.testing.assert_allclose(sketch(a, signs) @ sketch(b, signs), exact, rtol=1e-5)


def pairs():
    """Pairs of updates: leaning on few coordinates, and whose sizes do not fit the groups; nearly alike; of a layer
    most of whose units are off, so that few columns count."""
    rng = np.random.default_rng(1)
    shapes = [(784, 20), (3 * ENTRIES + 17,), (5,)]
    skewed = [rng.standard_normal(s) * rng.exponential(size=s) for s in shapes]
    yield skewed, [0.3 * x + rng.standard_normal(x.shape) for x in skewed]
    yield skewed, [3 * x + rng.standard_normal(x.shape) for x in skewed]
    for active, shared in ((3, 0.0), (8, 0.5)):
        layer = rng.standard_normal((512, 64)) * (np.arange(64) < active)
        yield [layer], [shared * layer + rng.standard_normal(layer.shape) * (np.arange(64) < active)]


@pytest.mark.parametrize("case", range(4))
def test_cosines_of_sketches_deviate_as_stated(case):
    a, b = ([jnp.asarray(x, jnp.float32) for x in tree] for tree in list(pairs())[case])
    norms = [np.sqrt(sum(float(jnp.vdot(x, x)) for x in tree)) for tree in (a, b)]
    exact = sum(float(jnp.vdot(x, y)) for x, y in zip(a, b, strict=True)) / np.prod(norms)

    @jax.jit
    @jax.vmap
    def estimate(key):
        signs = random_signs(key, a)
        return cosines(sketch(a, signs)[None], sketch(b, signs))[0]

    errors = np.asarray(estimate(jax.random.split(KEY, 400))) - exact
    spread = (1 - exact**2) / np.sqrt(ENTRIES)
    assert abs(errors.mean()) < 1 / ENTRIES + 4 * spread / np.sqrt(400)
    assert 0.6 * spread < errors.std() < 1.15 * spread  # less where few coordinates count
    assert np.abs(errors).max() < 4.5 * spread + 1e-4


def test_cosines_weights_and_effective_clients_against_numpy():
    federation = make_federation()
    ids = np.array([0, 3, 4, -1])
    for weighting in ("examples", "uniform"):
        algorithm = make_algorithm("fedavg", weighting=weighting)
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH))
        state = fs.init(algorithm, federation.params, len(SIZES))
        after, metrics = round_fn(state, fs.select(federation.population, ids), KEY)
        weights = np.array([SIZES[i] if weighting == "examples" else 1 for i in ids[:3]], float)
        weights /= weights.sum()
        np.testing.assert_allclose(metrics.weight, [*weights, 0], rtol=1e-5)
        np.testing.assert_allclose(metrics.effective_clients, 1 / np.square(weights).sum(), rtol=1e-5)
        flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
        aggregate = flat(state.params) - flat(after.params)
        for slot, client in enumerate(ids[:3]):
            alone, _ = round_fn(state, fs.select(federation.population, np.array([client, -1, -1, -1])), KEY)
            update = flat(state.params) - flat(alone.params)
            cosine = update @ aggregate / np.linalg.norm(update) / np.linalg.norm(aggregate)
            np.testing.assert_allclose(metrics.cosine[slot], cosine, atol=1e-4)
            np.testing.assert_allclose(metrics.drift[slot], np.linalg.norm(update), rtol=1e-4)
        assert metrics.cosine[3] == metrics.drift[3] == 0
        assert not np.asarray(metrics.rejected).any()


def test_cosines_are_exact_where_messages_are_stored():
    """Over more parameters than a sketch has entries."""
    federation, wide = make_federation(), ENTRIES
    params = {"kernel": jnp.zeros((federation.inputs.shape[1], wide)), "bias": jnp.zeros(wide)}
    round_fn = jax.jit(fs.make_round(make_algorithm("median"), batch_size=BATCH))
    state, alone = fs.init(make_algorithm("median"), params, len(SIZES)), []
    for ids in ([0, 3, 5], [0, -1, -1], [3, -1, -1], [5, -1, -1]):
        after, metrics = round_fn(state, fs.select(federation.population, np.array(ids)), KEY)
        moved = np.concatenate([np.ravel(x) for x in jax.tree.leaves(after.params)])
        alone.append((moved, np.asarray(metrics.cosine)))
    (together, cosines), *others = alone
    wanted = [x @ together / np.linalg.norm(x) / np.linalg.norm(together) for x, _ in others]
    np.testing.assert_allclose(cosines, wanted, atol=1e-5)


def test_a_message_that_is_not_finite_is_counted_and_left_out_by_robust_rules_alone():
    federation = make_federation()

    def broken(params, batch, key):  # NaN for the client that holds this input
        return loss_fn(params, batch, key) * jnp.where(batch["inputs"][:, 0] == marked, jnp.nan, 1)

    marked = float(federation.inputs[federation.offsets[1], 0])
    results = {}
    for name in ("fedavg", "median"):
        algorithm = fs.ALGORITHMS[name](broken, client_tx=optax.sgd(0.1))
        state = fs.init(algorithm, federation.params, len(SIZES))
        cohort = fs.select(federation.population, jnp.asarray([1, 2, 3]))
        results[name] = jax.jit(fs.make_round(algorithm, batch_size=BATCH))(state, cohort, KEY)
    assert np.isnan(results["fedavg"][0].params["kernel"]).any()
    assert not np.asarray(results["fedavg"][1].rejected).any()
    assert np.isfinite(results["median"][0].params["kernel"]).all()
    np.testing.assert_array_equal(results["median"][1].rejected, [True, False, False])
    np.testing.assert_allclose(results["median"][1].weight, [0, 0.5, 0.5])


def test_accuracy_by_class():
    labels = jnp.asarray([0, 0, 1, 1, 1, 3], jnp.int32)
    guesses = jnp.asarray([0, 1, 1, 1, 0, 3], jnp.int32)

    def metric_fn(params, batch):
        return {"accuracy": (batch["guesses"] == batch["labels"]).astype(jnp.float32)}

    examples = {"labels": labels, "guesses": guesses}
    for batch_size in (1, 4, 100):
        found = fs.make_evaluation(metric_fn, batch_size=batch_size, classes=4)({}, examples)
        np.testing.assert_allclose(found["accuracy"], 4 / 6, rtol=1e-6)
        np.testing.assert_allclose(found["class_accuracy"], [1 / 2, 2 / 3, np.nan, 1], rtol=1e-6)
