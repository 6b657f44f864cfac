"""The larger models: sizes by hand, cells and attention against NumPy, and whether they learn, alone and federated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import one_line

import fedjax_sim as fs
from fedjax_sim.models import build_model
from fedjax_sim.models.recurrent import LSTM
from fedjax_sim.models.resnet import GroupNorm
from fedjax_sim.models.transformer import attention

IMAGE, TEXT = (8, 8, 1), (6,)
CASES = {"resnet": IMAGE, "vit": IMAGE, "char_lstm": TEXT}
KEY = jax.random.key(0)


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def examples(name: str, number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = rng.integers(0, 5 if name == "char_lstm" else 256, (number, *CASES[name])).astype(np.uint8)
    return {"inputs": inputs, "labels": rng.integers(0, 5, number).astype(np.int32)}


SLOW = pytest.param("resnet", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[SLOW, "vit", "char_lstm"])
def case(request):
    return request.param, build_model(request.param, CASES[request.param], 5)


def test_parameters_are_as_many_as_counted_by_hand():
    stage = lambda i, o: 9 * i * o + o + 9 * o * o + o + 4 * o  # noqa: E731
    assert count(build_model("resnet", (32, 32, 3), 10).params) == (
        27 * 16 + 16 + 32 + stage(16, 16) + stage(16, 32) + stage(32, 64) + 650
    )
    layer = 2 * 128 + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 128 + 128 + 64
    assert count(build_model("vit", (28, 28, 1), 10).params) == 16 * 64 + 64 + 49 * 64 + 4 * layer + 128 + 650
    lstm = lambda i: 4 * 256 * (i + 256 + 1)  # noqa: E731
    assert count(build_model("char_lstm", (80,), 90, vocabulary=90).params) == 90 * 8 + lstm(8) + lstm(256) + 257 * 90


def test_an_lstm_is_its_equations():
    rng = np.random.default_rng(0)
    cell, x = LSTM(3, 4, rng=rng), rng.normal(size=(2, 5, 3)).astype(np.float32)
    kernel, recurrent, bias = (np.asarray(p[...]) for p in (cell.kernel, cell.recurrent, cell.bias))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    hidden, state = np.zeros((2, 4)), np.zeros((2, 4))
    for t in range(5):
        gates = x[:, t] @ kernel + hidden @ recurrent + bias
        entry, forget, new, leave = (gates[:, 4 * i : 4 * i + 4] for i in range(4))
        state = sigmoid(forget) * state + sigmoid(entry) * np.tanh(new)
        hidden = sigmoid(leave) * np.tanh(state)
    np.testing.assert_allclose(cell(jnp.asarray(x))[:, -1], hidden, atol=1e-5)
    assert bias[4:8].tolist() == [1.0] * 4


def test_attention_is_its_equation():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 4, 5)).astype(np.float32)
    scores = np.exp(np.einsum("bhtd,bhsd->bhts", q, k) / 5**0.5)
    expected = np.einsum("bhts,bhsd->bhtd", scores / scores.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attention(*(jnp.asarray(x) for x in (q, k, v))), expected, atol=1e-5)


def test_groups_are_normalised_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (3, 4, 4, 16)), jnp.float32)
    out = GroupNorm(16)(x)
    groups = np.asarray(out).reshape(3, 4, 4, 2, 8)
    np.testing.assert_allclose(groups.mean((1, 2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std((1, 2, 4)), 1, atol=1e-3)
    np.testing.assert_allclose(GroupNorm(16)(x[1:2]), out[1:2], atol=1e-6)


def test_an_example_is_classified_by_itself_and_a_few_are_learnt(case):
    name, model = case
    batch = examples(name, 6)
    tx = optax.adam(3e-3)

    @jax.jit
    def fit(params):
        def step(_, carry):
            params, memory = carry
            gradient = jax.grad(lambda p: model.loss_fn(p, batch, KEY).mean())(params)
            updates, memory = tx.update(gradient, memory, params)
            return optax.apply_updates(params, updates), memory

        return jax.lax.fori_loop(0, 60, step, (params, tx.init(params)))[0]

    logits = model.logits_fn(model.params, batch["inputs"])
    assert logits.shape == (6, 5)
    np.testing.assert_allclose(model.logits_fn(model.params, batch["inputs"][::-1])[::-1], logits, atol=1e-4)
    assert float(model.metric_fn(fit(model.params), batch)["accuracy"].mean()) == 1.0


@pytest.mark.parametrize(
    "case", [SLOW, pytest.param("vit", marks=pytest.mark.slow), "char_lstm"], indirect=True, scope="module"
)
def test_clients_train_it_together(case):
    name, model = case
    data = examples(name, 8)
    population = fs.Population(jax.tree.map(jnp.asarray, data), jnp.array([0, 3, 8]))
    algorithm = fs.fedavg(model.loss_fn, client_tx=optax.sgd(0.05))
    round_fn = fs.make_round(algorithm, batch_size=4, local_steps=2, lanes=2)
    run = fs.make_simulation(round_fn, cohort_size=2, max_rounds=4)
    _, metrics = run(fs.init(algorithm, model.params, 2), population, KEY, 4)
    assert np.isfinite(metrics.loss_after).all()
    assert metrics.loss_before[-1].mean() < metrics.loss_before[0].mean()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("char_lstm", (8, 8, 1), ("char_lstm", "[8, 8, 1]", "[length]")),
        ("resnet", (30,), ("resnet", "[30]")),
        ("vit", (11, 11, 1), ("vit", "11 x 11")),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(name, shape, words):
    with pytest.raises(fs.InputError) as error:
        build_model(name, shape, 5)
    one_line(error, *words)
