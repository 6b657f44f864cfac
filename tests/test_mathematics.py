"""Identities and known fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SIZES, assert_close, loss_fn, make_algorithm, make_federation

import fedjax_sim as fs

KEY = jax.random.key(0)
DIM, CLIENTS, STEPS, ETA = 3, 4, 5, 0.05


def quadratics():
    """Client i holds one example, (w - b_i)^T A_i (w - b_i) / 2."""
    rng = np.random.default_rng(1)
    root = rng.standard_normal((CLIENTS, DIM, DIM))
    a = np.einsum("nij,nkj->nik", root, root) + np.eye(DIM)
    b = 3 * rng.standard_normal((CLIENTS, DIM))
    examples = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    return a, b, fs.Population(examples, jnp.arange(CLIENTS + 1, dtype=jnp.int32))


def quadratic_loss(w, batch, key):
    gap = w - batch["b"]
    return 0.5 * jnp.einsum("bi,bij,bj->b", gap, batch["a"], gap)


def converge(name, rounds=600, cohort=None, **options):
    _, _, population = quadratics()
    algorithm = fs.ALGORITHMS[name](quadratic_loss, client_tx=optax.sgd(ETA), **options)
    round_fn = fs.make_round(algorithm, batch_size=1, local_steps=STEPS)
    cohort = jnp.arange(CLIENTS) if cohort is None else cohort

    @jax.jit
    def run(state):
        body = lambda _, s: round_fn(s, fs.select(population, cohort), KEY)[0]  # noqa: E731
        return jax.lax.fori_loop(0, rounds, body, state)

    return np.asarray(run(fs.init(algorithm, jnp.zeros(DIM), CLIENTS)).params)


def test_fedavg_reaches_its_known_biased_fixed_point_and_scaffold_the_optimum():
    a, b, _ = quadratics()
    shrink = np.stack([np.eye(DIM) - np.linalg.matrix_power(np.eye(DIM) - ETA * m, STEPS) for m in a])
    biased = np.linalg.solve(shrink.sum(0), np.einsum("nij,nj->i", shrink, b))
    optimum = np.linalg.solve(a.sum(0), np.einsum("nij,nj->i", a, b))
    assert np.linalg.norm(biased - optimum) > 0.1  # else the test would tell them apart by nothing
    np.testing.assert_allclose(converge("fedavg"), biased, atol=1e-4)
    np.testing.assert_allclose(converge("scaffold"), optimum, atol=1e-4)
    np.testing.assert_allclose(converge("fedavg_topk", fraction=1.0), biased, atol=1e-4)


def test_one_full_batch_step_with_all_clients_is_centralised_gradient_descent(federation):
    algorithm = make_algorithm("fedavg")
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=max(SIZES), local_steps=1))
    state = fs.init(algorithm, federation.params, len(SIZES))
    params = federation.params
    for _ in range(3):
        state, _ = round_fn(state, fs.select(federation.population, jnp.arange(len(SIZES))), KEY)
        mean = lambda p: loss_fn(p, federation.population.examples, KEY).mean()  # noqa: E731
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(mean)(params))
    assert_close(state.params, params)


@pytest.mark.parametrize("name", ["scaffold", "fedavg_topk"])
def test_with_one_client_it_is_fedavg(name):
    federation = make_federation(sizes=(11,))
    options = {"fraction": 1.0} if name == "fedavg_topk" else {}
    results = []
    for algorithm in (make_algorithm("fedavg"), make_algorithm(name, **options)):
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))
        state = fs.init(algorithm, federation.params, 1)
        for _ in range(4):
            state, _ = round_fn(state, fs.select(federation.population, jnp.zeros(1, jnp.int32)), KEY)
        results.append(state.params)
    assert_close(*results, atol=1e-5)


def test_weights_matter_only_when_sizes_differ():
    for sizes, same in (((6, 6, 6), True), ((2, 6, 15), False)):
        federation = make_federation(sizes=sizes)
        results = []
        for weighting in ("examples", "uniform"):
            algorithm = make_algorithm("fedavg", weighting=weighting)
            round_fn = fs.make_round(algorithm, batch_size=3)
            state = fs.init(algorithm, federation.params, 3)
            state, _ = jax.jit(round_fn)(state, fs.select(federation.population, jnp.arange(3)), KEY)
            results.append(np.asarray(state.params["kernel"]))
        assert np.allclose(*results, atol=1e-6) == same


def test_server_optimizer_sees_the_pseudo_gradient(federation):
    """With server SGD at half the rate the model moves half as far."""
    moves = []
    for rate in (1.0, 0.5):
        algorithm = make_algorithm("fedavg", server_tx=optax.sgd(rate))
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=4))
        state = fs.init(algorithm, federation.params, len(SIZES))
        state, _ = round_fn(state, fs.select(federation.population, jnp.arange(4)), KEY)
        moves.append(jax.tree.map(jnp.subtract, state.params, federation.params))
    assert_close(jax.tree.map(lambda x: x / 2, moves[0]), moves[1])
