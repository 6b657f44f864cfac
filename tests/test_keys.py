"""One seed, and no key used for two things: every key that is drawn from or split is recorded, in whole rounds."""

from collections import Counter

import jax
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, loss_fn, make_federation

import fedjax_sim as fs
from fedjax_sim.attacks import attacked, gaussian
from fedjax_sim.core import round as rounds
from fedjax_sim.messages import compressed_broadcast, compressed_messages, error_feedback, qsgd, random_k, rotated
from fedjax_sim.privacy import central, local
from fedjax_sim.privacy.examples import PrivateLoss

N, KEY = len(SIZES), jax.random.key(0)
DRAWN = ("uniform", "normal", "laplace", "bernoulli", "rademacher", "permutation", "randint", "bits", "split")


@pytest.fixture
def used(monkeypatch):
    """`(what was drawn, the key's words)` of every key that the program below consumes, and of keys folded from."""
    seen, parents = [], []

    def note(into, what, key):
        data = key if key.dtype == np.uint32 else jax.random.key_data(key)
        jax.debug.callback(lambda words: into.append((what, tuple(np.asarray(words).ravel().tolist()))), data)

    def spied(name, into, original):
        def draw(key, *args, **kwargs):
            note(into, name, key)
            return original(key, *args, **kwargs)

        return draw

    for name in DRAWN:
        monkeypatch.setattr(jax.random, name, spied(name, seen, getattr(jax.random, name)))
    monkeypatch.setattr(jax.random, "fold_in", spied("fold_in", parents, jax.random.fold_in))

    def loss(params, batch, key):
        note(seen, "loss", key)
        return loss_fn(params, batch, key)

    return loss, seen, parents


def plain(name, **options):
    return lambda loss: fs.ALGORITHMS[name](loss, client_tx=optax.sgd(0.1), **options)


def everything(loss):
    """Poisson batches under DP-SGD, compressed both ways, and attacked."""
    algorithm = fs.fedavg(PrivateLoss(loss, 1.0, 1.0, BATCH), client_tx=optax.sgd(0.1))
    algorithm = compressed_messages(algorithm, error_feedback(rotated(qsgd(3))))
    return attacked(compressed_broadcast(algorithm, random_k(0.5)), gaussian(), np.arange(N) < 2)


def hidden(loss):
    return local(plain("scaffold", option=1)(loss), clip_norm=1.0, noise_multiplier=1.0)


def summed(loss):
    algorithm = compressed_messages(plain("fedrep")(loss), random_k(0.5))
    return central(algorithm, clip_norm=1.0, noise_multiplier=1.0, clients=3)


PROGRAMS = {
    "everything": (everything, {"local_sampling": "poisson"}),
    "local noise": (hidden, {}),
    "central noise": (summed, {}),
    "two models": (plain("ditto"), {}),  # on the same batches, which are drawn alike
    "a pass and steps": (plain("afl"), {}),
    "a choice": (plain("ifca"), {"local_sampling": "poisson"}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_key_is_used_for_two_things(name, used):
    loss, seen, parents = used
    make, work = PROGRAMS[name]
    federation, algorithm = make_federation(), make(loss)
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=3, **work)
    cohorts = np.array([[0, 3, 4], [3, 5, 1]])

    @jax.jit
    def one_round(state, ids):
        return round_fn(state, fs.select(federation.population, ids), KEY)[0]

    state = jax.jit(lambda: fs.init(algorithm, federation.params, N))()
    for ids in cohorts:
        state = one_round(state, ids)
    jax.block_until_ready(state)
    jax.effects_barrier()
    twice = {use: count for use, count in Counter(seen).items() if count > 1}
    assert not twice
    kinds = Counter(words for _, words in set(seen))
    assert max(kinds.values()) == 1  # nor for a draw of another kind
    assert not {words for _, words in seen} & {words for _, words in parents}
    assert len(seen) > 10


def test_stages_are_distinct():
    stages = {name: value for name, value in vars(rounds).items() if name.isupper() and isinstance(value, int)}
    assert len(stages) >= 10
    assert len(set(stages.values())) == len(stages)
    words = {tuple(np.asarray(jax.random.key_data(rounds.stage_key(KEY, 3, stage)))) for stage in stages.values()}
    assert len(words) == len(stages)
