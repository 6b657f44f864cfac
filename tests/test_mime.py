"""Mime and MimeLite: the paper's pseudo-code in NumPy with two base optimizers, identities, fixed points, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import RATE, SIZES, assert_close, loss_fn, make_algorithm, make_federation, one_line
from test_mathematics import DIM, ETA, STEPS, converge, quadratics
from test_reference import COHORTS, ROUNDS, gradient, start_weights
from test_server_optimizers import drawn, fedavg_params, last, shares, train, weights_of

import fedjax_sim as fs

N, FEDERATION = len(SIZES), make_federation()


class Momentum:
    """`U` and `V` of SGD with momentum, as `optax.sgd` has them."""

    tx = optax.sgd(RATE / 4, momentum=0.8)

    def __init__(self):
        self.m = 0.0

    def step(self, g):
        return RATE / 4 * (g + 0.8 * self.m)

    def renew(self, g):
        self.m = g + 0.8 * self.m


class Adam:
    """With the bias correction of the state that `V` would make."""

    tx = optax.adam(0.05, b1=0.8, b2=0.9, eps=0.02)

    def __init__(self):
        self.m, self.v, self.count = 0.0, 0.0, 0

    def moments(self, g):
        return 0.8 * self.m + 0.2 * g, 0.9 * self.v + 0.1 * g**2

    def step(self, g):
        (m, v), count = self.moments(g), self.count + 1
        return 0.05 * (m / (1 - 0.8**count)) / (np.sqrt(v / (1 - 0.9**count)) + 0.02)

    def renew(self, g):
        (self.m, self.v), self.count = self.moments(g), self.count + 1


def full_gradient(w, client):
    rows = slice(FEDERATION.offsets[client], FEDERATION.offsets[client + 1])
    return gradient(w, FEDERATION.inputs[rows].astype(np.float64), FEDERATION.labels[rows])


def reference(name, base, weights):
    """Algorithm 1; `base` holds `s`."""
    w = start_weights(FEDERATION)
    for number, ids in enumerate(COHORTS):
        c = np.tensordot(weights(ids), [full_gradient(w, i) for i in ids], 1)
        trained = []
        for i in ids:
            y = w
            for x, labels in drawn(int(i), number):
                g = gradient(y, x, labels)
                y = y - base.step(g - gradient(w, x, labels) + c if name == "mime" else g)
            trained.append(y)
        base.renew(c)
        w = np.tensordot(weights(ids), trained, 1)
    return w


def alike(ids):
    return np.full(len(ids), 1 / len(ids))


@pytest.mark.parametrize(
    ("name", "base", "weighting", "lanes"),
    [
        pytest.param("mime", Momentum, "examples", 1, marks=pytest.mark.slow),
        ("mime", Adam, "uniform", 3),
        ("mimelite", Momentum, "uniform", 3),
        pytest.param("mimelite", Adam, "examples", 1, marks=pytest.mark.slow),
    ],
)
def test_equals_the_papers_pseudo_code(name, base, weighting, lanes):
    algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=base.tx, weighting=weighting)
    states, _ = train(FEDERATION, algorithm, lanes=lanes)
    expected = reference(name, base(), alike if weighting == "uniform" else shares)
    np.testing.assert_allclose(weights_of(last(states.params)), expected, atol=1e-5)
    if base is Adam:  # the state is renewed once a round, however many local steps
        counts = [x for x in jax.tree.leaves(states.server.base) if jnp.issubdtype(x.dtype, jnp.integer)]
        np.testing.assert_array_equal(counts, [np.arange(1, ROUNDS + 1)])


# --- identities -----------------------------------------------------------------------------------------------------


def test_mimelite_with_plain_sgd_is_fedavg():
    states, _ = train(FEDERATION, make_algorithm("mimelite"))
    assert_close(states.params, fedavg_params(), atol=1e-5)


def test_mime_with_one_client_full_batches_and_plain_sgd_is_fedavg():
    federation, cohorts = make_federation(sizes=(11,)), np.zeros((4, 1), np.int32)
    work = {"batch_size": 11, "local_epochs": 3}
    mime, fedavg = (train(federation, make_algorithm(name), cohorts, **work)[0].params for name in ("mime", "fedavg"))
    assert_close(mime, fedavg, atol=1e-5)


@pytest.mark.parametrize(("name", "batch_size"), [("mime", 4), ("mimelite", max(SIZES))])
def test_one_local_step_of_all_clients_is_the_base_optimizer_on_all_examples(name, batch_size):
    """For Mime with batches of any size, as both gradients on the batch cancel, and with any optimizer."""
    tx = Adam.tx if name == "mime" else Momentum.tx
    algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=tx)
    everybody = np.broadcast_to(np.arange(N, dtype=np.int32), (4, N))
    states, _ = train(FEDERATION, algorithm, everybody, batch_size=batch_size, local_steps=1)

    @jax.jit
    def central(params, state):
        key = jax.random.key(0)
        slope = jax.grad(lambda p: loss_fn(p, FEDERATION.population.examples, key).mean())(params)
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    params, state = FEDERATION.params, tx.init(FEDERATION.params)
    for _ in everybody:
        params, state = central(params, state)
    assert_close(last(states.params), params, atol=1e-5)
    assert_close(last(states.server.base), state, atol=1e-5)


def test_mime_reaches_the_optimum_of_heterogeneous_quadratics_and_mimelite_with_sgd_does_not():
    a, b, _ = quadratics()
    optimum = np.linalg.solve(a.sum(0), np.einsum("nij,nj->i", a, b))
    shrink = np.stack([np.eye(DIM) - np.linalg.matrix_power(np.eye(DIM) - ETA * m, STEPS) for m in a])
    biased = np.linalg.solve(shrink.sum(0), np.einsum("nij,nj->i", shrink, b))
    assert np.linalg.norm(biased - optimum) > 0.1
    np.testing.assert_allclose(converge("mime"), optimum, atol=1e-4)
    np.testing.assert_allclose(converge("mimelite"), biased, atol=1e-4)


# --- metrics, models with statistics, precision, errors -------------------------------------------------------------


def test_metrics_count_both_exchanges_and_both_losses():
    """Sent: a gradient and an update. Received: the model, once, and the mean gradient; plain SGD has no state."""
    runs = {}
    for name in ("mime", "fedavg"):
        _, runs[name] = train(FEDERATION, make_algorithm(name), COHORTS[:1], client_losses="examples", local_steps=1)
    np.testing.assert_array_equal(runs["mime"].uplink_bits, 2 * 18 * 32)
    np.testing.assert_array_equal(runs["mime"].downlink_bits, 2 * 18 * 32)
    np.testing.assert_allclose(runs["mime"].loss_before, runs["fedavg"].loss_before, rtol=1e-5)
    w = start_weights(FEDERATION)
    c = np.tensordot(shares(COHORTS[0]), [full_gradient(w, i) for i in COHORTS[0]], 1)
    np.testing.assert_allclose(runs["mime"].drift, RATE * np.linalg.norm(c), rtol=1e-4)
    assert not np.allclose(runs["mime"].loss_after, runs["mime"].loss_before)


def with_statistics(model, batch, key):
    return loss_fn(model.params, batch, key), {"mean": batch["inputs"].mean(0)}


@pytest.mark.parametrize("name", ["mime", pytest.param("mimelite", marks=pytest.mark.slow)])
def test_statistics_are_averaged_and_parameters_train_as_without(name):
    """With full batches of clients of one size, the statistics are the mean of the cohort's examples."""
    federation = make_federation(sizes=(6, 6, 6))
    params = fs.Variables(federation.params, {"mean": jnp.zeros(5)})
    cohorts, work = np.array([[0, 2], [1, 0]], np.int32), {"batch_size": 6, "local_steps": 2}
    algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=Momentum.tx)
    states, _ = train(federation._replace(params=params), algorithm, cohorts, **work)
    plain, _ = train(federation, fs.ALGORITHMS[name](loss_fn, client_tx=Momentum.tx), cohorts, **work)
    assert_close(states.params.params, plain.params)
    np.testing.assert_allclose(last(states.params.statistics)["mean"], federation.inputs[:12].mean(0), atol=1e-5)


@pytest.mark.parametrize("name", ["mime", "mimelite"])
def test_state_keeps_its_dtypes_in_bfloat16(name):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), FEDERATION.params)
    params = fs.Variables(half, {"mean": jnp.zeros(5, jnp.float32)})

    def run(rate):
        algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.adam(rate))
        state = fs.init(algorithm, params, N)
        cohort = fs.select(FEDERATION.population, jnp.asarray(COHORTS[0]))
        return state, fs.make_round(algorithm, batch_size=4)(state, cohort, jax.random.key(0))[0]

    before, after = jax.eval_shape(run, jnp.float32(0.1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


@pytest.mark.parametrize("name", ["mime", "mimelite"])
def test_errors_name_the_option_and_the_fix(name):
    with pytest.raises(fs.InputError) as error:
        make_algorithm(name, weighting="steps")
    one_line(error, "weighting: 'steps' is unknown; choose one of examples, uniform")
