"""Algorithms that differ from FedAvg on the server: the papers' pseudo-code in NumPy, identities, schedules, errors."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, RATE, SIZES, assert_close, loss_fn, make_algorithm, make_federation, one_line
from test_reference import COHORTS, EPOCHS, KEY, batches, gradient, start_weights

import fedjax_sim as fs
from fedjax_sim.optimizers import fed_adam, unit_displacement


def train(federation, algorithm, cohorts=COHORTS, **options):
    """States and metrics after each of the cohorts' rounds."""
    work: dict[str, Any] = {"batch_size": BATCH, "local_epochs": EPOCHS} | options
    round_fn = fs.make_round(algorithm, **work)

    @jax.jit
    def run(state):
        def body(state, ids):
            state, metrics = round_fn(state, fs.select(federation.population, ids), KEY)
            return state, (state, metrics)

        return jax.lax.scan(body, state, cohorts)[1]

    return run(fs.init(algorithm, federation.params, len(federation.offsets) - 1))


def last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


def weights_of(params):
    return np.concatenate([params["kernel"], params["bias"][None]])


@lru_cache
def drawn(client, number):
    """The client's batches in that round, of the federation that the fixture makes too."""
    return list(batches(make_federation(), client, number))


def descend(w, client, number, direction=lambda g, y: g):
    """Local steps `y <- y - rate direction(gradient, y)`; the weights reached, and their number."""
    y = w
    for x, labels in drawn(int(client), number):
        y = y - RATE * direction(gradient(y, x, labels), y)
    return y, len(drawn(int(client), number))


def rows_of(federation, ids):
    return np.concatenate([np.arange(*federation.offsets[[i, i + 1]].tolist()) for i in ids])


def shares(ids):
    """Weights by numbers of examples."""
    sizes = np.array([SIZES[i] for i in ids], float)
    return sizes / sizes.sum()


@lru_cache
def fedavg_params():
    """FedAvg's model after each round."""
    return train(make_federation(), make_algorithm("fedavg"))[0].params


def server_loop(federation, step):
    """`w <- w - step(mean pseudo-gradient, memory, round)`, where the memory is a dictionary that `step` fills."""
    w, memory = start_weights(federation), {}
    for number, ids in enumerate(COHORTS):
        updates = [w - descend(w, i, number)[0] for i in ids]
        w = w - step(np.tensordot(shares(ids), updates, 1), memory, number)
    return w


def adaptive(second, rate=lambda number: 0.05, beta1=0.8, tau=0.02):
    def step(d, memory, number):
        memory["m"] = beta1 * memory.get("m", np.zeros_like(d)) + (1 - beta1) * d
        memory["v"] = second(memory.get("v", np.full_like(d, tau**2)), d**2)
        return rate(number) * memory["m"] / (np.sqrt(memory["v"]) + tau)

    return lambda federation: server_loop(federation, step)


def adam_moment(v, square):
    return 0.7 * v + 0.3 * square


def decaying(number):
    return 0.05 / (1 + number)


def fedavgm(federation, rate=lambda number: 0.6):
    def step(d, memory, number):
        memory["v"] = 0.5 * memory.get("v", 0) + d
        return rate(number) * memory["v"]

    return server_loop(federation, step)


def fedexp(federation, eps=1e-3):
    w, steps = start_weights(federation), []
    for number, ids in enumerate(COHORTS):
        updates = np.stack([w - descend(w, i, number)[0] for i in ids])
        mean = np.tensordot(shares(ids), updates, 1)
        squares = (updates**2).sum((1, 2))
        steps.append(max(1, shares(ids) @ squares / (2 * ((mean**2).sum() + eps))))
        w = w - steps[-1] * mean
    assert max(steps) > 1.01  # else it is FedAvg
    return w


def fedsgd(federation):
    w = start_weights(federation)
    for ids in COHORTS:
        rows = rows_of(federation, ids)
        w = w - RATE * gradient(w, federation.inputs[rows].astype(np.float64), federation.labels[rows])
    return w


ADAPTIVE = {"server_learning_rate": 0.05, "beta1": 0.8, "tau": 0.02}
SCHEDULED = {"server_learning_rate": decaying}
BETA2 = {"beta2": 0.7}


@pytest.mark.parametrize(
    ("name", "options", "lanes", "reference"),
    [
        pytest.param("fedadam", ADAPTIVE | BETA2, 1, adaptive(adam_moment), marks=pytest.mark.slow),
        ("fedadam", ADAPTIVE | BETA2 | SCHEDULED, 3, adaptive(adam_moment, decaying)),
        ("fedyogi", ADAPTIVE | BETA2, 3, adaptive(lambda v, s: v - 0.3 * s * np.sign(v - s))),
        ("fedadagrad", ADAPTIVE, 1, adaptive(lambda v, s: v + s)),
        pytest.param(
            "fedavgm", {"server_learning_rate": 0.6, "server_momentum": 0.5}, 1, fedavgm, marks=pytest.mark.slow
        ),
        ("fedavgm", SCHEDULED | {"server_momentum": 0.5}, 3, lambda f: fedavgm(f, decaying)),
        pytest.param("fedexp", {}, 1, fedexp, marks=pytest.mark.slow),
        ("fedexp", {"eps": 0.1}, 3, lambda f: fedexp(f, 0.1)),
        ("fedsgd", {}, 3, fedsgd),
    ],
)
def test_equals_the_papers_pseudo_code(federation, name, options, lanes, reference):
    states, _ = train(federation, make_algorithm(name, **options), lanes=lanes)
    np.testing.assert_allclose(weights_of(last(states.params)), reference(federation), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "rounds"),
    [
        ("fedavgm", {"server_momentum": 0.0}, 5),
        # a tau far above the pseudo-gradients leaves v = tau^2
        ("fedadagrad", {"tau": 1e3, "server_learning_rate": 2e3}, 5),
        ("fedyogi", {"tau": 1e3, "server_learning_rate": 2e3, "beta1": 0.0}, 5),
        ("fedadam", {"tau": 1e3, "server_learning_rate": 2e3, "beta1": 0.0, "beta2": 0.999999}, 1),
    ],
)
def test_degenerates_to_fedavg(federation, name, options, rounds):
    states, _ = train(federation, make_algorithm(name, **options), COHORTS[:rounds])
    assert_close(states.params, jax.tree.map(lambda x: x[:rounds], fedavg_params()), atol=1e-5)


def test_fedexp_with_identical_clients_is_fedavg():
    one = make_federation(sizes=(8,))
    offsets = jnp.asarray([0, 8, 16, 24], jnp.int32)
    examples = jax.tree.map(lambda x: jnp.tile(x, (3, *(1,) * (x.ndim - 1))), one.population.examples)
    federation = one._replace(population=fs.Population(examples, offsets), offsets=np.asarray(offsets))
    cohorts = np.tile(np.arange(3, dtype=np.int32), (3, 1))
    runs = [train(federation, make_algorithm(n), cohorts, batch_size=8)[0].params for n in ("fedavg", "fedexp")]
    assert_close(*runs)


def test_fedsgd_is_fedavg_with_one_step_on_everything_whatever_work_is_asked_for(federation):
    """Its reported losses too: over all examples, before and after the step."""
    whole = {"batch_size": max(SIZES), "local_epochs": 1, "client_losses": "examples"}
    expected, wanted = train(federation, make_algorithm("fedavg"), **whole)
    work = {"batch_size": 3, "local_steps": 5, "lanes": 2, "client_losses": "examples"}
    states, metrics = train(federation, make_algorithm("fedsgd"), **work)
    assert_close(states.params, expected.params)
    for field in ("loss_before", "loss_after", "drift", "update_norm"):
        np.testing.assert_allclose(getattr(metrics, field), getattr(wanted, field), rtol=1e-4)


def test_fedsgd_averages_the_statistics_of_a_model():
    federation = make_federation()
    params = fs.Variables(federation.params, {"mean": jnp.zeros(5)})

    def with_statistics(model, batch, key):
        return loss_fn(model.params, batch, key), {"mean": batch["inputs"].mean(0)}

    algorithm = fs.fedsgd(with_statistics, client_tx=optax.sgd(RATE))
    states, _ = train(federation._replace(params=params), algorithm, batch_size=1)
    np.testing.assert_allclose(weights_of(last(states.params.params)), fedsgd(federation), atol=1e-5)
    rows = rows_of(federation, COHORTS[-1])
    statistics = last(states.params.statistics)["mean"]
    np.testing.assert_allclose(statistics, federation.inputs[rows].mean(0), atol=1e-6)


def test_an_empty_round_does_not_move_a_server_with_momentum(federation):
    cohorts = np.stack([COHORTS[0], np.full(4, -1, np.int32)])
    states, _ = train(federation, make_algorithm("fedadam"), cohorts)
    first, second = (jax.tree.map(lambda x: x[i], (states.params, states.server)) for i in range(2))  # noqa: B023
    assert_close(first, second)


def test_adaptive_memory_is_float32_and_params_keep_their_dtype():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = fed_adam(optax.constant_schedule(0.1))
    state = tx.init(params)
    updates, after = jax.jit(tx.update)({"w": jnp.full(3, 2.0, jnp.bfloat16)}, state, params)
    moved = jax.tree.map(lambda x: x.dtype, optax.apply_updates(params, updates))
    assert moved == {"w": jnp.bfloat16}
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, after)
    np.testing.assert_allclose(after[0].second["w"], 0.99 * 1e-6 + 0.01 * 4, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_unit_displacement_is_the_sum_of_the_weights_of_the_gradients(nesterov):
    """Against the displacement itself, differentiated by each gradient."""
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lambda step: 0.3 / (1 + step), 0.9, nesterov))

    def displaced(gradients):
        x, state = jnp.zeros(()), tx.init(jnp.zeros(()))
        for g in gradients:
            step, state = tx.update(g, state, x)
            x = jnp.asarray(optax.apply_updates(x, step))
        return -x

    expected = jax.grad(displaced)(jnp.zeros(7)).sum()
    moved = unit_displacement(tx, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}, 7)
    assert moved["a"].shape == (1, 1)
    np.testing.assert_allclose(np.stack([moved["a"][0, 0], moved["b"]]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *[(n, "server_learning_rate", 0) for n in ("fedadam", "fedyogi", "fedadagrad", "fedavgm")],
        *[(n, "beta1", 1.0) for n in ("fedadam", "fedyogi", "fedadagrad")],
        *[(n, "beta2", -0.1) for n in ("fedadam", "fedyogi")],
        *[(n, "tau", 0.0) for n in ("fedadam", "fedyogi", "fedadagrad")],
        ("fedavgm", "server_momentum", 1),
        ("fedavgm", "server_momentum", "much"),
        ("fedexp", "eps", 0.0),
        ("fedexp", "weighting", "none"),
        ("fedsgd", "weighting", "none"),
    ],
)
def test_errors_name_the_option_and_the_fix(name, option, value):
    with pytest.raises(fs.InputError) as error:
        make_algorithm(name, **{option: value})
    one_line(error, f"{option}: ", repr(value), "give" if option != "weighting" else "choose")
