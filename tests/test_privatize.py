"""`privatize`: what is bound together agrees, is counted as it is drawn, and is refused where it guarantees nothing."""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import loss_fn, make_federation, one_line

import fedjax_sim as fs
from fedjax_sim.privacy import MECHANISMS, Adaptive, GuaranteeWarning, Ledger, privatize
from fedjax_sim.privacy.accounting import ADD, REPLACE, ZERO

N, C, ROUNDS, EPSILON = 40, 8, 10, 4.0
PARAMS = make_federation().params
SETTINGS: dict[str, Any] = {"num_clients": N, "cohort_size": C, "clip_norm": 1.0, "delta": 1e-3}
ALGORITHM = fs.fedavg(loss_fn, client_tx=optax.sgd(0.1))
# by mechanism: a sampling that it takes, who differs, and whether rounds count or turns
KINDS = {
    "gaussian": ("poisson", ADD, True),
    "laplace": ("poisson", ADD, True),
    "matrix": ("round_robin", ZERO, True),
    "discrete_gaussian": ("round_robin", ZERO, False),
    "local_gaussian": ("uniform", REPLACE, False),
    "local_laplace": ("all", REPLACE, False),
}


def made(mechanism="gaussian", algorithm=ALGORITHM, **options):
    settings: dict[str, Any] = SETTINGS | {"rounds": ROUNDS}
    if mechanism in KINDS:
        settings |= {"sampling": KINDS[mechanism][0]}
    if mechanism == "discrete_gaussian":
        settings |= {"params": PARAMS}
    return privatize(algorithm, mechanism=mechanism, **settings | options)


def cohorts(private, rounds=ROUNDS, seed=3):
    return [private.sampler.draw(seed, number) for number in range(rounds)]


def test_every_mechanism_is_tried_here():
    assert {*KINDS, "laplace_bare"} == set(MECHANISMS)


@pytest.mark.parametrize("mechanism", KINDS)
def test_a_target_is_met_and_not_by_far(mechanism):
    private = made(mechanism, epsilon=EPSILON)
    sampling, relation, sampled = KINDS[mechanism]
    assert private.spending is not None
    assert (private.spending.relation, private.spending.sampled) == (relation, sampled)
    times = ROUNDS if sampled or sampling != "round_robin" else ROUNDS // (N // C)
    assert 0.98 * EPSILON < private.spending.epsilon(times) <= EPSILON
    assert private.budget == EPSILON
    for word in (mechanism, sampling, relation, "delta 0.001", f"{private.noise_multiplier:.4g} clip norms"):
        assert word in private.statement
    assert "\n" not in private.statement


@pytest.mark.parametrize("sampling", ["poisson", "uniform", "round_robin", "all"])
def test_the_sampler_is_the_one_that_is_counted(sampling):
    private = made(sampling=sampling, noise_multiplier=1.0)
    drawn = [ids[ids >= 0] for ids in cohorts(private, 400)]
    assert all(len(set(ids.tolist())) == len(ids) for ids in drawn)
    counts = np.array([len(ids) for ids in drawn])
    if sampling == "poisson":  # its number varies as a binomial one does
        assert abs(counts.mean() - C) < 4 * math.sqrt(C * (1 - C / N) / 400)
        assert 0.7 < counts.var() / (C * (1 - C / N)) < 1.4
    else:
        assert set(counts) == {N if sampling == "all" else C}
    if sampling == "round_robin":
        for client in range(N):
            turns = np.flatnonzero([client in ids for ids in drawn])
            assert np.diff(turns).min() >= N // C


@pytest.mark.parametrize("mechanism", KINDS)
def test_a_ledger_counts_what_was_drawn_and_a_resumed_one_the_same(mechanism):
    private = made(mechanism, noise_multiplier=2.0)
    assert private.spending is not None
    drawn, ledger = cohorts(private), Ledger(private, N)
    spent = [ledger.spend(ids) for ids in drawn]
    turns = np.zeros(N, int)
    for number, (ids, epsilon) in enumerate(zip(drawn, spent, strict=True), 1):
        turns[ids[ids >= 0]] += 1
        assert epsilon == private.spending.epsilon(number if KINDS[mechanism][2] else turns.max())
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(spent))
    for stop in (1, 4, ROUNDS):
        resumed = Ledger(private, N)
        for ids in drawn[:stop]:
            resumed.spend(ids)
        assert [resumed.spend(ids) for ids in drawn[stop:]] == spent[stop:]


def test_no_round_is_affordable_that_exceeds_the_budget():
    private = made(noise_multiplier=1.0, epsilon=2.0)
    assert private.spending is not None
    drawn, ledger = cohorts(private, 50), Ledger(private, N)
    most = max(n for n in range(51) if private.spending.epsilon(n) <= 2.0)
    assert 0 < most < 50
    assert ledger.affordable(drawn) == most
    for ids in drawn[:most]:
        assert ledger.affordable([ids]) == 1
        assert (ledger.spend(ids) or 9.0) <= 2.0
    assert ledger.affordable([drawn[most]]) == 0
    assert Ledger(made(noise_multiplier=1.0), N).affordable(drawn) == 50  # no budget, no end


def test_turns_of_absent_clients_are_not_counted():
    private = made("local_gaussian", noise_multiplier=5.0)
    assert private.spending is not None
    ledger = Ledger(private, N)
    assert ledger.spend(np.array([-1, -1])) == private.spending.epsilon(0) == 0
    assert ledger.spend(np.array([3, -1])) == ledger.spend(np.array([4, -1])) == private.spending.epsilon(1)


def test_a_known_seed_needs_less_noise_where_turns_count():
    """No more than for the client that this seed draws most often."""
    anyone, known = (made("local_gaussian", epsilon=EPSILON, seed=seed) for seed in (None, 3))
    assert known.noise_multiplier < 0.9 * anyone.noise_multiplier
    assert known.spending is not None
    turns = np.bincount(np.concatenate(cohorts(known)), minlength=N).max()
    assert 0.98 * EPSILON < known.spending.epsilon(int(turns)) <= EPSILON


def test_without_a_guarantee_nothing_is_claimed():
    with pytest.warns(GuaranteeWarning):
        bare = made("laplace_bare", epsilon=1.0, guarantee="none", sampling="poisson")
    for private in (bare, made(noise_multiplier=1.0, guarantee="none")):
        assert private.spending is None
        assert private.budget is None
        assert private.statement.startswith("no privacy guarantee")
        assert Ledger(private, N).spend(np.arange(3)) is None


def test_weights_of_size_share_one_denominator():
    """Whoever comes, the sum is divided by what is expected: a cohort of the largest clients counts for more than 1."""
    sizes = np.arange(1, N + 1)
    private = made(noise_multiplier=1e-6, clip_norm=10.0, weight_cap=20.0, sizes=sizes, sampling="all")
    state = fs.init(private.algorithm, PARAMS, N)
    examples = {"inputs": jnp.ones((sizes.sum(), 5)), "labels": jnp.zeros(sizes.sum(), jnp.int32)}
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(jnp.asarray(sizes, jnp.int32))])
    round_fn = jax.jit(fs.make_round(private.algorithm, batch_size=64, local_steps=1))
    one = jnp.full(N, -1).at[0].set(4)
    moved = []
    for ids in (one, jnp.arange(N)):  # all clients have the same gradient
        after, _ = round_fn(state, fs.select(fs.Population(examples, offsets), ids), jax.random.key(0))
        moved.append(np.asarray(after.params["bias"] - PARAMS["bias"], np.float64))
    weights = np.minimum(sizes / 20, 1)
    np.testing.assert_allclose(moved[0], moved[1] * weights[4] / weights.sum(), rtol=1e-3, atol=1e-6)


REFUSED = {
    "neither target nor noise": (lambda: made(), ("epsilon", "noise_multiplier")),
    "a target without rounds": (lambda: made(epsilon=1.0, rounds=None), ("rounds",)),
    "no such mechanism": (lambda: made("cauchy", epsilon=1.0), ("mechanism", "cauchy", "gaussian")),
    "no such sampling": (lambda: made(epsilon=1.0, sampling="weighted"), ("sampling", "weighted", "poisson")),
    "no such guarantee": (lambda: made(epsilon=1.0, guarantee="maybe"), ("guarantee", "maybe")),
    "matrix noise for clients that come at any time": (
        lambda: made("matrix", epsilon=1.0, sampling="poisson"), ("sampling", "poisson", "round_robin")),
    "more bands than rounds between turns": (lambda: made("matrix", epsilon=1.0, bands=6), ("bands", "6", "5")),
    "shares of an unknown number of clients": (
        lambda: made("discrete_gaussian", epsilon=1.0, sampling="poisson"), ("sampling", "poisson", "uniform")),
    "discrete noise for no model": (lambda: made("discrete_gaussian", epsilon=1.0, params=None), ("params",)),
    "everybody drops out": (lambda: made("discrete_gaussian", epsilon=1.0, dropout=C), ("dropout", str(C))),
    "adaptive Laplace noise": (lambda: made("laplace", epsilon=1.0, adaptive=Adaptive()), ("adaptive", "laplace")),
    "weights that clients choose": (
        lambda: made("local_gaussian", epsilon=1.0, weight_cap=3.0), ("weight_cap", "local_gaussian")),
    "weights without sizes": (lambda: made(epsilon=1.0, weight_cap=3.0), ("sizes", "missing")),
    "sizes of others": (lambda: made(epsilon=1.0, weight_cap=3.0, sizes=[1, 2]), ("sizes", "2", "40")),
    "a sum of Gaussians": (lambda: made(epsilon=1.0, accountant="sum"), ("accountant", "sum", "pld")),
    "a delta of one": (lambda: made(epsilon=1.0, delta=1.0), ("delta", "1.0")),
    "a budget of nothing": (lambda: made(epsilon=0.0), ("epsilon", "0.0")),
    "noise of nothing": (lambda: made(noise_multiplier=0.0), ("noise_multiplier", "0.0")),
    "no clipping": (lambda: made(epsilon=1.0, clip_norm=0.0), ("clip_norm", "0.0")),
    "noise on nothing bounded": (lambda: made("laplace_bare", epsilon=1.0), ("guarantee", "none")),
    "a median": (
        lambda: made(algorithm=fs.median(loss_fn, client_tx=optax.sgd(0.1)), epsilon=1.0), ("algorithm", "mean")),
    "clients that answer twice": (
        lambda: made("local_gaussian", fs.mime(loss_fn, client_tx=optax.sgd(0.1)), epsilon=1.0),
        ("algorithm", "twice")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_agree_is_refused_in_one_line(case):
    wrong, parts = REFUSED[case]
    with pytest.raises(fs.InputError) as error:
        wrong()
    one_line(error, *parts)


def test_noise_twice_is_refused():
    with pytest.raises(fs.InputError) as error:
        made(algorithm=made(noise_multiplier=1.0).algorithm, noise_multiplier=1.0)
    one_line(error, "algorithm", "already")
