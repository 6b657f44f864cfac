"""The shuffle that is computed index by index: a bijection, uniform, and different for every key and epoch."""

from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare, hypergeom

from fedjax_sim.core import permute
from fedjax_sim.core.permute import enough_passes, permuted
from fedjax_sim.core.simulate import sample_uniform

LONGEST = 400
ACCEPT, REJECT = 1e-3, 1e-12  # a right shuffle fails at one seed in a thousand; these seeds are fixed


@jax.jit
def whole(seed, length, epoch):
    """The permutation of a traced length; entries beyond it mean nothing."""
    positions = jnp.arange(LONGEST, dtype=jnp.int32)
    return permuted(jax.random.key(seed), length, jnp.minimum(positions, length - 1), epoch)


def order(seed, length, epoch=0):
    return np.asarray(whole(seed, length, epoch))[:length]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**31 - 1), st.integers(1, LONGEST), st.integers(0, 10_000))
def test_it_is_a_bijection(seed, length, epoch):
    np.testing.assert_array_equal(np.sort(order(seed, length, epoch)), np.arange(length))


@pytest.mark.parametrize("length", [1, 2, 65_536, 1_000_003])
def test_it_is_a_bijection_of_long_ranges_too(length):
    got = permuted(jax.random.key(5), jnp.int32(length), jnp.arange(length, dtype=jnp.int32))
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(got), np.arange(length))


def test_the_first_positions_agree_with_the_whole_and_with_a_length_that_is_not_traced():
    few = permuted(jax.random.key(1), jnp.int32(50), jnp.asarray([3, 0, 49], jnp.int32), 2)
    np.testing.assert_array_equal(few, order(1, 50, 2)[np.array([3, 0, 49])])


def test_keys_and_epochs_give_other_orders_and_each_its_own_again():
    orders = [order(seed, 40, epoch) for seed in range(8) for epoch in range(8)]
    assert len({o.tobytes() for o in orders}) == 64
    np.testing.assert_array_equal(order(3, 40, 5), orders[3 * 8 + 5])


def test_orders_of_two_epochs_are_uncorrelated():
    first, second = order(0, LONGEST), order(0, LONGEST, 1)
    assert abs(np.corrcoef(first, np.arange(LONGEST))[0, 1]) < 4 / np.sqrt(LONGEST)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(LONGEST)
    # nor is one a rotation of the other, which a correlation may not show
    assert np.bincount((first - second) % LONGEST).max() < 10


def uniformity(shuffle, n, draws=24_000):
    """The p-value of all permutations of `n` being equally likely."""
    keys = jax.random.split(jax.random.key(11), draws)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: shuffle(key, jnp.int32(n), jnp.arange(n, dtype=jnp.int32))))(keys))
    codes = drawn @ (n ** np.arange(n))
    counts = [np.sum(codes == np.array(p) @ (n ** np.arange(n))) for p in permutations(range(n))]
    assert sum(counts) == draws
    return chisquare(counts).pvalue


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_permutations_are_equally_likely(n):
    assert uniformity(permuted, n) > ACCEPT


def test_the_check_would_reject_a_shuffle_of_two_passes(monkeypatch):
    monkeypatch.setattr(permute, "PASSES", 2)
    assert uniformity(permuted, 4) < REJECT


def test_the_check_would_reject_a_rotation():
    def rotate(key, length, positions):
        return (positions + jax.random.randint(key, (), 0, length)) % length

    assert uniformity(rotate, 3) < REJECT


@jax.jit
def cohorts(keys):
    return jax.vmap(lambda key: sample_uniform(key, 10, 3))(keys)


def test_a_cohort_holds_distinct_clients_each_equally_often():
    draws, clients, size = 20_000, 10, 3
    drawn = np.asarray(cohorts(jax.random.split(jax.random.key(2), draws)))
    assert drawn.shape == (draws, size)
    assert drawn.min() == 0
    assert drawn.max() == clients - 1
    assert all(len(set(ids)) == size for ids in drawn)
    share = size / clients
    gaps = np.bincount(drawn.ravel(), minlength=clients) - draws * share
    # counts of a sample without replacement vary less than a multinomial's: by N p (1 - p), and they sum to a constant
    statistic = (clients - 1) / clients * np.sum(gaps**2) / (draws * share * (1 - share))
    assert chi2.sf(statistic, clients - 1) > ACCEPT
    assert chi2.cdf(statistic, clients - 1) > ACCEPT  # nor are they more even than chance


def test_all_pairs_of_clients_meet_equally_often():
    drawn = np.asarray(cohorts(jax.random.split(jax.random.key(3), 20_000)))[:, :2]
    met = [np.sum((drawn.min(1) == a) & (drawn.max(1) == b)) for a, b in combinations(range(10), 2)]
    assert sum(met) == len(drawn)
    assert chisquare(met).pvalue > ACCEPT


# --- the second moment ------------------------------------------------------------------------------------------------


def drawn_cohorts(length, size, draws, passes):
    """Where the first `size` positions go, int32[draws, size]."""
    keys, positions = jax.random.split(jax.random.key(9), draws), jnp.arange(size, dtype=jnp.int32)

    def one(key, length):
        return permuted(key, length, positions, passes=passes, unroll=False)

    return np.asarray(jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, jnp.int32(length)))


def dispersion(drawn, length):
    """By how many standard errors the variance of the number in a half of all positions is off the hypergeometric's,
    and the largest deviation from the mean in standard deviations: for the first half and for the even ones."""
    for count, held in (((drawn < length // 2).sum(1), length // 2), ((drawn % 2 == 0).sum(1), (length + 1) // 2)):
        right = hypergeom(length, held, drawn.shape[1])
        moments = right.stats(moments="k"), right.var()
        error = np.sqrt((2 + max(moments[0], 0)) / len(drawn))
        yield (count.var() / moments[1] - 1) / error, np.abs(count - right.mean()).max() / np.sqrt(moments[1])


SAMPLES = [(20, 10, 20_000), (100, 50, 20_000), (1000, 200, 20_000), (10_000, 100, 20_000), (60_000, 300, 10_000)]


@pytest.mark.parametrize("passes", ["of a length known beforehand", "of a traced length"])
@pytest.mark.parametrize(
    ("length", "size", "draws"), [pytest.param(*s, marks=[pytest.mark.slow] if s[0] == 10_000 else []) for s in SAMPLES]
)
def test_a_sample_is_as_dispersed_as_one_without_replacement(length, size, draws, passes):
    known = passes == "of a length known beforehand"
    drawn = drawn_cohorts(length, size, draws // 4 if known else draws, enough_passes(length) if known else None)
    for errors, farthest in dispersion(drawn, length):
        assert abs(errors) < 4
        assert farthest < 5.5


def test_the_check_would_reject_ten_passes():
    assert max(errors for errors, _ in dispersion(drawn_cohorts(1000, 500, 4000, 10), 1000)) > 4


def test_consecutive_samples_overlap_as_independent_ones_do():
    clients, size, draws = 1000, 100, 4000
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: sample_uniform(key, clients, size)))(
        jax.vmap(lambda number: jax.random.fold_in(jax.random.key(3), number))(jnp.arange(draws))
    ))  # fmt: skip
    held = np.zeros((draws, clients), bool)
    np.put_along_axis(held, drawn, True, 1)
    overlap, right = (held[:-1] & held[1:]).sum(1), hypergeom(clients, size, size)
    assert abs(overlap.mean() - right.mean()) < 4 * right.std() / np.sqrt(draws)
    assert abs(overlap.var() / right.var() - 1) < 4 * np.sqrt(2 / draws)


def test_passes_follow_the_bound():
    assert [enough_passes(n) for n in (1, 20, 1000, 2**31 - 1)] == [28, 55, 92, 237]
    for n in (2, 100, 10_000):
        bounds = [2 * n**1.5 / (r + 2) * (3 / 4) ** (r / 2 + 1) for r in (enough_passes(n) - 1, enough_passes(n))]
        assert bounds[0] > 1e-3 >= bounds[1]
