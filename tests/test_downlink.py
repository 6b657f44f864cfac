"""Compressed broadcasts: what clients know of the model, what it costs, and where it leads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, RATE, SIZES, assert_close, assert_equal, loss_fn, make_federation, one_line

import fedjax_sim as fs
from fedjax_sim.messages import identity, top_k
from fedjax_sim.messages.downlink import compressed_broadcast

FEDERATION, N, KEY = make_federation(), len(SIZES), jax.random.key(2)
COHORTS = ([0, 3, 4], [5, 1, 3], [2, 4, 0], [-1, -1, -1], [3, 1, 2])


def made(name, compressor=None):
    plain = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE))
    return plain if compressor is None else compressed_broadcast(plain, compressor)


def states(algorithm, cohorts=COHORTS):
    state = fs.init(algorithm, FEDERATION.params, N)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH))
    history = []
    for ids in cohorts:
        state, metrics = round_fn(state, fs.select(FEDERATION.population, jnp.asarray(ids)), KEY)
        history.append((state, metrics))
    return history


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_sent_whole_it_is_the_algorithm_itself(name):
    plain, shown = states(made(name)), states(made(name, identity()))
    for (before, metrics), (after, compressed) in zip(plain, shown, strict=True):
        assert_close(after.params, before.params, atol=1e-6)
        assert_close(after.server.model, after.params)
        assert_equal(compressed.downlink_bits, metrics.downlink_bits)


def test_clients_hold_what_was_sent_and_the_rest_follows():
    """By hand: after each round the largest changes of each leaf are known, and those alone."""
    known = jax.tree.map(np.asarray, FEDERATION.params)
    for (state, metrics), ids in zip(states(made("scaffold", top_k(0.2))), COHORTS, strict=True):
        if max(ids) >= 0:
            news = {name: np.asarray(value) - known[name] for name, value in state.params.items()}
            least = np.sort(np.abs(np.concatenate([x.ravel() for x in news.values()])))[-4]  # of 18 entries
            known = {name: known[name] + np.where(np.abs(x) >= least, x, 0) for name, x in news.items()}
        assert_close(state.server.model, jax.tree.map(jnp.asarray, known), atol=1e-6)
        bits = (top_k(0.2).wire(FEDERATION.params) or 0) + 18 * 32  # and SCAFFOLD's control variate, whole
        np.testing.assert_array_equal(metrics.downlink_bits, np.where(np.array(ids) >= 0, bits, 0))


def test_the_optimum_is_reached_all_the_same():
    """Everybody, full batches: gradient descent, whose optimum a fifth of the entries a round reaches too."""
    everybody = [list(range(N))] * 400
    cohort = fs.select(FEDERATION.population, jnp.asarray(everybody[0]))

    def end(algorithm):
        round_fn = fs.make_round(algorithm, batch_size=max(SIZES), local_steps=1)
        state = fs.init(algorithm, FEDERATION.params, N)
        return jax.jit(lambda s: jax.lax.fori_loop(0, 400, lambda _, s: round_fn(s, cohort, KEY)[0], s))(state)

    whole, parts = end(made("fedavg")), end(made("fedavg", top_k(0.2)))
    start = optax.tree.norm(jax.tree.map(jnp.subtract, whole.params, FEDERATION.params))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, whole.params, parts.params))) < 0.05 * float(start)


@pytest.mark.parametrize(("name", "part"), [("mime", "twice"), ("fedper", "part of the model")])
def test_what_it_cannot_do_is_refused(name, part):
    with pytest.raises(fs.InputError) as error:
        fs.init(made(name, identity()), FEDERATION.params, N)
    one_line(error, "algorithm", part)
