"""Clusters and fairness (IFCA, q-FedAvg, AFL): the papers' loops in NumPy, closed-form optima, identities, errors."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import RATE, SIZES, assert_close, assert_equal, loss_fn, make_algorithm, make_federation, one_line
from test_reference import COHORTS, KEY, start_weights
from test_server_optimizers import descend, fedavg_params, last, shares, train, weights_of

import fedjax_sim as fs
from fedjax_sim.experiment.build import assemble, build
from fedjax_sim.experiment.config import parse_config

N, FEDERATION = len(SIZES), make_federation()


def mean_loss(w, client, federation=FEDERATION):
    """Of the model whose last row is the bias, over all the client's examples."""
    rows = slice(federation.offsets[client], federation.offsets[client + 1])
    logits = federation.inputs[rows].astype(np.float64) @ w[:-1] + w[-1]
    chosen = logits[np.arange(len(logits)), federation.labels[rows]]
    return np.mean(np.log(np.exp(logits).sum(1)) - chosen)


@cache
def runner(name, lanes, options):
    """Four rounds, compiled once for any values of the options, which are traced."""
    traced = lambda values: make_algorithm(name, **dict(zip(options, values, strict=True)))  # noqa: E731
    return jax.jit(lambda *values: train(FEDERATION, traced(values), lanes=lanes))


def trained(name, lanes, **options):
    return runner(name, lanes, tuple(options))(*options.values())


@cache
def uniform_fedavg():
    return train(FEDERATION, make_algorithm("fedavg", weighting="uniform"))[0].params


def scalar_population(targets):
    """Client i holds one number b_i."""
    count = len(targets)
    return fs.Population({"b": jnp.asarray(targets, jnp.float32)}, jnp.arange(count + 1, dtype=jnp.int32))


def scalar_loss(w, batch, key):
    return 0.5 * (w - batch["b"]) ** 2


HARD = (0.0, 0.0, 0.0, 4.0)  # three clients that agree and one that does not


@cache
def settling(name, rounds, client_tx, options, targets):
    cohort = np.arange(len(targets), dtype=np.int32)

    @jax.jit
    def run(start, *values):
        tx = client_tx or optax.sgd(0.1)
        algorithm = fs.ALGORITHMS[name](scalar_loss, client_tx=tx, **dict(zip(options, values, strict=True)))
        round_fn = fs.make_round(algorithm, batch_size=1)
        body = lambda _, s: round_fn(s, fs.select(scalar_population(targets), cohort), KEY)[0]  # noqa: E731
        return jax.lax.fori_loop(0, rounds, body, fs.init(algorithm, start, len(targets)))

    return run


def settle(name, rounds=400, client_tx=None, start=0.0, targets=HARD, **options):
    """The state after many rounds with everybody, one full-batch step in each; one program for all values of the
    options."""
    return settling(name, rounds, client_tx, tuple(options), targets)(jnp.float32(start), *options.values())


# --- q-FedAvg -------------------------------------------------------------------------------------------------------


def qffl(q, lipschitz):
    """Algorithm 2; also each round's weights."""
    w, weights = start_weights(FEDERATION), []
    for number, ids in enumerate(COHORTS):
        steps, scales, powers = [], [], []
        for i in ids:
            loss, gap = mean_loss(w, i), lipschitz * (w - descend(w, i, number)[0])
            powers.append(loss**q)
            steps.append(loss**q * gap)
            scales.append(q * loss ** (q - 1) * (gap**2).sum() + lipschitz * loss**q)
        weights.append(np.array(powers) / sum(powers))
        w = w - np.sum(steps, axis=0) / sum(scales)
    return w, weights


@pytest.mark.parametrize(("q", "lipschitz", "lanes"), [(2.0, None, 1), (0.5, 1.5, 3)])
def test_qffl_equals_the_papers_pseudo_code(q, lipschitz, lanes):
    states, metrics = trained("qffl", lanes, q=q, **({} if lipschitz is None else {"lipschitz": lipschitz}))
    expected, weights = qffl(q, 1 / RATE if lipschitz is None else lipschitz)
    np.testing.assert_allclose(weights_of(last(states.params)), expected, atol=1e-5)
    np.testing.assert_allclose(metrics.weight, weights, rtol=1e-4)
    norms = [
        np.linalg.norm(start_weights(FEDERATION) - descend(start_weights(FEDERATION), i, 0)[0]) for i in COHORTS[0]
    ]
    np.testing.assert_allclose(metrics.update_norm[0], norms, rtol=1e-4)


def test_qffl_with_q_0_is_fedavg_with_uniform_weights_whatever_the_bound():
    states, _ = trained("qffl", 3, q=0.0, lipschitz=0.7)
    assert_close(states.params, uniform_fedavg(), atol=1e-5)


def test_qffl_reaches_the_optimum_of_its_objective_and_evens_the_losses_out():
    """3 F_0^q w = F_3^q (4 - w) with F = (w - b)^2 / 2 gives w = 4 / (1 + 3^(1 / (2 q + 1)))."""
    settled = [float(settle("qffl", q=q, start=1.0).params) for q in (0.0, 1.0, 3.0)]
    expected = [4 / (1 + 3 ** (1 / (2 * q + 1))) for q in (0.0, 1.0, 3.0)]
    np.testing.assert_allclose(settled, expected, atol=1e-3)
    spread = [np.std([0.5 * (w - b) ** 2 for b in HARD]) for w in settled]
    assert spread[0] > 1.5 * spread[1] > 1.5 * spread[2]


@pytest.mark.parametrize("q", [0.5, 1.0, 20.0])
def test_qffl_stays_at_a_model_without_any_loss(q):
    state = settle("qffl", rounds=3, q=q, start=2.0, targets=(2.0, 2.0))
    np.testing.assert_array_equal(state.params, 2.0)


def test_qffl_tries_out_the_client_optimizer():
    """The learning rate is found behind masks, momentum and schedules; with an equal one, rounds are equal."""
    plain = settle("qffl", rounds=2, client_tx=optax.sgd(0.1), start=1.0)
    masked = optax.masked(optax.sgd(optax.constant_schedule(0.1), momentum=0.9), True)
    assert_close(settle("qffl", rounds=2, client_tx=masked, start=1.0).params, plain.params)


# --- AFL ------------------------------------------------------------------------------------------------------------


def nearest_on_simplex(v):
    """By bisection of the level that is taken off."""
    low, high = v.min() - 1, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


def afl(gamma):
    w, weights = start_weights(FEDERATION), np.full(N, 1 / N)
    for number, ids in enumerate(COHORTS):
        own = weights[ids] / weights[ids].sum()
        moved = weights.copy()
        moved[ids] += gamma * np.array([mean_loss(w, i) for i in ids])
        w = np.tensordot(own, [descend(w, i, number)[0] for i in ids], 1)
        weights = nearest_on_simplex(moved)
    return w, weights


@pytest.mark.parametrize("lanes", [1, 3])
def test_afl_equals_the_loop(lanes):
    states, _ = trained("afl", lanes, gamma=0.05)
    w, weights = afl(0.05)
    assert (weights == 0).any()  # else the projection is a shift alone
    np.testing.assert_allclose(weights_of(last(states.params)), w, atol=1e-5)
    np.testing.assert_allclose(last(states.server.weights), weights, atol=1e-5)


def test_afl_with_gamma_0_is_fedavg_with_uniform_weights():
    states, _ = trained("afl", 3, gamma=0.0)
    assert_close(states.params, uniform_fedavg(), atol=1e-5)
    np.testing.assert_allclose(states.server.weights, 1 / N, atol=1e-6)


def test_afl_weights_stay_on_the_simplex_and_absent_clients_lose_alike():
    states, _ = trained("afl", 3, gamma=0.01)
    weights = np.concatenate([np.full((1, N), 1 / N), states.server.weights])
    for before, after, ids in zip(weights[:-1], weights[1:], COHORTS, strict=True):
        np.testing.assert_allclose(after.sum(), 1, atol=1e-5)
        assert (after >= 0).all()
        absent = np.setdiff1d(np.arange(N), ids)
        lost = (before - after)[absent]
        level = lost.max()
        np.testing.assert_allclose(after[absent], np.maximum(before[absent] - level, 0), atol=1e-6)
        assert level > 0


def test_afl_hears_a_client_whose_weight_is_0_and_weighs_a_cohort_of_such_alike():
    """All weight is with a client that is absent."""
    algorithm = make_algorithm("afl", gamma=0.05)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4, lanes=3))
    state = fs.init(algorithm, FEDERATION.params, N)
    state = state._replace(server=state.server._replace(weights=jnp.zeros(N).at[0].set(1.0)))
    after, metrics = round_fn(state, fs.select(FEDERATION.population, jnp.asarray([3, 1, 4])), KEY)
    np.testing.assert_allclose(metrics.weight, np.full(3, 1 / 3), rtol=1e-5)
    moved = np.array([1.0, 0, 0, 0, 0, 0])
    moved[[3, 1, 4]] = [0.05 * mean_loss(start_weights(FEDERATION), i) for i in (3, 1, 4)]
    np.testing.assert_allclose(after.server.weights, nearest_on_simplex(moved), atol=1e-5)
    assert (np.asarray(after.server.weights)[[1, 3, 4]] > 0).any()


def test_afl_serves_the_worst_client_better_than_fedavg():
    """Where the worst loss is least, both kinds of clients have the same: at 2, with half of the weight on one."""
    fedavg, state = settle("fedavg"), settle("afl", rounds=2000)
    np.testing.assert_allclose(fedavg.params, 1.0, atol=1e-3)
    np.testing.assert_allclose(state.params, 2.0, atol=0.02)
    np.testing.assert_allclose(state.server.weights[3], 0.5, atol=0.02)


# --- IFCA -----------------------------------------------------------------------------------------------------------


def ifca(models, rate, momentum):
    """Algorithm 1 from the given models, with SGD of momentum on the server for each cluster."""
    models, velocity, choices = list(models), [0.0] * len(models), set()
    for number, ids in enumerate(COHORTS):
        chosen = np.array([np.argmin([mean_loss(w, i) for w in models]) for i in ids])
        choices.add(tuple(sorted(set(chosen.tolist()))))
        for j in set(chosen):
            own = ids[chosen == j]
            mean = np.tensordot(shares(own), [models[j] - descend(models[j], i, number)[0] for i in own], 1)
            velocity[j] = mean + momentum * velocity[j]
            models[j] = models[j] - rate * velocity[j]
    return np.array(models), choices


def stack_of(models):
    return np.concatenate([models["kernel"], models["bias"][:, None]], axis=1).astype(np.float64)


@pytest.mark.parametrize(("clusters", "lanes"), [pytest.param(2, 1, marks=pytest.mark.slow), (3, 3)])
def test_ifca_equals_the_papers_pseudo_code(clusters, lanes):
    options = {"clusters": clusters, "spread": 1.0, "seed": 1, "server_tx": optax.sgd(0.7, momentum=0.5)}
    algorithm = make_algorithm("ifca", **options)
    start = stack_of(fs.init(algorithm, FEDERATION.params, N).server.models)
    np.testing.assert_allclose(start[0], start_weights(FEDERATION))
    states, _ = train(FEDERATION, algorithm, lanes=lanes)
    expected, choices = ifca(start, 0.7, 0.5)
    assert (0, 1) in choices
    assert clusters == 2 or len(choices) > 1  # a cluster was left empty in one round and not in another
    np.testing.assert_allclose(stack_of(last(states.server.models)), expected, atol=1e-5)
    np.testing.assert_allclose(weights_of(last(states.params)), expected.mean(0), atol=1e-5)


def test_ifca_starts_apart_by_the_seed_of_the_run():
    def start(seed):
        tree = {"algorithm": {"name": "ifca"}, "training": {"seed": seed, "rounds": 1}, "model": {"name": "logistic"}}
        config = parse_config(tree)
        made = build(config)
        state = fs.init(made.algorithm, made.model.params, made.data.num_clients)
        traced = jax.jit(lambda seed: fs.init(assemble(made.config, made.model, made.data.num_clients, {}, seed),
                                              made.model.params, made.data.num_clients))(jnp.uint32(seed))  # fmt: skip
        assert_close(state.server.models, traced.server.models)  # as sweeps over seeds have it
        return stack_of(state.server.models["layer0"])

    first, second = start(0), start(1)
    np.testing.assert_array_equal(first[0], second[0])  # logistic regression starts at 0
    assert np.abs(first[1] - second[1]).max() > 0.1
    np.testing.assert_array_equal(first[1], start(0)[1])


def test_ifca_with_one_cluster_is_fedavg():
    states, _ = train(FEDERATION, make_algorithm("ifca", clusters=1))
    assert_close(states.params, fedavg_params(), atol=1e-5)


def test_ifca_without_spread_trains_the_first_model_in_the_first_round_and_leaves_the_other():
    models = train(FEDERATION, make_algorithm("ifca", spread=0.0), COHORTS[:1])[0].server.models
    first, other = (jax.tree.map(lambda m, j=j: m[0, j], models) for j in (0, 1))
    assert_close(first, jax.tree.map(lambda p: p[0], fedavg_params()), atol=1e-5)
    assert_equal(other, FEDERATION.params)


def swapped():
    """Eight clients with the same two kinds of inputs; the second four call them by each other's names."""
    federation = make_federation(sizes=(12,) * 8)
    labels = (federation.inputs[:, 0] > 0).astype(np.int32)
    labels[48:] = 1 - labels[48:]
    population = federation.population._replace(
        examples={"inputs": jnp.asarray(federation.inputs), "labels": jnp.asarray(labels)}
    )
    return federation._replace(population=population, labels=labels)


def test_ifca_finds_two_groups_with_swapped_labels_and_beats_fedavg():
    federation, everybody = swapped(), np.broadcast_to(np.arange(8, dtype=np.int32), (15, 8))
    options = {"ifca": {"spread": 1.0, "seed": 3}, "fedavg": {}}
    ends, algorithms = {}, {name: make_algorithm(name, **own) for name, own in options.items()}
    for name, algorithm in algorithms.items():
        ends[name] = last(train(federation, algorithm, everybody)[0])
    models = stack_of(ends["ifca"].server.models)
    losses = np.array([[mean_loss(w, i, federation) for w in models] for i in range(8)])
    chosen = losses.argmin(1)
    assert len(set(chosen[:4])) == len(set(chosen[4:])) == 1
    assert chosen[0] != chosen[4]
    plain = [mean_loss(weights_of(ends["fedavg"].params), i, federation) for i in range(8)]
    assert (losses.min(1) < 0.75 * np.array(plain)).all()
    assert losses.min(1).mean() < 0.5 * np.mean(plain)

    def correct(params, batch):
        logits = batch["inputs"] @ params["kernel"] + params["bias"]
        return {"accuracy": (logits.argmax(1) == batch["labels"]).astype(jnp.float32)}

    cohort = fs.select(federation.population, everybody[0])
    evaluate = jax.jit(fs.make_client_evaluation(algorithms["ifca"], correct, batch_size=4))
    scores = evaluate(ends["ifca"], cohort, cohort, KEY)  # clients predict with the best model as it is
    right = [np.mean((federation.inputs[12 * i : 12 * i + 12] @ models[j][:-1] + models[j][-1]).argmax(1)
                     == federation.labels[12 * i : 12 * i + 12]) for i, j in enumerate(chosen)]  # fmt: skip
    np.testing.assert_allclose(scores.after["accuracy"], right, atol=1e-6)
    assert np.mean(right) > 0.9


# --- models with statistics, precision, errors ----------------------------------------------------------------------


def with_statistics(model, batch, key):
    return loss_fn(model.params, batch, key), {"mean": batch["inputs"].mean(0)}


OPTIONS = {"qffl": {"q": 2.0}, "afl": {"gamma": 0.05}, "ifca": {"spread": 1.0}}


@pytest.mark.parametrize("name", OPTIONS)
def test_statistics_are_averaged_with_the_clients_weights_and_parameters_train_as_without(name):
    """Full batches of clients of one size, whose statistics are the means of their examples."""
    federation = make_federation(sizes=(6, 6, 6))
    params = fs.Variables(federation.params, {"mean": jnp.zeros(5)})
    cohorts, work = np.array([[0, 2], [1, 0]], np.int32), {"batch_size": 6, "local_steps": 2}
    algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.sgd(RATE), **OPTIONS[name])
    states, metrics = train(federation._replace(params=params), algorithm, cohorts, **work)
    plain, _ = train(federation, make_algorithm(name, **OPTIONS[name]), cohorts, **work)
    assert_close(states.params.params, plain.params, atol=1e-5)
    if name != "ifca":
        means = federation.inputs.reshape(3, 6, 5).mean(1)[cohorts[-1]]
        expected = np.tensordot(last(metrics.weight), means, 1)
        np.testing.assert_allclose(last(states.params.statistics)["mean"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "option"), [("qffl", "q"), ("qffl", "lipschitz"), ("afl", "gamma"), ("ifca", "spread")]
)
def test_state_keeps_its_dtypes_in_bfloat16_with_traced_options(name, option):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), FEDERATION.params)
    params = fs.Variables(half, {"mean": jnp.zeros(5, jnp.float32)})

    def run(value):
        algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.adam(RATE), **{option: value})
        state = fs.init(algorithm, params, N)
        cohort = fs.select(FEDERATION.population, jnp.asarray(COHORTS[0]))
        return state, fs.make_round(algorithm, batch_size=4)(state, cohort, jax.random.key(0))[0]

    before, after = jax.eval_shape(run, jnp.float32(0.5))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("qffl", "q", -0.5),
        ("qffl", "q", "fair"),
        ("qffl", "lipschitz", 0.0),
        ("afl", "gamma", -1),
        ("afl", "gamma", float("nan")),
        ("ifca", "clusters", 0),
        ("ifca", "clusters", 2.0),
        ("ifca", "spread", -0.1),
        ("ifca", "seed", -1),
        ("ifca", "weighting", "size"),
    ],
)
def test_errors_name_the_option_and_the_fix(name, option, value):
    with pytest.raises(fs.InputError) as error:
        make_algorithm(name, **{option: value})
    one_line(error, f"{option}: ", repr(value), "choose" if option == "weighting" else "give")
