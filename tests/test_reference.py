"""The papers' pseudo-code in plain NumPy loops, in float64, against the compiled round."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BATCH, RATE, SIZES, make_algorithm

import fedjax_sim as fs
from fedjax_sim.core.permute import permuted
from fedjax_sim.core.round import TRAIN, stage_key
from fedjax_sim.messages.sparsify import kept_entries

ROUNDS, EPOCHS = 5, 2
KEY = jax.random.key(3)
COHORTS = np.array([[0, 3, 4, 1], [5, 1, 3, 2], [2, 4, 0, 3], [3, 1, 2, 5], [0, 1, 4, 3]], np.int32)


def gradient(w, x, y):
    """Of the mean cross-entropy of logistic regression; the last row of `w` is the bias."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    logits = x @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y)


@cache
def order_of(client, number, epoch):
    return np.asarray(orders(number, client, SIZES[client], epoch))[: SIZES[client]]


@jax.jit
def orders(number, client, size, epoch):
    key = jax.random.fold_in(stage_key(KEY, number, TRAIN), client)
    return permuted(key, size, jnp.arange(max(SIZES)) % size, epoch)


def batches(federation, client, number):
    """Every example once per epoch; only the order comes from the library."""
    start, size = federation.offsets[client], SIZES[client]
    for epoch in range(EPOCHS):
        order = start + order_of(int(client), int(number), epoch)
        assert sorted(order) == list(range(start, start + size))
        for first in range(0, size, BATCH):
            rows = order[first : first + BATCH]
            yield federation.inputs[rows].astype(np.float64), federation.labels[rows]


def start_weights(federation):
    return np.concatenate([federation.params["kernel"], federation.params["bias"][None]]).astype(np.float64)


def local(federation, w, client, number, correction=None):
    """Local SGD; returns the weights, and the mean of the raw gradients."""
    gradients = []
    for x, y in batches(federation, client, number):
        gradients.append(gradient(w, x, y))
        w = w - RATE * (gradients[-1] + (0 if correction is None else correction))
    return w, np.mean(gradients, axis=0), len(gradients)


def fedavg(federation, weighting="examples"):
    w = start_weights(federation)
    for number, ids in enumerate(COHORTS):
        weights = np.array([SIZES[i] if weighting == "examples" else 1.0 for i in ids])
        trained = [local(federation, w, i, number)[0] for i in ids]
        w = np.tensordot(weights / weights.sum(), trained, 1)
    return w


def fedavg_topk(federation, fraction=0.3):
    w = start_weights(federation)
    errors = np.zeros((len(SIZES), *w.shape))
    kept = kept_entries(w.size, fraction)
    for number, ids in enumerate(COHORTS):
        total = 0.0
        for i in ids:
            wanted = w - local(federation, w, i, number)[0] + errors[i]
            sent = np.where(np.abs(wanted) >= np.sort(np.abs(wanted).ravel())[-kept], wanted, 0)
            errors[i] = wanted - sent
            total = total + SIZES[i] * sent
        w = w - total / sum(SIZES[i] for i in ids)
    return w


def scaffold(federation):
    """Algorithm 1 with option II as printed: c_i+ = c_i - c + (x - y_i) / (K eta)."""
    w = start_weights(federation)
    c, own = np.zeros_like(w), np.zeros((len(SIZES), *w.shape))
    for number, ids in enumerate(COHORTS):
        updates, changes = [], []
        for i in ids:
            y, _, steps = local(federation, w, i, number, correction=c - own[i])
            new = own[i] - c + (w - y) / (steps * RATE)
            updates.append(w - y)
            changes.append(new - own[i])
            own[i] = new
        weights = np.array([SIZES[i] for i in ids], float)
        w = w - np.tensordot(weights / weights.sum(), updates, 1)
        c = c + np.sum(changes, axis=0) / len(SIZES)
    return w


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("fedavg", {}, fedavg),
        ("fedavg", {"weighting": "uniform"}, lambda f: fedavg(f, "uniform")),
        ("fedavg_topk", {"fraction": 0.3}, fedavg_topk),
        ("scaffold", {}, scaffold),
    ],
)
def test_equals_the_papers_pseudo_code(federation, name, options, reference):
    algorithm = make_algorithm(name, **options)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH, local_epochs=EPOCHS, lanes=3))
    state = fs.init(algorithm, federation.params, len(SIZES))
    for ids in COHORTS:
        state, _ = round_fn(state, fs.select(federation.population, ids), KEY)
    got = np.concatenate([state.params["kernel"], state.params["bias"][None]])
    np.testing.assert_allclose(got, reference(federation), atol=1e-5)


def test_metrics_are_what_they_say(federation):
    algorithm = make_algorithm("fedavg")
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH, local_epochs=EPOCHS, client_losses="examples"))
    state = fs.init(algorithm, federation.params, len(SIZES))
    after, metrics = round_fn(state, fs.select(federation.population, COHORTS[0]), KEY)

    def mean_loss(w, client):
        rows = slice(federation.offsets[client], federation.offsets[client + 1])
        x = np.concatenate([federation.inputs[rows], np.ones((SIZES[client], 1))], axis=1)
        logits = x @ w
        chosen = logits[np.arange(len(logits)), federation.labels[rows]]
        return np.mean(np.log(np.exp(logits).sum(1)) - chosen)

    w = start_weights(federation)
    trained = [local(federation, w, i, 0)[0] for i in COHORTS[0]]
    norms = np.array([np.linalg.norm(w - y) for y in trained])
    sizes = np.array([SIZES[i] for i in COHORTS[0]])
    moved = w - np.concatenate([after.params["kernel"], after.params["bias"][None]])
    np.testing.assert_allclose(metrics.update_norm, norms, rtol=1e-4)
    np.testing.assert_allclose(metrics.aggregate_norm, np.linalg.norm(moved), rtol=1e-4)
    diversity = (sizes @ norms**2 / sizes.sum()) / np.linalg.norm(moved) ** 2
    np.testing.assert_allclose(metrics.gradient_diversity, diversity, rtol=1e-3)
    np.testing.assert_allclose(metrics.loss_before, [mean_loss(w, i) for i in COHORTS[0]], rtol=1e-4)
    np.testing.assert_allclose(
        metrics.loss_after, [mean_loss(y, i) for y, i in zip(trained, COHORTS[0], strict=True)], rtol=1e-4
    )
    np.testing.assert_array_equal(metrics.examples, sizes)
    np.testing.assert_array_equal(metrics.steps, EPOCHS * -(-sizes // BATCH))
    np.testing.assert_array_equal(metrics.uplink_bits, 18 * 32)
    np.testing.assert_array_equal(metrics.downlink_bits, 18 * 32)
