"""DP-SGD inside clients: clipping and noise by example, Poisson batches, and what they are counted as."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, FEATURES, RATE, SIZES, assert_equal, loss_fn, make_algorithm, make_federation, one_line
from scipy.stats import binom, binomtest, chisquare, kstest, norm

import fedjax_sim as fs
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.client import LocalData, StepsOnly, binomial, poisson_slots
from fedjax_sim.core.server import optimizer
from fedjax_sim.core.types import trained
from fedjax_sim.privacy import PrivateLoss, privatize_examples
from fedjax_sim.privacy.accounting import example_spending, gaussian_spending

FEDERATION = make_federation()
B, CLIP = 4, 0.7
ROWS = poisson_slots(B)
KEY = jax.random.key(5)


def batch(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    inputs = 3 * rng.standard_normal((rows, FEATURES)).astype(np.float32)
    return {"inputs": inputs, "labels": rng.integers(0, CLASSES, rows).astype(np.int32)}


@partial(jax.jit, static_argnums=0)
def gradient(batch_size, clip_norm, noise_multiplier, params, rows, mask, key):
    private = PrivateLoss(loss_fn, clip_norm, noise_multiplier, batch_size)
    return private.gradient(params, rows, mask, key)[2]


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def by_hand(rows, mask):
    """Cross-entropy's gradient of each example, clipped, summed and divided by the batch size expected."""
    w = np.asarray(FEDERATION.params["kernel"], np.float64)
    total = np.zeros(CLASSES + w.size)
    for x, y, counts in zip(rows["inputs"].astype(np.float64), rows["labels"], mask, strict=True):
        p = np.exp(x @ w)
        p = p / p.sum() - np.eye(CLASSES)[y]
        g = np.concatenate([p, np.outer(x, p).ravel()])  # leaves in order of their names: bias, kernel
        total += counts * g * min(1, CLIP / np.linalg.norm(g))
    return total / B


def test_each_example_is_clipped_and_the_sum_is_divided_by_the_expected_size():
    for count in (0, 3, ROWS):
        mask = np.arange(ROWS) < count
        got = gradient(B, CLIP, 0.0, FEDERATION.params, batch(), mask, KEY)
        np.testing.assert_allclose(flat(got), by_hand(batch(), mask), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38, -1e30])
def test_one_example_moves_the_gradient_by_its_share_at_most(value):
    rows, mask = batch(), np.arange(ROWS) < 7
    whole = flat(gradient(B, CLIP, 0.0, FEDERATION.params, rows, mask, KEY))
    rows["inputs"][2] = value
    moved = flat(gradient(B, CLIP, 0.0, FEDERATION.params, rows, mask, KEY)) - whole
    assert np.linalg.norm(moved) <= 2 * CLIP / B * (1 + 1e-5)
    gone = flat(gradient(B, CLIP, 0.0, FEDERATION.params, rows, mask & (np.arange(ROWS) != 2), KEY)) - whole
    assert 0 < np.linalg.norm(gone) <= CLIP / B * (1 + 1e-5)


def test_the_noise_is_gaussian_of_its_scale_and_fresh_in_every_step():
    mask = np.zeros(ROWS, bool)
    keys = jax.random.split(KEY, 300)
    drawn = jax.jit(jax.vmap(lambda k: gradient(B, CLIP, 2.0, FEDERATION.params, batch(), mask, k)))(keys)
    noise, scale = flat(drawn), 2.0 * CLIP / B
    assert kstest(noise, norm(scale=scale).cdf).pvalue > 1e-3
    assert kstest(noise, norm(scale=scale * 2 / 3).cdf).pvalue < 1e-12
    assert kstest(noise, norm(scale=scale * 3 / 2).cdf).pvalue < 1e-12
    assert len(np.unique(noise)) > 0.99 * len(noise)


def test_batches_hold_each_example_independently_at_the_rate_stated():
    size, start, steps = 30, 4, 2000
    examples = {"row": jnp.arange(50)}
    data = LocalData(jnp.int32(0), examples, jnp.int32(start), jnp.int32(size), jnp.int32(1), KEY, B, (1,),
                     full_losses=False, poisson=True)  # fmt: skip
    rows, mask = jax.jit(jax.vmap(data.batch))(jnp.arange(steps))
    rows, mask = np.asarray(rows["row"]) - start, np.asarray(mask)
    present = np.zeros((steps, size), int)
    for step in range(steps):
        drawn = rows[step][mask[step]]
        assert len(set(drawn)) == len(drawn)
        present[step, drawn] = 1
    rate = B / size
    assert all(binomtest(int(n), steps, rate).pvalue > 1e-5 for n in present.sum(0))
    counts = present.sum(1)  # binomial, hence of this variance: a fixed size would have none
    assert abs(counts.var() / (size * rate * (1 - rate)) - 1) < 0.15
    together = (present[:, 0] & present[:, 1]).sum()
    assert binomtest(int(together), steps, rate**2).pvalue > 1e-4


@pytest.mark.parametrize(("size", "rate"), [(3000, 0.01), (40, 0.5), (12, 1.5)])
def test_the_number_of_examples_is_binomial(size, rate):
    most = 60
    keys = jax.random.split(KEY, 5000)
    draw = jax.jit(jax.vmap(lambda k: binomial(k, jnp.int32(size), jnp.float32(rate), most)))
    counts = np.asarray(draw(keys))
    if rate >= 1:
        assert (counts == size).all()
        return
    expected = binom.pmf(np.arange(most), size, rate) * len(keys)
    often = expected > 5
    found = np.bincount(counts, minlength=most)[:most]
    assert chisquare(np.append(found[often], found[~often].sum()),
                     np.append(expected[often], len(keys) - expected[often].sum())).pvalue > 1e-3  # fmt: skip


def spent(private, turns):
    assert private.spending is not None
    return private.spending.epsilon(turns)


def made(**options):
    some = {"client_tx": optax.sgd(RATE), "sizes": SIZES, "cohort_size": 6, "batch_size": B, "clip_norm": CLIP}
    return privatize_examples(fs.fedavg, loss_fn, **{**some, "delta": 1e-4, "noise_multiplier": 1.0, **options})


def test_epsilon_is_that_of_the_client_whose_size_makes_it_largest():
    private = made(local_epochs=2)
    # a client of up to B examples takes them all in each of its 2 steps; others are sampled
    small = gaussian_spending(1.0, delta=1e-4).epsilon(3 * 2)
    assert spent(private, 3) == pytest.approx(small, rel=1e-3)
    steps = made(sizes=[16, 16], local_steps=5, cohort_size=2)
    sampled = gaussian_spending(1.0, delta=1e-4, rate=B / 16).epsilon(2 * 5)
    assert spent(steps, 2) == pytest.approx(sampled, rel=2e-2)
    assert steps.spending is not None
    assert (steps.spending.unit, steps.spending.sampled, steps.local_sampling) == ("example", False, "poisson")
    target = made(noise_multiplier=None, epsilon=5.0, rounds=4, sizes=[16, 16], local_steps=5, cohort_size=2)
    assert 0.98 * 5 < spent(target, 4) <= 5.0


def test_what_is_hidden_is_what_an_example_says_and_not_how_many_there_are():
    """An example more or less changes its client's steps and the chances of all the others: sizes are public."""
    of_sizes = [made(sizes=[size, 400], cohort_size=2, batch_size=16, delta=None) for size in (16, 17)]
    spent_by_a_turn = [spent(private, 1) for private in of_sizes]
    assert abs(spent_by_a_turn[1] / spent_by_a_turn[0] - 1) > 0.05  # two steps of near all instead of one of all
    for private in of_sizes:
        assert private.spending is not None
        assert private.spending.relation == "zero out one"
        assert "each example, zero out one (sizes are public), delta" in private.statement
        assert private.spending.delta == pytest.approx(0.1 / 417, rel=3e-3)  # over all examples, of any client


def test_only_the_client_that_spends_most_is_worked_out():
    sizes = (10, 11, 16, 23, 31)
    private = made(sizes=sizes, cohort_size=5, noise_multiplier=1.5, local_epochs=3)
    each = [example_spending(1.5, size, B, ROWS, 3 * -(-size // B), delta=1e-4)(4) for size in sizes]
    assert spent(private, 4) == max(each)


def test_a_round_trains_and_is_refused_without_poisson_batches():
    private = made(noise_multiplier=0.5)
    state = fs.init(private.algorithm, FEDERATION.params, len(SIZES))
    cohort = fs.select(FEDERATION.population, private.sampler.draw(0, 0))
    round_fn = jax.jit(fs.make_round(private.algorithm, batch_size=B, local_sampling="poisson", lanes=2))
    after, metrics = round_fn(state, cohort, KEY)
    assert 0 < float(metrics.aggregate_norm) < 10
    np.testing.assert_array_equal(metrics.steps, -(-np.asarray(SIZES) // B))
    order = fs.select(FEDERATION.population, np.arange(len(SIZES))[::-1].astype(np.int32))
    alone, _ = jax.jit(fs.make_round(private.algorithm, batch_size=B, local_sampling="poisson"))(state, order, KEY)
    np.testing.assert_allclose(flat(alone.params), flat(after.params), atol=1e-5)
    with pytest.raises(fs.InputError) as error:
        jax.eval_shape(fs.make_round(private.algorithm, batch_size=B), state, cohort, KEY)
    one_line(error, "local_sampling: batches of 4 rows", 'local_sampling="poisson"')


@pytest.mark.parametrize("factory", [fs.mime, fs.fedsgd, fs.qffl, fs.ifca, fs.ditto, fs.perfedavg])
def test_algorithms_that_look_at_examples_uncounted_are_refused(factory):
    with pytest.raises(fs.InputError) as error:
        privatize_examples(factory, loss_fn, client_tx=optax.sgd(RATE), sizes=SIZES, cohort_size=6, batch_size=B,
                           clip_norm=CLIP, noise_multiplier=1.0)  # fmt: skip
    one_line(error, "algorithm: its clients look at their examples beyond the local steps", "take fedavg")


# --- which algorithms are counted ------------------------------------------------------------------------------------


def lookalikes():
    """Factories that are called `fedavg` and are not, and one that is not called so and is."""

    def personal(loss, *, client_tx):  # sends what Ditto keeps
        ditto = fs.ditto(loss, client_tx=client_tx)

        def run(received, own, data, key):
            message, own, info = ditto.client.run(received, own, data, key)
            return message._replace(update=jax.tree.map(jnp.subtract, received, own)), own, info

        return ditto._replace(client=ditto.client._replace(run=run))

    def wrapped(loss, **options):  # a loss around the loss, which has no gradient of its own
        return fs.fedavg(lambda params, batch, key: 2 * loss(params, batch, key), **options)

    def replaced(loss, **options):  # FedAvg in all but what is run
        inner = fs.fedavg(loss, **options)
        return inner._replace(client=inner.client._replace(run=fs.perfedavg(loss, **options).client.run))

    def asking(loss, **options):  # FedAvg whose clients are asked for a gradient first
        return fs.fedavg(loss, **options)._replace(survey=fs.mime(loss, **options).survey)

    for factory in (personal, wrapped, replaced, asking):
        factory.__name__ = "fedavg"
        yield factory


@pytest.mark.parametrize("factory", [*lookalikes(), partial(fs.scaffold, option=1)])
def test_no_name_makes_an_algorithm_private(factory):
    with pytest.raises(fs.InputError) as error:
        privatize_examples(factory, loss_fn, client_tx=optax.sgd(RATE), sizes=SIZES, cohort_size=6, batch_size=B,
                           clip_norm=CLIP, noise_multiplier=1.0)  # fmt: skip
    one_line(error, "algorithm: its clients", "take fedavg")


def own_algorithm(loss, *, client_tx):
    """Of parts that the library has, put together by a user."""
    return fs.Algorithm(fs.fedavg(loss, client_tx=client_tx).client, mean("uniform"), optimizer(optax.adam(0.1)))


@pytest.mark.parametrize("factory", [partial(fs.fedavg, weighting="uniform"), partial(fs.scaffold, option=2),
                                     lambda loss, **options: fs.fedprox(loss, mu=0.1, **options), own_algorithm,
                                     fs.signsgd])  # fmt: skip
def test_whatever_sees_examples_in_local_steps_alone_is_private(factory):
    private = privatize_examples(factory, loss_fn, client_tx=optax.sgd(RATE), sizes=SIZES, cohort_size=6, batch_size=B,
                                 clip_norm=CLIP, noise_multiplier=1.0)  # fmt: skip
    assert private.statement == made().statement.replace("delta 0.0001", "delta 0.001")


class Probe(NamedTuple):
    """A loss of the examples whose gradient is none of them."""

    def __call__(self, model, batch, key):
        return loss_fn(model, batch, key)

    def gradient(self, model, batch, mask, key):
        return jnp.zeros(()), model, probed(trained(model))


@jax.jit
def probed(params):
    return jax.tree.map(jnp.ones_like, params)


def asked_for(jaxpr):
    """Places in a program that ask for a probe's gradient, which all loops but that over steps would repeat."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.params.get("name") == "probed"
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            count += asked_for(inner) if hasattr(inner, "eqns") else 0
    return count


OPTIONS: dict[str, dict[str, str]] = {"fedper": {"personal": "bias"}}
PROMISE = [name for name in fs.ALGORITHMS if isinstance(make_algorithm(name).client.run, StepsOnly)]


def test_most_algorithms_promise():
    assert {"fedavg", "fedprox", "scaffold", "fednova", "feddyn", "median"} <= set(PROMISE)
    assert not {"ditto", "fedsgd", "qffl", "ifca", "perfedavg", "fedrep", "apfl", "afl", "pfedme"} & set(PROMISE)


@pytest.mark.parametrize("name", PROMISE)
def test_promises_are_kept(name):
    """Where no gradient tells of the examples no message does, and there is one gradient a step."""
    algorithm = fs.ALGORITHMS[name](Probe(), client_tx=optax.sgd(RATE), **OPTIONS.get(name, {}))
    params, steps = {**FEDERATION.params, "norm": jnp.ones(2)}, jnp.int32(3)
    server = algorithm.server.init(params, 6)
    broadcast = algorithm.server.broadcast(params, server)
    inputs = jnp.ones((9, FEATURES))

    def messages(examples):
        data = LocalData(jnp.int32(0), examples, jnp.int32(0), jnp.int32(9), steps, KEY, B, (1,),
                         full_losses=False)  # fmt: skip
        message, memory, _ = algorithm.client.run(broadcast, algorithm.client.init(params), data, KEY)
        return message, algorithm.client.run(broadcast, memory, data, KEY)[0]

    one = {"inputs": inputs, "labels": jnp.zeros(9, jnp.int32)}
    assert asked_for(jax.make_jaxpr(messages)(one).jaxpr) == 2  # once a round
    assert_equal(messages(one), messages({"inputs": -5 * inputs, "labels": jnp.ones(9, jnp.int32)}))
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(messages(one)))


def test_bad_settings_are_one_line():
    for options, part in (
        ({"noise_multiplier": None}, "epsilon: None for None rounds"),
        ({"clip_norm": -1}, "clip_norm: -1"),
        ({"sizes": [0, 0], "cohort_size": 2}, "sizes: nobody"),
        ({"delta": 2}, "delta: 2"),
        ({"sampling": "by_size"}, "sampling: 'by_size'"),
    ):
        with pytest.raises(fs.InputError) as error:
            made(**options)
        one_line(error, part)
    with pytest.raises(fs.InputError) as error:
        PrivateLoss(loss_fn, 1.0, 1.0, B).gradient(fs.Variables({}, {}), {}, jnp.ones(ROWS, bool), KEY)
    one_line(error, "params: statistics")
