"""Auditing whole private runs: below what is claimed where the noise is honest, above it where half of it is gone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_federation, one_line

import fedjax_sim as fs
from fedjax_sim.privacy import audit, central, plant, privatize
from fedjax_sim.privacy.noise import gaussian, laplace

REAL = make_federation()
N, WIDTH = len(REAL.offsets) - 1, 700
CLIP, DELTA = 1.0, 1e-3
PARAMS = {"kernel": jnp.zeros((5, WIDTH)), "head": jnp.full((WIDTH, 3), 0.01)}


def loss_fn(params, batch, key):
    logits = jnp.tanh(batch["inputs"] @ params["kernel"] + 1) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


def end(algorithm, planted, rounds):
    """The model after all rounds of everybody, canaries too."""
    state = fs.init(algorithm, PARAMS, len(planted.population.offsets) - 1)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4, local_steps=1))
    everybody = fs.select(planted.population, jnp.arange(len(planted.population.offsets) - 1))
    for _ in range(rounds):
        state, metrics = round_fn(state, everybody, jax.random.key(1))
    assert float(metrics.extra["clipped"]) > 0.9  # canaries pull as hard as they may
    return state.params


@pytest.fixture(scope="module")
def planted():
    return plant(REAL.population, loss_fn, PARAMS, canaries=2000, seed=0)


@pytest.mark.parametrize(
    ("mechanism", "claimed", "delta", "rounds"),
    [pytest.param("gaussian", 3.0, 1e-5, 3, marks=pytest.mark.slow), ("laplace", 2.0, 1e-6, 1)],
)
def test_the_bound_is_below_the_claim_and_above_it_where_noise_is_missing(mechanism, claimed, delta, rounds, planted):
    clients = len(planted.population.offsets) - 1
    algorithm = fs.fedavg(planted.loss_fn, client_tx=optax.sgd(0.1))
    settings = {"num_clients": clients, "cohort_size": clients, "sampling": "all", "mechanism": mechanism}
    private = privatize(algorithm, **settings, clip_norm=CLIP, epsilon=claimed, delta=delta, rounds=rounds)
    assert private.spending is not None
    np.testing.assert_allclose(private.spending.epsilon(rounds), claimed, rtol=2e-3)
    half = central(algorithm, clip_norm=CLIP, noise_multiplier=private.noise_multiplier / 2, clients=clients,
                   noise=gaussian() if mechanism == "gaussian" else laplace())  # fmt: skip
    honest, cheating = (
        audit(planted, PARAMS, end(made, planted, rounds), delta=delta, gaussian=mechanism == "gaussian")
        for made in (private.algorithm, half)
    )
    assert 0.3 * claimed < honest.epsilon < claimed < cheating.epsilon
    assert 0.5 < honest.auroc < cheating.auroc < 1


def test_left_out_canaries_move_nothing(planted):
    """And those that are in move their own entry by their bound, all others not at all."""
    clients = len(planted.population.offsets) - 1
    assert clients == N + 2000
    sizes = np.diff(planted.population.offsets)
    np.testing.assert_array_equal(sizes[:N], np.diff(REAL.offsets))
    np.testing.assert_array_equal(sizes[N:], planted.included)
    assert 900 < planted.included.sum() < 1100
    assert len(set(planted.entries.tolist())) == 2000

    algorithm = central(
        fs.fedavg(planted.loss_fn, client_tx=optax.sgd(0.1)), clip_norm=CLIP, noise_multiplier=0.0, clients=1
    )
    state = fs.init(algorithm, PARAMS, clients)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4, local_steps=1))
    for canary in (int(planted.included.argmax()), int((~planted.included).argmax())):
        after, _ = round_fn(state, fs.select(planted.population, jnp.asarray([N + canary])), jax.random.key(0))
        found = audit(planted, PARAMS, after.params, delta=DELTA)
        expected = np.zeros(2000)
        expected[canary] = CLIP if planted.included[canary] else 0
        np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)


def test_real_clients_train_as_without_canaries(planted):
    ends = []
    for loss, population in ((loss_fn, REAL.population), (planted.loss_fn, planted.population)):
        algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.1))
        state = fs.init(algorithm, PARAMS, len(population.offsets) - 1)
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))
        ends.append(round_fn(state, fs.select(population, jnp.asarray([0, 3, 4])), jax.random.key(0))[0].params)
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_guesses_at_random_bound_nothing(planted):
    noise = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(3), x.shape), PARAMS)
    found = audit(planted, PARAMS, noise, delta=DELTA)
    assert found.epsilon == 0
    assert 0.45 < found.auroc < 0.55


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (lambda: plant(REAL.population, loss_fn, PARAMS, canaries=10**6, seed=0), ("canaries", "1000000", "5600")),
        (lambda: plant(REAL.population, loss_fn, PARAMS, canaries=1, seed=0), ("canaries", "1")),
        (lambda: plant(REAL.population, loss_fn, PARAMS, canaries=4, seed=0, strength=0.0), ("strength", "0.0")),
        (lambda: plant(REAL.population._replace(examples=REAL.inputs), loss_fn, PARAMS, canaries=4, seed=0),
         ("population", "dict")),
        (lambda: audit(some(), PARAMS, PARAMS, delta=2.0), ("delta", "2.0")),
        (lambda: audit(some(), PARAMS, PARAMS, delta=DELTA, confidence=95), ("confidence", "95")),
        (lambda: audit(some(), PARAMS, jax.tree.map(lambda x: x * jnp.nan, PARAMS), delta=DELTA), ("after", "finite")),
        (lambda: audit(some()._replace(included=np.ones(4, bool)), PARAMS, PARAMS, delta=DELTA), ("one side",)),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(wrong, parts):
    with pytest.raises(fs.InputError) as error:
        wrong()
    one_line(error, *parts)


def some():
    return plant(REAL.population, loss_fn, PARAMS, canaries=4, seed=0)
