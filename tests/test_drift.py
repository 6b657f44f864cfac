"""Algorithms against client drift: the papers' pseudo-code in NumPy, fixed points on quadratics, identities, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, RATE, SIZES, assert_close, loss_fn, make_algorithm, make_federation, one_line
from test_mathematics import CLIENTS, DIM, quadratic_loss, quadratics
from test_reference import COHORTS, gradient, start_weights
from test_server_optimizers import descend, drawn, fedavg_params, last, shares, train, weights_of

import fedjax_sim as fs

N = len(SIZES)
DRIFT = ("fedprox", "fednova", "feddyn", "feddc", "fedcm", "scaffold")


def fedprox(mu=0.4):
    w = start_weights(make_federation())
    for number, ids in enumerate(COHORTS):
        trained = [descend(w, i, number, lambda g, y, w=w: g + mu * (y - w))[0] for i in ids]
        w = np.tensordot(shares(ids), trained, 1)
    return w


def fednova():
    """With plain SGD: the mean of the mean gradients, times the mean number of steps."""
    w = start_weights(make_federation())
    for number, ids in enumerate(COHORTS):
        local = [descend(w, i, number) for i in ids]
        steps = np.array([k for _, k in local])
        gradients = [(w - y) / (RATE * k) for y, k in local]
        w = w - RATE * (shares(ids) @ steps) * np.tensordot(shares(ids), gradients, 1)
    return w


def fednova_with_momentum(rho=0.8):
    """`||a||_1 = (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)`, as the paper has it for momentum."""
    w = start_weights(make_federation())
    for number, ids in enumerate(COHORTS):
        normalised, sums = [], []
        for i in ids:
            y, v = w, 0.0
            for x, labels in drawn(int(i), number):
                v = rho * v + gradient(y, x, labels)
                y = y - RATE / 4 * v
            k = len(drawn(int(i), number))
            sums.append((k - rho * (1 - rho**k) / (1 - rho)) / (1 - rho))
            normalised.append((w - y) / sums[-1])
        w = w - (shares(ids) @ sums) * np.tensordot(shares(ids), normalised, 1)
    return w


def feddyn(alpha=0.3):
    """In the paper's own variables, gradients `g` and `h`."""
    w = start_weights(make_federation())
    g, h = np.zeros((N, *w.shape)), np.zeros_like(w)
    for number, ids in enumerate(COHORTS):
        trained = []
        for i in ids:
            y, _ = descend(w, i, number, lambda slope, y, w=w, i=i: slope - g[i] + alpha * (y - w))
            g[i] = g[i] - alpha * (y - w)
            trained.append(y)
        h = h - alpha * np.sum([y - w for y in trained], axis=0) / N
        w = np.mean(trained, axis=0) - h / alpha
    return w


def feddc(alpha=0.3):
    w = start_weights(make_federation())
    h, c, mean_c = np.zeros((N, *w.shape)), np.zeros((N, *w.shape)), np.zeros_like(w)
    for number, ids in enumerate(COHORTS):
        trained, before = [], c.copy()
        for i in ids:

            def direction(slope, y, w=w, i=i, mean_c=mean_c):
                return slope + alpha * (y + h[i] - w) + mean_c - before[i]  # noqa: B023

            y, k = descend(w, i, number, direction)
            h[i] = h[i] + y - w
            c[i] = c[i] - mean_c + (w - y) / (k * RATE)
            trained.append(y)
        mean_c = c.mean(0)
        w = np.mean(trained, axis=0) + h.mean(0)
    return w


def fedcm(alpha=0.3):
    w = start_weights(make_federation())
    momentum = np.zeros_like(w)
    for number, ids in enumerate(COHORTS):
        local = [descend(w, i, number, lambda g, y, m=momentum: alpha * g + (1 - alpha) * m) for i in ids]
        step = np.tensordot(shares(ids), [w - y for y, _ in local], 1)
        momentum = step / (RATE * (shares(ids) @ [k for _, k in local]))
        w = w - step
    return w


def scaffold_1():
    """Option I: the control variate is the gradient over all the client's examples at the received model."""
    federation = make_federation()
    w = start_weights(federation)
    c, own = np.zeros_like(w), np.zeros((N, *w.shape))
    for number, ids in enumerate(COHORTS):
        trained, change = [], 0.0
        for i in ids:
            trained.append(descend(w, i, number, lambda g, y, c=c, i=i: g - own[i] + c)[0])
            rows = slice(federation.offsets[i], federation.offsets[i + 1])
            new = gradient(w, federation.inputs[rows].astype(np.float64), federation.labels[rows])
            change, own[i] = change + new - own[i], new
        w, c = np.tensordot(shares(ids), trained, 1), c + change / N
    return w


MOMENTUM = optax.sgd(RATE / 4, momentum=0.8)


@pytest.mark.parametrize(
    ("name", "options", "lanes", "reference"),
    [
        ("fedprox", {"mu": 0.4}, 3, fedprox),
        pytest.param("fednova", {}, 1, fednova, marks=pytest.mark.slow),
        ("fednova", {"client_tx": MOMENTUM}, 3, fednova_with_momentum),
        ("feddyn", {"alpha": 0.3}, 3, feddyn),
        ("feddc", {"alpha": 0.3}, 3, feddc),
        ("fedcm", {"alpha": 0.3}, 3, fedcm),
        ("scaffold", {"option": 1}, 3, scaffold_1),
    ],
)
def test_equals_the_papers_pseudo_code(federation, name, options, lanes, reference):
    algorithm = fs.ALGORITHMS[name](loss_fn, **({"client_tx": optax.sgd(RATE)} | options))
    states, _ = train(federation, algorithm, lanes=lanes)
    np.testing.assert_allclose(weights_of(last(states.params)), reference(), atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("fedprox", {"mu": 0.0}), ("fedcm", {"alpha": 1.0})])
def test_degenerates_to_fedavg(federation, name, options):
    states, _ = train(federation, make_algorithm(name, **options))
    assert_close(states.params, fedavg_params(), atol=1e-5)


def test_fednova_with_equal_steps_is_fedavg_even_with_an_adaptive_client_optimizer(federation):
    runs = [
        train(federation, fs.ALGORITHMS[name](loss_fn, client_tx=optax.adam(0.05)), local_steps=3)[0].params
        for name in ("fedavg", "fednova")
    ]
    assert_close(*runs, atol=1e-5)


def test_scaffold_with_one_client_is_fedavg():
    federation, cohorts = make_federation(sizes=(11,)), np.zeros((4, 1), np.int32)
    algorithms = [make_algorithm("fedavg"), make_algorithm("scaffold", option=1), make_algorithm("scaffold")]
    expected, *runs = [train(federation, algorithm, cohorts)[0].params for algorithm in algorithms]
    for run in runs:
        assert_close(run, expected, atol=1e-5)


# --- fixed points on quadratics -------------------------------------------------------------------------------------

TAU = np.array([1, 2, 4, 8])  # local steps of the clients


def settle(name, rate=0.05, client_tx=None, rounds=1500, cohorts=((0, 1, 2, 3),), weighting="uniform", **options):
    """The model after many rounds, client `i` doing `TAU[i]` full-batch steps in each: it holds so many copies of its
    one example."""
    _, _, population = quadratics()
    examples = jax.tree.map(lambda x: jnp.repeat(x, TAU, axis=0), population.examples)
    population = fs.Population(examples, jnp.asarray(np.concatenate([[0], np.cumsum(TAU)]), jnp.int32))
    client_tx = client_tx or optax.sgd(rate)
    algorithm = fs.ALGORITHMS[name](quadratic_loss, client_tx=client_tx, weighting=weighting, **options)
    round_fn, cohorts = fs.make_round(algorithm, batch_size=1), jnp.asarray(cohorts, jnp.int32)

    @jax.jit
    def run(state):
        def body(index, state):
            return round_fn(state, fs.select(population, cohorts[index % len(cohorts)]), jax.random.key(0))[0]

        return jax.lax.fori_loop(0, rounds, body, state)

    return np.asarray(run(fs.init(algorithm, jnp.zeros(DIM), CLIENTS)).params)


def balance(matrices):
    """Where `sum_i M_i (w - b_i) = 0`."""
    _, b, _ = quadratics()
    return np.linalg.solve(np.sum(matrices, axis=0), np.einsum("nij,nj->i", matrices, b))


def local_maps(rate, mu=0.0):
    """`M_i`, where `TAU[i]` steps from `w` move client `i` by `-M_i (w - b_i)`."""
    a, eye = quadratics()[0], np.eye(DIM)
    shrink = [eye - np.linalg.matrix_power(eye - rate * (m + mu * eye), k) for m, k in zip(a, TAU, strict=True)]
    return np.stack([s @ np.linalg.solve(m + mu * eye, m) for s, m in zip(shrink, a, strict=True)])


OPTIMUM = balance(quadratics()[0])
HALVES, PAIRS = ((0, 1), (2, 3)), ((0, 3), (1, 2), (0, 1), (2, 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("scaffold", {"option": 1}, marks=pytest.mark.slow),
        ("scaffold", {"option": 1, "cohorts": PAIRS}),
        ("scaffold", {"cohorts": PAIRS, "weighting": "examples"}),
        pytest.param("scaffold", {"client_tx": optax.sgd(0.01, momentum=0.9)}, marks=pytest.mark.slow),
        pytest.param("feddyn", {"alpha": 1.0}, marks=pytest.mark.slow),
        ("feddyn", {"alpha": 1.0, "cohorts": HALVES, "weighting": "examples"}),
        pytest.param("feddc", {"alpha": 1.0}, marks=pytest.mark.slow),
        ("feddc", {"alpha": 1.0, "client_tx": optax.sgd(0.01, momentum=0.9)}),
    ],
)
def test_drift_correction_reaches_the_optimum_with_unequal_steps_where_fedavg_does_not(name, options):
    assert np.linalg.norm(balance(local_maps(0.05)) - OPTIMUM) > 0.1
    np.testing.assert_allclose(settle(name, **options), OPTIMUM, atol=1e-3)


def test_fedavg_and_fedprox_reach_their_biased_fixed_points():
    np.testing.assert_allclose(settle("fedavg"), balance(local_maps(0.05)), atol=1e-4)
    biased = balance(local_maps(0.05, mu=0.7))
    assert np.linalg.norm(biased - balance(local_maps(0.05))) > 0.05
    np.testing.assert_allclose(settle("fedprox", mu=0.7), biased, atol=1e-4)


def test_fednovas_fixed_point_nears_the_optimum_with_the_rate_and_fedavgs_does_not():
    nova = {rate: balance(local_maps(rate) / TAU[:, None, None]) for rate in (0.05, 0.002)}
    np.testing.assert_allclose(settle("fednova"), nova[0.05], atol=1e-4)
    np.testing.assert_allclose(settle("fednova", rate=0.002, rounds=6000), nova[0.002], atol=1e-3)
    assert np.linalg.norm(nova[0.002] - OPTIMUM) < 0.1 * np.linalg.norm(nova[0.05] - OPTIMUM)
    unequal = balance(TAU[:, None, None] * quadratics()[0])
    assert np.linalg.norm(unequal - OPTIMUM) > 0.1
    np.testing.assert_allclose(balance(local_maps(1e-5)), unequal, atol=1e-3)


# --- models with statistics, precision, errors ----------------------------------------------------------------------


def with_statistics(model, batch, key):
    return loss_fn(model.params, batch, key), {"mean": batch["inputs"].mean(0)}


@pytest.mark.parametrize("name", ["fednova", "feddc"])
def test_statistics_are_averaged_plainly_and_parameters_train_as_without(federation, name):
    params = fs.Variables(federation.params, {"mean": jnp.zeros(5)})
    algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.sgd(RATE), weighting="examples")
    cohorts, work = COHORTS[:2], {"batch_size": max(SIZES), "local_steps": 2}
    states, _ = train(federation._replace(params=params), algorithm, cohorts, **work)
    plain, _ = train(federation, make_algorithm(name, weighting="examples"), cohorts, **work)
    assert_close(states.params.params, plain.params)
    means = []
    for i in cohorts[-1]:  # a batch's last rows repeat the first: its statistics count them
        rows = federation.inputs[federation.offsets[i] : federation.offsets[i + 1]]
        means.append((rows.min(0), rows.max(0)))
    low, high = np.tensordot(shares(cohorts[-1]), means, 1)
    got = last(states.params.statistics)["mean"]
    assert (low - 1e-6 <= got).all()
    assert (got <= high + 1e-6).all()


@pytest.mark.parametrize("name", DRIFT)
def test_state_keeps_its_dtypes_in_bfloat16_with_traced_options(federation, name):
    params = fs.Variables(
        jax.tree.map(lambda p: p.astype(jnp.bfloat16), federation.params), {"mean": jnp.zeros(5, jnp.float32)}
    )
    option = {"fedprox": "mu", "feddyn": "alpha", "feddc": "alpha", "fedcm": "alpha"}.get(name)

    def run(value):
        options = {option: value} if option else {}
        algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.sgd(RATE, momentum=0.9), **options)
        state = fs.init(algorithm, params, N)
        cohort = fs.select(federation.population, jnp.asarray(COHORTS[0]))
        return state, fs.make_round(algorithm, batch_size=BATCH)(state, cohort, jax.random.key(0))[0]

    before, after = jax.eval_shape(run, jnp.float32(0.5))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("fedprox", "mu", -1),
        ("feddyn", "alpha", 0.0),
        ("feddc", "alpha", "small"),
        ("fedcm", "alpha", 0.0),
        ("fedcm", "alpha", 1.5),
        ("scaffold", "option", 3),
        ("fednova", "weighting", "steps"),
    ],
)
def test_errors_name_the_option_and_the_fix(name, option, value):
    with pytest.raises(fs.InputError) as error:
        make_algorithm(name, **{option: value})
    one_line(error, f"{option}: ", repr(value), "choose" if option in ("option", "weighting") else "give")
