"""The sampler of the discrete Gaussian: its table holds the law exactly, and what is drawn follows it."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_line
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.privacy.discrete import LOW, TOTAL, WIDTH, _below, draw, table, weights

KEY = jax.random.key(3)


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.3, 0.5, 1.0, 1.7, 5.0, 33.3, 400.0])
def test_columns_and_thresholds_hold_exactly_the_chances(sigma):
    """Every column has the same chance; what it gives to its own number and to the other adds up to the law."""
    made, law = table(sigma), weights(sigma)
    rest, height = TOTAL - LOW - made.columns, 1 << (TOTAL - made.columns)
    got = [0] * (1 << made.columns)
    for column, (first, second) in enumerate(zip(made.first.tolist(), made.second.tolist(), strict=True)):
        own = ((first & ((1 << rest) - 1)) << LOW) | second
        got[column] += own
        got[first >> rest] += height - own
    assert got[: len(law)] == law.tolist()
    assert not any(got[len(law) :])
    assert sum(got) == 2**TOTAL


@pytest.mark.parametrize("sigma", [0.3, 1.0, 33.3])
def test_chances_are_those_of_the_discrete_gaussian(sigma):
    """Against terms that are right to 40 digits."""
    law = weights(sigma)
    ratio = -Fraction(1) / (2 * Fraction(sigma) ** 2)

    def exponential(x):  # of a number from -1 to 0, then squared as often as it was halved
        halved = 0
        while abs(x) > 1:
            x, halved = x / 2, halved + 1
        x, term, total = Fraction(int(x * 10**60), 10**60), Fraction(1), Fraction(1)
        for i in range(1, 45):
            term = Fraction(int(term * x / i * 10**60), 10**60)
            total += term
        for _ in range(halved):
            total = Fraction(int(total * total * 10**60), 10**60)
        return total

    exact = [exponential(ratio * k * k) * (1 if k == 0 else 2) for k in range(len(law))]
    whole = sum(exact)
    for got, wanted in zip(law.tolist(), exact, strict=True):
        assert abs(got - wanted / whole * 2**TOTAL) <= max(2, wanted / whole * 2 ** (TOTAL - 44))


@pytest.mark.parametrize("sigma", [0.4, 3.0])
def test_samples_follow_the_law(sigma):
    sample = np.asarray(jax.jit(lambda key: draw(key, (300, 400), table(sigma)))(KEY)).ravel()
    law = weights(sigma) / 2.0**TOTAL
    both = np.concatenate([law[:0:-1] / 2, law[:1], law[1:] / 2]) * sample.size
    counts = np.bincount(sample + len(law) - 1, minlength=len(both))
    likely = both > 10
    observed, expected = (np.append(x[likely], x[~likely].sum()) for x in (counts, both))
    assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_large_deviations_have_their_law():
    sample = np.asarray(draw(KEY, (20000,), table(2000.0)))
    assert stats.kstest(sample, stats.norm(scale=2000).cdf).pvalue > 1e-3
    assert stats.kstest(sample, stats.norm(scale=2200).cdf).pvalue < 1e-3


def test_bits_that_few_entries_need_are_drawn_for_each_that_does():
    """In more blocks than are done in one turn, the last of them not full."""
    count = 70 * WIDTH + 17
    rng = np.random.default_rng(0)
    thresholds = jnp.asarray([0, 2**29, 2**31 - 1], jnp.uint32)
    column = rng.integers(0, 3, count)
    for share in (0.0, 0.001, 1.0):
        ask = rng.random(count) < share
        below = np.asarray(jax.jit(_below)(KEY, jnp.asarray(ask), jnp.asarray(column), thresholds))
        assert below.shape == (count,)
        assert not below[~ask | (column == 0)].any()
        assert below[ask & (column == 2)].all()
    quarter = below[column == 1]
    assert abs(quarter.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / quarter.size)
    assert stats.binomtest(int((quarter[1:] & quarter[:-1]).sum()), quarter.size - 1, 1 / 16).pvalue > 1e-3


def test_clients_side_by_side_draw_what_each_draws_alone():
    law, keys = table(1e4), jax.random.split(KEY, 3)  # of whose entries one in 16,000 needs more bits
    together = jax.jit(jax.vmap(lambda key: draw(key, (30000,), law)))(keys)
    for key, drawn in zip(keys, together, strict=True):
        np.testing.assert_array_equal(drawn, draw(key, (30000,), law))
    assert draw(KEY, (), law).shape == ()


@pytest.mark.parametrize("sigma", [0.0, -1.0, 2.0**21, np.nan])
def test_a_deviation_out_of_range_is_one_line(sigma):
    with pytest.raises(fs.InputError) as error:
        table(sigma)
    one_line(error, "sigma", "2^20")
