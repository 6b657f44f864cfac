"""Cohorts: pure functions of (seed, round), with the law that each sampler promises."""

import jax
import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_sim import InputError
from fedjax_sim.core.round import SAMPLE, stage_key
from fedjax_sim.core.simulate import sample_uniform
from fedjax_sim.data import sampling
from fedjax_sim.data.sampling import (
    SAMPLERS,
    by_size,
    custom,
    draw_rounds,
    everyone,
    make_sampler,
    poisson,
    round_robin,
    uniform,
)

OFFSETS = np.concatenate([[0], np.cumsum(np.arange(12))]).astype(np.int64)  # client i has i examples


def odd(ids: np.ndarray, round: int) -> np.ndarray:
    return ids % 2 == 1


@given(st.sampled_from(SAMPLERS), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sampler_is_a_pure_function_of_seed_and_round(name, size, seed, round, masked):
    def sampler():
        return make_sampler(name, OFFSETS, size, available=odd if masked else None)

    cohort = sampler().draw(seed, round)
    assert cohort.dtype == np.int32
    assert cohort.shape == (sampler().slots,)
    ids = cohort[cohort >= 0]
    assert (cohort[len(ids) :] == -1).all()
    assert len(set(ids.tolist())) == len(ids)
    assert not len(ids) or ids.max() < 12
    if masked:
        assert (ids % 2 == 1).all()
    sampler().draw(seed, round + 1)
    np.testing.assert_array_equal(sampler().draw(seed, round), cohort)


def counts(sampler: sampling.Sampler, rounds: int, clients: int) -> np.ndarray:
    drawn = draw_rounds(sampler, 7, 0, rounds)
    return np.bincount(drawn[drawn >= 0], minlength=clients)


def test_uniform_cohorts_are_those_of_the_device():
    for seed, round in ((0, 0), (3, 5), (2**32 - 1, 1000)):
        on_device = sample_uniform(stage_key(jax.random.key(seed), round, SAMPLE), 50, 10)
        np.testing.assert_array_equal(uniform(50, 10).draw(seed, round), on_device)


def test_uniform_is_uniform_among_the_available():
    assert stats.chisquare(counts(uniform(12, 3), 1500, 12)).pvalue > 1e-3
    drawn = counts(uniform(12, 3, available=odd), 1500, 12)
    assert drawn[::2].sum() == 0
    assert drawn.sum() == 3 * 1500
    assert stats.chisquare(drawn[1::2]).pvalue > 1e-3
    np.testing.assert_array_equal(np.sort(uniform(12, 9, available=odd).draw(0, 0)), [-1] * 3 + [1, 3, 5, 7, 9, 11])


def test_poisson_takes_each_client_independently():
    drawn = draw_rounds(poisson(40, 0.25), 1, 0, 2000)
    present = np.zeros((2000, 40), bool)
    for row, ids in zip(present, drawn, strict=True):
        row[ids[ids >= 0]] = True
    deviation = np.sqrt(0.25 * 0.75 / 2000)
    assert np.abs(present.mean(0) - 0.25).max() < 5 * deviation
    sizes = present.sum(1)
    assert stats.kstest(sizes, stats.binom(40, 0.25).cdf).statistic < 0.17  # a discrete law: its own steps are 0.14
    assert sizes.var() == pytest.approx(40 * 0.25 * 0.75, rel=0.15)
    pairs = np.corrcoef(present.T)[np.triu_indices(40, 1)]
    assert np.abs(pairs).max() < 6 / np.sqrt(2000)  # fixed-size sampling would centre them at -1/39
    assert abs(pairs.mean()) < 0.006


@pytest.mark.parametrize(("clients", "rate"), [(1, 0.5), (10, 0.5), (1000, 0.1), (10**6, 1e-4), (50, 1.0)])
def test_poisson_slots_are_exceeded_by_chance_below_1e_12(clients, rate):
    slots = poisson(clients, rate).slots
    assert stats.binom(clients, rate).sf(slots) < 1e-12
    assert slots <= clients * rate + 8 * np.sqrt(clients * rate) + 30


def test_by_size_draws_one_after_another_in_proportion():
    drawn = draw_rounds(by_size(OFFSETS, 2), 3, 0, 4000)
    sizes = np.arange(12) / 66
    first = np.bincount(drawn[:, 0], minlength=12)
    assert first[0] == 0  # no examples
    assert stats.chisquare(first[1:], 4000 * sizes[1:]).pvalue > 1e-3
    second = np.array([sum(sizes[i] * sizes[j] / (1 - sizes[i]) for i in range(12) if i != j) for j in range(12)])
    assert stats.chisquare(np.bincount(drawn[:, 1], minlength=12)[1:], 4000 * second[1:]).pvalue > 1e-3


def test_by_size_with_one_giant_goes_on_with_the_rest():
    offsets = np.concatenate([[0], np.cumsum([10**9, 1, 2, 0, 3])]).astype(np.int64)
    drawn = draw_rounds(by_size(offsets, 3), 0, 0, 600)
    assert (drawn[:, 0] == 0).all()
    assert not (drawn == 3).any()
    second = np.bincount(drawn[:, 1], minlength=5)[[1, 2, 4]]
    assert stats.chisquare(second, 600 * np.array([1, 2, 3]) / 6).pvalue > 1e-3
    np.testing.assert_array_equal(np.sort(by_size(offsets, 5).draw(0, 0)), [-1, 0, 1, 2, 4])


def test_round_robin_gives_everybody_a_turn():
    drawn = draw_rounds(round_robin(10, 4), 5, 0, 5)
    np.testing.assert_array_equal(np.bincount(drawn.ravel()), [2] * 10)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    with_mask = draw_rounds(round_robin(10, 4, available=odd), 5, 0, 5)
    np.testing.assert_array_equal(with_mask[with_mask >= 0], drawn[drawn % 2 == 1])


def test_everyone_and_a_mask_that_changes():
    np.testing.assert_array_equal(everyone(4).draw(0, 9), [0, 1, 2, 3])
    night = everyone(4, available=lambda ids, round: ids < round)
    np.testing.assert_array_equal(night.draw(0, 2), [0, 1, -1, -1])
    np.testing.assert_array_equal(night.draw(0, 0), [-1] * 4)


def test_ones_own_function():
    np.testing.assert_array_equal(custom(lambda seed, round: [seed, round], 10, 3).draw(4, 2), [4, 2, -1])
    np.testing.assert_array_equal(custom(lambda seed, round: [], 10, 2).draw(4, 2), [-1, -1])
    for ids, found in (
        ([10], "gave client 10; return ids from 0 to 9"),
        ([-1], "gave client -1"),
        ([1, 1], "2 ids, 1 of them different"),
        ([1, 2, 3, 4], "4 ids"),
        ([0.5], "float64[1]"),
        (3, "int64[]"),
    ):
        with pytest.raises(InputError) as error:
            custom(lambda seed, round, ids=ids: ids, 10, 3).draw(0, 7)
        one_line(error, "sampler: round 7", found)


def test_a_billion_clients_cost_nothing():
    assert uniform(10**9, 100).draw(0, 0).max() > 10**8
    assert 0 < np.count_nonzero(poisson(10**9, 1e-7).draw(0, 0) >= 0) < 200
    assert round_robin(10**9, 100).draw(0, 10**6).min() >= 0


def test_what_cannot_be_drawn():
    for make in (uniform, round_robin):
        with pytest.raises(InputError, match=r"^cohort_size: 5 is more than the 4 clients; ask for fewer$"):
            make(4, 5)
    for rate in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"^rate: "):
            poisson(4, rate)
    for seed, round, found in ((-1, 0, "seed: -1"), (2**32, 0, "seed: 4294967296 is too large"), (0, 2**31, "round: ")):
        for name in SAMPLERS:
            with pytest.raises(InputError) as error:
                make_sampler(name, OFFSETS, 2).draw(seed, round)
            one_line(error, found)
    with pytest.raises(InputError, match=r"^sampling: 'even' is unknown"):
        make_sampler("even", OFFSETS, 2)
    with pytest.raises(InputError, match=r"^available: round 3 gave int64\[2\] for"):
        uniform(12, 4, available=lambda ids, round: np.array([1, 0])).draw(0, 3)
